//! Real ranks that are killed, stopped and continued, through the built `phalanx`.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/talking.rs"]
mod talking;

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;

use phalanx::auth::JobKey;
use phalanx::control::{MemoryStore, Server, ServerConfig};
use phalanx::core::coordinator::WorldEvent;
use phalanx::core::ids::Rank;
use phalanx::core::policy::{Policy, Rules};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use talking::{LONG, PHALANX, Talking, wait_all, wait_line};

fn chaos(options: &[&str]) -> (Output, String) {
    let output = Command::new(PHALANX).args(["chaos", "--json"]).args(options).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

/// The value of a number in the JSON object.
fn field(json: &str, name: &str) -> f64 {
    let rest = json.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {json}")).1;
    rest[..rest.find([',', '}']).unwrap()].parse().unwrap()
}

fn must_pass(options: &[&str], kills: f64) -> String {
    let (output, json) = chaos(options);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{options:?} ended with {:?}: {json}\n{errors}", output.status);
    assert_eq!(field(&json, "kills_in_flight"), kills, "{json}\n{errors}");
    for name in ["wrong", "hung", "survivor_errors"] {
        assert_eq!(field(&json, name), 0.0, "{name}: {json}\n{errors}");
    }
    assert!(field(&json, "ops") > 0.0, "{json}");
    json
}

#[test]
fn a_rank_killed_inside_an_all_reduce_is_replaced_over_shared_memory() {
    must_pass(&["--ranks", "3", "--kills", "3", "--bytes", "1M", "--transport", "shm"], 3.0);
}

#[test]
fn a_rank_killed_inside_an_all_reduce_is_replaced_over_tcp() {
    must_pass(&["--ranks", "3", "--kills", "3", "--bytes", "1M", "--transport", "tcp"], 3.0);
}

#[test]
fn a_rank_killed_inside_an_all_reduce_is_left_out_by_policy_shrink() {
    must_pass(&["--ranks", "3", "--kills", "1", "--bytes", "1M", "--policy", "shrink"], 1.0);
}

#[test]
fn a_rank_killed_inside_an_all_reduce_ends_it_for_all_by_policy_abort() {
    let json = must_pass(&["--ranks", "3", "--kills", "1", "--bytes", "1M", "--policy", "abort"], 1.0);
    assert!(field(&json, "aborted") >= 2.0, "both survivors get the typed error: {json}");
}

fn signal(process: &Talking, signal: Signal) {
    kill_process(Pid::from_child(&process.0), signal).unwrap();
}

#[test]
fn a_stopped_rank_is_replaced_and_learns_that_it_is_out() {
    let key = JobKey::random().unwrap();
    let rules = Rules { lease_ms: 400, ..Rules::new(3, Policy::Replace) };
    let store = Box::new(MemoryStore::default());
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), key: key.clone(), rules, store };
    let server = Server::start(config, |_, _| {}).unwrap();
    let (tell, said) = channel();
    let place = (server.address().to_string(), key.to_hex());
    let start =
        |label, rank| Talking::member(Command::new(PHALANX), (&place.0, &place.1), label, rank, &tell);
    let mut ranks = [start("r0", Some(0)), start("r1", Some(1)), start("r2", Some(2))];
    let _spare = start("spare", None);
    server.wait_until(LONG, |s| s.epoch.0 > 0 && s.is_steady && s.spares == 1).expect("a world with a spare");
    wait_line(&said, |label, line| label == "r1" && line.starts_with("progress"));
    let from = server.events_seen();
    signal(&ranks[1], Signal::STOP);
    let lost = server.wait_event(from, LONG, |e| matches!(e, WorldEvent::Lost(loss) if loss.rank == Rank(1)));
    lost.expect("the lease of the stopped rank ends");
    wait_all(&said, &["r0", "r2", "spare"], |line| {
        line.starts_with("disturbed") && !line.contains(" epoch=1 ")
    });
    signal(&ranks[1], Signal::CONT);
    let ended = wait_line(&said, |label, line| label == "r1" && line.starts_with("ended"));
    assert!(ended.contains("how=evicted") && ended.contains("out of the view"), "{ended}");
    assert!(!ranks[1].0.wait().unwrap().success());
    for label in ["r0", "r2", "spare"] {
        wait_line(&said, |l, line| l == label && line.starts_with("progress"));
    }
}

/// The children of all threads of a process.
fn children_of(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// Whether the process ends in time.
fn ends(process: &OwnedFd) -> bool {
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(process.as_fd(), rustix::event::PollFlags::IN)];
    let within = rustix::event::Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&within)).unwrap() == 1
}

#[test]
fn the_children_of_a_killed_launcher_end() {
    let mut launcher = Command::new(PHALANX)
        .args(["run", "-n", "2", "--spares", "1", "--", PHALANX, "chaos-rank", "--steps"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(launcher.stdout.take().unwrap()).lines();
    let mut on = [false; 2];
    while on != [true; 2] {
        let line = lines.next().expect("the world runs").unwrap();
        for (rank, on) in on.iter_mut().enumerate() {
            *on |= line.starts_with(&format!("[r{rank}] progress"));
        }
    }
    let children = children_of(launcher.id());
    assert_eq!(children.len(), 3, "two ranks and a spare");
    let open = |pid: &i32| pidfd_open(Pid::from_raw(*pid).unwrap(), PidfdFlags::empty()).unwrap();
    let processes: Vec<OwnedFd> = children.iter().map(open).collect();
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    for (process, pid) in processes.iter().zip(&children) {
        assert!(ends(process), "process {pid} outlives its launcher");
    }
}
