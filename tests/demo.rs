//! The demo from outside: the built command, its exit code, its one JSON object.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::process::{Command, Output};

fn demo(options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx")).arg("demo").args(options).output().unwrap()
}

/// The value of `name` in a flat JSON object, as it is written.
fn field<'a>(json: &'a str, name: &str) -> &'a str {
    let (_, after) =
        json.split_once(&format!("\"{name}\": ")).unwrap_or_else(|| panic!("no {name} in {json}"));
    after.split([',', '}']).next().unwrap()
}

/// The object that a run printed, after a look at what every run must have.
fn result(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{:?}\n{json}\n{errors}", output.status);
    let inside = json.strip_prefix('{').and_then(|rest| rest.strip_suffix("}\n"));
    assert!(
        inside.is_some_and(|inside| !inside.contains(['{', '}', '\n'])),
        "one object in one line: {json:?}"
    );
    assert_eq!(field(&json, "bitwise_equal"), "true", "{json}");
    assert_eq!(field(&json, "params_hash"), field(&json, "baseline_hash"), "{json}");
    assert_eq!(field(&json, "survivor_errors"), "0", "{json}\n{errors}");
    assert_eq!(field(&json, "steps"), "40", "{json}");
    let accuracy: f64 = field(&json, "accuracy").parse().unwrap();
    assert!((0.85..=1.0).contains(&accuracy), "{json}");
    json
}

fn killed(options: &[&str]) {
    let json = result(&demo(options));
    assert_eq!(field(&json, "kill_in_flight"), "true", "{json}");
    let time = |name| field(&json, name).parse::<f64>().unwrap_or_else(|e| panic!("{name}: {e} in {json}"));
    assert!(time("stall_ms") >= 0.0, "{json}");
    let order = ["detect_ms", "reseat_ms", "state_ms", "replay_ms"].map(time);
    assert!(order[0] >= 0.0, "{json}");
    // The seat comes after the detection and the replay after the state; two pipes and the coordinator's socket tell
    // of the seat and of the state, so these two may be read in any order.
    assert!(order[0] <= order[1] && order[0] <= order[2] && order[1] <= order[3], "{json}");
}

#[test]
fn a_kill_over_shared_memory_leaves_no_trace() {
    killed(&["--kill", "random", "--seed", "3", "--steps", "40", "--transport", "shm", "--json"]);
}

#[test]
fn a_kill_over_tcp_leaves_no_trace() {
    killed(&["--kill", "random", "--seed", "3", "--steps", "40", "--transport", "tcp", "--json"]);
}

#[test]
fn of_two_ranks_one_is_enough() {
    killed(&["--ranks", "2", "--kill", "rank=1,step=20", "--seed", "4", "--steps", "40", "--json"]);
}

#[test]
fn without_a_kill_there_is_nothing_to_time() {
    let json = result(&demo(&["--kill", "none", "--seed", "3", "--steps", "40", "--json"]));
    assert_eq!(field(&json, "kill_in_flight"), "false", "{json}");
    for name in ["stall_ms", "detect_ms", "reseat_ms", "state_ms", "replay_ms"] {
        assert_eq!(field(&json, name), "null", "{json}");
    }
}

#[test]
fn people_get_the_timeline_and_the_verdict() {
    let output = demo(&["--ranks", "3", "--kill", "rank=2,step=30", "--steps", "40"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for part in ["r2 killed in step 30", "takes seat r2 at step 30", "state transferred", "EQUAL"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for options in [
        &["--kill", "rank=4,step=1"][..],
        &["--kill", "rank=0,step=300"],
        &["--kill", "sometimes"],
        &["--ranks", "1"],
        &["--spares", "0"],
        &["--steps", "2"],
        &["--transport", "pigeon"],
        &["now"],
    ] {
        let output = demo(options);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{options:?}");
    }
}
