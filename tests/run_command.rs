//! `phalanx run` and its neighbours from outside: exit codes, the sentence about a failure, labels, refusals.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/launched.rs"]
mod launched;
#[path = "processes/talking.rs"]
mod talking;

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use launched::{Watched, child_for, children_of, disturbed, signal, stepping, wait_children, wait_each};
use phalanx::auth::JobKey;
use rustix::process::Signal;
use talking::{PHALANX, Said, Talking, wait_line};

fn phalanx(words: &[&str]) -> Command {
    let mut command = Command::new(PHALANX);
    command.args(words).env_remove("PHALANX_JOB_KEY").stdin(Stdio::null());
    command
}

/// Code, standard output, standard error of a command that must end by itself.
fn ended(command: &mut Command) -> (i32, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let text = |from: Box<dyn Read + Send>| std::thread::spawn(|| std::io::read_to_string(from).unwrap());
    let out = text(Box::new(child.stdout.take().unwrap()));
    let errors = text(Box::new(child.stderr.take().unwrap()));
    if !Watched::open(i32::try_from(child.id()).unwrap()).ends() {
        child.kill().unwrap();
        panic!("it goes on: {command:?}");
    }
    (child.wait().unwrap().code().unwrap(), out.join().unwrap(), errors.join().unwrap())
}

fn run(options: &[&str], script: &str) -> (i32, String, String) {
    ended(phalanx(&["run"]).args(options).args(["--", "sh", "-c", script, PHALANX]))
}

/// The one line of an error, which says what to do.
fn sentence(errors: &str, parts: &[&str]) {
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("phalanx: ")).collect();
    assert!(lines.len() == 1 && errors.ends_with(&format!("{}\n", lines[0])), "it ends with one: {errors}");
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in {errors}");
    }
}

#[test]
fn a_command_that_joins_nothing_runs_once_a_rank_and_is_no_failure() {
    let (code, out, errors) = run(&["-n", "2"], "echo hello");
    assert_eq!((code, errors.as_str()), (0, ""));
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[r0] hello", "[r1] hello"], "no spare that nobody asked for");
    let (code, out, _) = run(&["-n", "1", "--spares", "1"], "echo hello");
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    // A spare that has joined stands by for ranks that never were.
    let script = "test $PHALANX_RANK && exit 0; exec $0 chaos-rank --steps";
    let (code, _, errors) = run(&["-n", "1", "--spares", "1"], script);
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[test]
fn a_failure_ends_with_one_sentence_of_rank_cause_and_what_to_do() {
    // The rank that does not fail ends first, and that it joined nothing is no failure.
    let (code, _, errors) = run(&["-n", "2"], "test $PHALANX_RANK = 0 || exit 7");
    assert_eq!(code, 7);
    sentence(&errors, &["rank 1 (process ", "exit code 7", "before the world had formed", "[r1]"]);
    let (code, _, errors) = run(&["-n", "2"], "test $PHALANX_RANK = 1 && kill -9 $$; exec sleep 1000");
    assert_eq!(code, 137);
    sentence(&errors, &["rank 1 ", "signal 9 (SIGKILL)", "dmesg"]);
    let (code, _, errors) = ended(&mut phalanx(&["run", "-n", "1", "--", "/no/such/program"]));
    assert_eq!(code, 127);
    assert!(errors.contains("/no/such/program cannot be started"), "{errors}");
    assert!(errors.lines().last().unwrap().starts_with("phalanx: rank 0 "), "{errors}");
}

#[test]
fn a_rank_that_leaves_others_waiting_is_a_failure() {
    let script = "test $PHALANX_RANK = 0 && exec $0 chaos-rank --steps; exit 0";
    let (code, _, errors) = run(&["-n", "2"], script);
    assert_eq!(code, 1);
    sentence(&errors, &["rank 1 ", "exit code 0", "others wait for it"]);
}

#[test]
fn the_log_has_no_colours_where_nobody_sees_them() {
    let mut command = phalanx(&["run", "-n", "1", "--", PHALANX, "chaos-rank", "--steps", "--ops", "2"]);
    let (code, _, errors) = ended(command.env("PHALANX_LOG", "info"));
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("Formed") && !errors.contains('\u{1b}'), "{errors}");
}

