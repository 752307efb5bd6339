//! A data link that breaks between two ranks which both live on: their sockets are aborted under them.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/talking.rs"]
mod talking;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::channel;

use phalanx::auth::JobKey;
use phalanx::control::{MemoryStore, Server, ServerConfig};
use phalanx::core::coordinator::WorldEvent;
use phalanx::core::ids::Rank;
use phalanx::core::policy::{Policy, Rules};
use rustix::net::{SocketAddrAny, connect_unspec, getpeername, getsockname};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use talking::{LONG, PHALANX, Talking, wait_all, wait_line};

/// Breaks of the same link before it must have been given up.
const BREAKS_MAX: usize = 20;

/// Aborts the connections of a process that come from or lead to one of these ports, as a network does that forgets
/// them: what was sent and not read is lost. Gives their number.
fn abort_connections(process: &Talking, ports: &BTreeSet<u16>) -> std::io::Result<usize> {
    let opened = pidfd_open(Pid::from_child(&process.0), PidfdFlags::empty())?;
    let port = |name: SocketAddrAny| SocketAddr::try_from(name).ok().map(|name| name.port());
    let mut aborted = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/fd", process.0.id()))? {
        let number = entry?.file_name().to_string_lossy().parse().unwrap();
        let socket = match pidfd_getfd(&opened, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            // Closed since it was listed.
            Err(rustix::io::Errno::BADF) => continue,
            Err(cause) => return Err(cause.into()),
        };
        // What is no socket, or a listener, has no peer.
        let Ok(Some(peer)) = getpeername(&socket) else { continue };
        let ends = [port(peer), getsockname(&socket).ok().and_then(port)];
        if ends.into_iter().flatten().any(|port| ports.contains(&port)) {
            connect_unspec(&socket)?;
            aborted += 1;
        }
    }
    Ok(aborted)
}

/// Whether a line tells of an op that was complete in this epoch or a later one.
fn is_done_in(line: &str, epoch: u64) -> bool {
    let told = line.strip_prefix("disturbed ").and_then(|l| l.split_once(" epoch=")).map(|(_, rest)| rest);
    told.is_some_and(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap() >= epoch)
}

#[test]
fn links_that_break_between_living_ranks_are_repaired_in_place_and_given_up_when_they_go_on_breaking() {
    let key = JobKey::random().unwrap();
    let store = Box::new(MemoryStore::default());
    let rules = Rules::new(2, Policy::Replace);
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), key: key.clone(), rules, store };
    let server = Server::start(config, |_, _| {}).unwrap();
    let (tell, said) = channel();
    let place = (server.address().to_string(), key.to_hex());
    let start = |label, rank| {
        let mut command = Command::new(PHALANX);
        command.env("PHALANX_TRANSPORT", "tcp");
        Talking::member(command, (&place.0, &place.1), label, rank, &tell)
    };
    let ranks = [start("r0", Some(0)), start("r1", Some(1))];
    let _spare = start("spare", None);
    let whole = server.wait_until(LONG, |s| s.epoch.0 > 0 && s.is_steady && s.spares == 1);
    let members = whole.expect("a world with a spare").view.members;
    let ports = members.iter().filter_map(|m| m.tcp.map(|at| at.port())).collect();
    wait_all(&said, &["r0", "r1"], |line| line.starts_with("progress"));
    let mut repairs = 0;
    let loss = loop {
        assert!(repairs < BREAKS_MAX, "never given up");
        let from = server.events_seen();
        match abort_connections(&ranks[repairs % 2], &ports) {
            Ok(aborted) => assert!(aborted > 0, "no link"),
            Err(why) => {
                eprintln!("skipped because sockets of a child cannot be taken here: {why}");
                return;
            }
        }
        let decided = server.wait_event(from, LONG, |e| matches!(e, WorldEvent::Decided(_)));
        let Some(WorldEvent::Decided(decision)) = decided.map(|seen| seen.event) else {
            panic!("a broken link and no fence");
        };
        if let Some(loss) = decision.losses.first() {
            break loss.clone();
        }
        repairs += 1;
        let epoch = decision.view.epoch.0;
        wait_all(&said, &["r0", "r1"], |line| is_done_in(line, epoch));
    };
    assert!(repairs >= 2, "given up after {repairs} repairs");
    assert!(loss.rank == Rank(1) && loss.cause.contains("its link with r0 broke again"), "{loss:?}");
    wait_line(&said, |label, line| {
        label == "r1" && line.starts_with("ended") && line.contains("how=evicted")
    });
    wait_all(&said, &["r0", "spare"], |line| line.starts_with("progress"));
}
