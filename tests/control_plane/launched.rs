//! Worlds of child processes under a launcher.

use std::io::{BufRead, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use phalanx::launch::{Output, Signal, World, WorldSpec, tie_to_parent};
use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Rank;

use super::{LONG, Member, Note, info, lost, rules};

const ROLE: &str = "PHALANX_TEST_ROLE";

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn this_test(name: &str) -> Vec<std::ffi::OsString> {
    let binary = std::env::current_exe().unwrap().into_os_string();
    let name = format!("{}::{name}", module_path!().split_once("::").expect("a module of this test").1);
    let words = ["--exact".into(), name.into(), "--nocapture".into()];
    [binary].into_iter().chain(words).collect()
}

fn launch(ranks: u32, role: &str) -> WorldSpec {
    let mut spec = WorldSpec::new(ranks, rules(ranks), this_test("a_launched_child_plays_its_role"));
    spec.envs = vec![(ROLE.into(), role.into())];
    spec
}

/// What launched children run; without the variable there is nothing to do.
#[test]
fn a_launched_child_plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "launcher" {
        let world =
            World::spawn(WorldSpec { output: Output::Inherit, ..launch(1, "tied") }, |_, _| {}).unwrap();
        std::process::exit(world.wait());
    }
    let tie = tie_to_parent(env("PHALANX_PARENT_PID").parse().unwrap()).unwrap();
    println!("role {role} {tie:?}");
    let rank = std::env::var("PHALANX_RANK").ok().map(|r| r.parse().unwrap());
    let me = info(u64::from(std::process::id()), std::process::id(), rank);
    let key = env("PHALANX_JOB_KEY").parse().unwrap();
    let member = Member::start(me, env("PHALANX_COORDINATOR").parse().unwrap(), &key);
    let until = if role == "tied" { u64::MAX } else { 2 };
    let seated = |n: &Note| matches!(n, Note::At { epoch, rank: Some(_), .. } if epoch.0 >= until);
    let out = |n: &Note| matches!(n, Note::Halted(_) | Note::RunOver);
    if seated(&member.wait(|n| seated(n) || out(n))) {
        member.leave();
    }
}

#[test]
fn a_launched_world_replaces_a_killed_rank_and_ends_with_0() {
    let (lines, heard) = channel();
    let lines = std::sync::Mutex::new(lines);
    let output = Output::Pipe(std::sync::Arc::new(move |line| drop(lines.lock().unwrap().send(line))));
    let spec = WorldSpec { spares: 1, respawn: true, output, ..launch(2, "member") };
    let (tell, told) = channel();
    let world = World::spawn(spec, move |event, _| drop(tell.send(event.clone()))).unwrap();
    let server = world.server();
    server.wait_until(LONG, |s| s.is_steady && s.spares == 1).unwrap();
    let before = world.pid_of(Rank(1)).unwrap();
    assert_eq!(world.kill_rank(Rank(1), Signal::Kill).unwrap(), before);
    let seen = server.wait_event(0, LONG, lost).unwrap();
    assert!(matches!(&seen.event, WorldEvent::Lost(l) if l.cause == "signal 9 (SIGKILL)"), "{seen:?}");
    assert_eq!(world.wait_within(LONG), Some(0));
    assert!(world.children().is_empty() && world.kill(before, Signal::Kill).is_err());
    drop(world);
    let told: Vec<WorldEvent> = told.iter().collect();
    assert_eq!(told.iter().filter(|e| lost(e)).count(), 1, "who goes after the end is not lost: {told:?}");
    let mut labels: Vec<_> = heard.iter().filter(|l| l.text == "role member Tied").map(|l| l.label).collect();
    labels.sort();
    // The second spare may be told that the run is over before it has said anything.
    assert_eq!(labels[..3], ["r0", "r1", "spare 0"]);
}

#[test]
fn a_rank_that_fails_before_the_world_forms_ends_it_with_its_code() {
    let (lines, heard) = channel();
    let lines = std::sync::Mutex::new(lines);
    let script =
        "echo rank $PHALANX_RANK of $PHALANX_WORLD_SIZE; test $PHALANX_RANK = 0 && exec sleep 1000; exit 7";
    let mut spec = WorldSpec::new(2, rules(2), ["sh", "-c", script].map(Into::into).to_vec());
    spec.output = Output::Pipe(std::sync::Arc::new(move |line| drop(lines.lock().unwrap().send(line))));
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait_within(LONG), Some(7));
    drop(world);
    let said: Vec<String> = heard.iter().filter(|l| l.label == "r1").map(|l| l.text).collect();
    assert_eq!(said, ["rank 1 of 2"]);
    let missing = World::spawn(WorldSpec::new(1, rules(1), vec!["/no/such/program".into()]), |_, _| {});
    assert!(missing.unwrap_err().to_string().starts_with("/no/such/program cannot be started"));
}

#[test]
fn a_dropped_world_leaves_no_child_behind() {
    let spec = WorldSpec::new(3, rules(3), ["sleep", "1000"].map(Into::into).to_vec());
    let world = World::spawn(spec, |_, _| {}).unwrap();
    let pids: Vec<u32> = world.children().into_iter().map(|(pid, _)| pid).collect();
    assert_eq!(pids.len(), 3);
    drop(world);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is still there");
    }
}

#[test]
fn children_die_with_a_killed_launcher() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(this_test("a_launched_child_plays_its_role").into_iter().skip(1));
    let mut launcher = command.env(ROLE, "launcher").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(launcher.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("role tied Tied") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child never said it was tied");
    }
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    // The pipe ends when nobody holds it any more, the child included.
    out.read_to_end(&mut Vec::new()).unwrap();
}