#[test]
fn a_death_that_ends_the_run_by_policy_abort_is_its_failure_and_by_policy_shrink_it_is_none() {
    for (policy, code) in [("abort", 137), ("shrink", 0)] {
        let (tell, said) = channel();
        let mut command = phalanx(&["run", "-n", "3", "--spares", "0", "--policy", policy, "--", PHALANX]);
        command.args(["chaos-rank", "--bytes", "64K", "--ops-after-loss", "20"]).stderr(Stdio::piped());
        let mut run = Talking::start(&mut command, "run", &tell);
        wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress"), ("run", "[r2] progress")]);
        signal(child_for(&run, 1), Signal::KILL);
        assert!(Watched::open(i32::try_from(run.0.id()).unwrap()).ends(), "{policy}: it goes on");
        let errors = std::io::read_to_string(run.0.stderr.take().unwrap()).unwrap();
        assert_eq!(run.0.wait().unwrap().code(), Some(code), "{policy}: {errors}");
        if code != 0 {
            sentence(&errors, &["rank 1 ", "signal 9 (SIGKILL)"]);
        }
    }
}

#[test]
fn a_spare_has_the_label_of_its_rank_from_its_first_line_on() {
    let (tell, said) = channel();
    let run = stepping(phalanx(&["run", "-n", "2"]).arg("--spares=1"), "run", &tell);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress")]);
    signal(child_for(&run, 1), Signal::KILL);
    let line = wait_line(&said, |_, line| {
        // A rank prints nothing before it has its seat.
        assert!(!line.starts_with("[spare"), "{line}");
        disturbed(line, 1).is_some_and(|epoch| epoch >= 2)
    });
    assert!(line.starts_with("[r1] "), "{line}");
    wait_each(&said, &[("run", "[r1] progress")]);
}

#[test]
fn spares_that_nobody_asked_for_come_once_the_world_has_formed() {
    let (tell, said) = channel();
    let run = stepping(&mut phalanx(&["run", "-n", "2"]), "run", &tell);
    wait_children(run.0.id(), |children| children.len() == 3);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress")]);
    signal(child_for(&run, 0), Signal::KILL);
    wait_line(&said, |_, line| disturbed(line, 0).is_some_and(|epoch| epoch >= 2));
}

#[test]
fn a_command_that_never_joins_ends_with_its_launcher_all_the_same() {
    let mut run = phalanx(&["run", "-n", "2", "--", "sleep", "1000"]).spawn().unwrap();
    let is_asleep = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
    };
    wait_children(run.id(), |children| children.len() == 2 && children.iter().all(is_asleep));
    let children: Vec<Watched> = children_of(run.id()).into_iter().map(Watched::open).collect();
    run.kill().unwrap();
    run.wait().unwrap();
    for child in children {
        assert!(child.ends(), "process {} outlives its launcher", child.pid);
    }
}

/// A coordinator of two ranks, its address, the key of its world.
fn two_hosts(tell: &Sender<Said>, said: &Receiver<Said>) -> (Talking, String, String) {
    let key = JobKey::random().unwrap().to_hex();
    let mut command = phalanx(&["coordinator", "-n", "2", "--lease-ms", "1500"]);
    let (coordinator, address) = talking::coordinator(command.env("PHALANX_JOB_KEY", &key), tell, said);
    (coordinator, address, key)
}

#[test]
fn a_rank_that_another_host_replaced_is_no_failure_of_its_own() {
    let (tell, said) = channel();
    let (_coordinator, address, key) = two_hosts(&tell, &said);
    let start = |label, options: &[&str]| {
        let mut run = phalanx(&["run", "--coordinator", &address]);
        run.args(options).env("PHALANX_JOB_KEY", &key);
        stepping(&mut run, label, &tell)
    };
    let _near = start("near", &["-n", "1", "--spares", "1"]);
    let mut far = start("far", &["-n", "1", "--rank-from", "1", "--no-respawn"]);
    wait_each(&said, &[("near", "[r0] progress"), ("far", "[r1] progress")]);
    signal(child_for(&far, 1), Signal::KILL);
    wait_line(&said, |label, line| label == "near" && disturbed(line, 1).is_some());
    assert!(Watched::open(i32::try_from(far.0.id()).unwrap()).ends(), "nothing is left to do here");
    assert_eq!(far.0.wait().unwrap().code(), Some(0), "and nothing failed");
}

