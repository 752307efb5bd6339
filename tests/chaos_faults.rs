//! `phalanx chaos --fault` from outside: what it says of the faults that need no rights, and that Ctrl-C leaves
//! nothing. The faults that root must do are in `.ci/run chaos`.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/launched.rs"]
mod launched;
#[path = "processes/talking.rs"]
mod talking;

use std::process::Command;
use std::sync::mpsc::channel;

use launched::{Folder, Watched, children_of, signal, wait_children};
use rustix::process::Signal;
use talking::{PHALANX, Talking};

/// Runs one of each of these faults, and compares the line of each with what must come of it.
fn faults(list: &[(&str, &str)], policy: &str, transport: &str) {
    let names = list.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    let mut command = Command::new(PHALANX);
    command.args(["chaos", "--fault", &names, "--policy", policy, "--transport", transport, "--no-skip"]);
    let ended = command.args(["--runs", "1", "--seed", "2", "--json"]).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{policy} {transport}: {out}{errors}");
    assert_eq!(out.lines().count(), list.len(), "{out}");
    for ((name, outcome), line) in list.iter().zip(out.lines()) {
        assert!(line.contains(&format!("\"fault\":\"{name}\"")), "{line}");
        let outcome = format!("\"outcomes\":{{\"{outcome}\":1}},\"wrong\":0,\"hung\":0,\"leaked\":0");
        assert!(line.contains(&outcome), "{line}");
    }
}

#[test]
fn a_lost_rank_is_replaced_and_a_slow_one_is_not() {
    for transport in ["shm", "tcp"] {
        faults(&[("kill", "replaced"), ("stop", "replaced"), ("pause", "exact")], "replace", transport);
    }
}

#[test]
fn a_lost_rank_is_left_out_and_a_slow_one_is_not() {
    for transport in ["shm", "tcp"] {
        faults(&[("kill", "shrunk"), ("stop", "shrunk"), ("pause", "exact")], "shrink", transport);
    }
}

#[test]
fn a_lost_rank_ends_the_world_and_a_slow_one_does_not() {
    for transport in ["shm", "tcp"] {
        faults(&[("kill", "aborted"), ("stop", "aborted"), ("pause", "exact")], "abort", transport);
    }
}

#[test]
fn it_ends_whole_by_ctrl_c() {
    let folder = Folder::new("chaos");
    let (tell, _said) = channel();
    let mut command = Command::new(PHALANX);
    command.args(["chaos", "--fault", "pause", "--runs", "1000000"]).env("TMPDIR", &folder.0);
    let mut chaos = Talking::start(&mut command, "chaos", &tell);
    // A coordinator, and a launcher with ranks.
    let children = wait_children(chaos.0.id(), |children| {
        children.len() == 2 && children.iter().any(|child| children_of(child.unsigned_abs()).len() > 3)
    });
    let ranks = children.iter().flat_map(|child| children_of(child.unsigned_abs()));
    let all: Vec<Watched> = ranks.chain(children.iter().copied()).map(Watched::open).collect();
    signal(i32::try_from(chaos.0.id()).unwrap(), Signal::INT);
    assert_eq!(chaos.0.wait().unwrap().code(), Some(130));
    for process in &all {
        assert!(process.ends(), "process {} is left", process.pid);
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "a file is left");
}

#[test]
fn what_is_no_fault_is_refused_with_those_that_are() {
    let ended = Command::new(PHALANX).args(["chaos", "--fault", "kill,earthquake"]).output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{errors}");
    assert!(errors.contains("`earthquake` is no fault") && errors.contains("host-kill"), "{errors}");
}