#[test]
fn a_launcher_that_cannot_take_part_says_why() {
    let (tell, said) = channel();
    let (_coordinator, address, key) = two_hosts(&tell, &said);
    let other = JobKey::random().unwrap().to_hex();
    for (options, key, code, parts) in [
        (&["-n", "1"][..], None, 2, &["PHALANX_JOB_KEY is not set", "phalanx coordinator"][..]),
        (&["-n", "1"], Some(&other), 1, &["do not trust each other", "Set PHALANX_JOB_KEY"]),
        (&["-n", "2", "--rank-from", "1"], Some(&key), 2, &["ranks 1 to 2", "world of 2", "--rank-from"]),
        (&[], Some(&key), 2, &["-n"]),
        (&["-n", "0"], Some(&key), 2, &["nothing to start"]),
        (&["-n", "1", "--policy", "abort"], Some(&key), 2, &["--policy", "phalanx coordinator"]),
    ] {
        let mut run = phalanx(&["run", "--coordinator", &address]);
        run.args(options).args(["--", "true"]).envs(key.map(|key| ("PHALANX_JOB_KEY", key)));
        let (ended_with, _, errors) = ended(&mut run);
        assert_eq!(ended_with, code, "{options:?}: {errors}");
        sentence(&errors, parts);
        assert!(!errors.contains(&other), "the key is not shown: {errors}");
    }
    let (code, _, errors) = ended(&mut phalanx(&["run", "--coordinator", "here", "-n", "1", "--", "true"]));
    assert_eq!(code, 2);
    sentence(&errors, &["HOST:PORT"]);
}

#[test]
fn what_would_be_ignored_is_refused() {
    for (words, part) in [
        (&["coordinator", "--domain", "host"][..], "--domain is for whoever starts the ranks"),
        (&["coordinator", "--transport=tcp"], "--transport is for whoever starts the ranks"),
        (&["coordinator", "--no-respawn"], "--no-respawn is for whoever starts the ranks"),
        (&["coordinator", "--spares", "2"], "--spares is for whoever starts the ranks"),
        (&["coordinator", "--", "extra"], "`extra` after `--`"),
        (&["plan", "all_reduce", "--", "extra"], "`extra` after `--`"),
        (&["chaos", "--", "extra"], "`extra` after `--`"),
        (&["doctor", "--", "extra"], "`extra` after `--`"),
        (&["chaos", "--kills", "x"], "--kills x: write a whole number"),
        (&["run", "--rank-from", "1", "--", "true"], "--rank-from"),
    ] {
        let (code, out, errors) = ended(&mut phalanx(words));
        assert_eq!((code, out.as_str()), (2, ""), "{words:?}: {errors}");
        sentence(errors.split_inclusive('\n').next().unwrap(), &[part]);
    }
    let (code, _, errors) = ended(phalanx(&["doctor"]).env("PHALANX_LOG", "lauter"));
    assert_eq!(code, 2);
    sentence(&errors, &["PHALANX_LOG=lauter", "error, warn, info, debug, trace"]);
}

/// A spare's program that crashes at its start is not started for ever.
#[test]
fn spares_that_crash_are_given_up() {
    let script = "if [ -z \"$PHALANX_RANK\" ]; then echo crash; kill -SEGV $$; fi
        exec \"$0\" chaos-rank --steps --ops 20000";
    let (code, out, _) = run(&["-n", "2", "--spares", "1"], script);
    let crashes = out.lines().filter(|line| line.ends_with("crash")).count();
    assert_eq!((code, crashes), (0, 9), "{out}");
}

/// The launcher knows a shell, the coordinator the program that the shell started.
#[test]
fn a_rank_behind_a_shell_is_known_to_a_launcher_under_a_coordinator_elsewhere() {
    let (tell, said) = channel();
    let (_coordinator, address, key) = two_hosts(&tell, &said);
    let mut command =
        phalanx(&["run", "--coordinator", &address, "-n", "2", "--spares", "1", "--", "sh", "-c"]);
    command.arg(format!("{PHALANX} chaos-rank --steps --bytes 64K; exit $?")).env("PHALANX_JOB_KEY", &key);
    let run = Talking::start(&mut command, "run", &tell);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress")]);
    let before = wait_children(run.0.id(), |children| children.len() == 3);
    let program = children_of(u32::try_from(child_for(&run, 1)).unwrap());
    signal(program[0], Signal::KILL);
    wait_line(&said, |_, line| disturbed(line, 1).is_some_and(|epoch| epoch >= 2));
    // Another spare comes in place of the one that has the seat now.
    wait_children(run.0.id(), |children| {
        children.len() == 3 && children.iter().any(|child| !before.contains(child))
    });
}
