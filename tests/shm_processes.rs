//! Shared memory between real processes: each test starts itself again as the other member.
//!
//! The child runs the same test function and finds the parent's address in its environment.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::auth::JobKey;
use phalanx::core::ids::{Attempt, ChunkId, CommId, Epoch, MemberId, OpId, OpSeq};
use phalanx::core::units::SLOT_BYTES;
use phalanx::core::wire::{Header, Kind};
use phalanx::transport::shm::{ShmTransport, prove_key};
use phalanx::transport::{LinkEvent, Peer, Transport};

const PARENT: MemberId = MemberId(1);
const CHILD: MemberId = MemberId(2);
/// Names the parent's socket to the child.
const ADDRESS: &str = "PHALANX_TEST_SHM_PARENT";
/// Long enough for any machine; a test that waits so long has failed.
const DEADLINE: Duration = Duration::from_secs(120);

/// A member of epoch 1 with one other.
struct End {
    transport: ShmTransport,
    poll: mio::Poll,
    faults: Vec<LinkEvent>,
    peer: MemberId,
    start: Instant,
}

impl End {
    fn new(me: MemberId, peer: MemberId) -> Self {
        let poll = mio::Poll::new().unwrap();
        let prove = prove_key(JobKey::from_bytes([7; 32]), me);
        let registry = poll.registry().try_clone().unwrap();
        let transport = ShmTransport::new(me, 1, prove, registry, 0).unwrap();
        Self { transport, poll, faults: Vec::new(), peer, start: Instant::now() }
    }

    fn open(&mut self, address: String) {
        let peer = Peer { member: self.peer, host: 1, tcp: None, shm: Some(address) };
        self.transport.open(Epoch(1), &[peer]);
    }

    /// One turn, and sleep if there is nothing to do.
    fn turn(&mut self) {
        self.transport.progress(&mut self.faults);
        if self.faults.is_empty() && self.transport.arm() {
            self.poll.poll(&mut mio::Events::with_capacity(8), Some(DEADLINE)).unwrap();
            self.transport.disarm();
            self.transport.progress(&mut self.faults);
        }
        assert!(self.start.elapsed() < DEADLINE, "nothing happened");
    }

    fn send(&mut self, header: &Header, bytes: &[u8]) {
        loop {
            if let Some(slot) = self.transport.reserve(self.peer, bytes.len()) {
                slot.write(bytes);
                return self.transport.commit(self.peer, header);
            }
            assert!(self.faults.is_empty(), "{:?}", self.faults);
            self.turn();
        }
    }

    /// The next message; `None` after a fault, when nothing more is there.
    fn receive(&mut self, bytes: &mut Vec<u8>) -> Option<Header> {
        loop {
            if let Some(arrival) = self.transport.peek(self.peer) {
                bytes.resize(arrival.payload.len(), 0);
                arrival.payload.read(bytes);
                self.transport.consume(self.peer);
                return Some(arrival.header);
            }
            if !self.faults.is_empty() {
                return None;
            }
            self.turn();
        }
    }
}

/// A small generator, the same in both processes.
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 20
    }
}

/// Message `n` of the stream of test messages: mostly small, some large, now and then a whole slot.
fn message(n: u32, bytes: &mut Vec<u8>) -> Header {
    let mut seed = Seed(u64::from(n));
    let len = match seed.next() % 1000 {
        0 => SLOT_BYTES as u64,
        1..50 => seed.next() % SLOT_BYTES as u64 / 4,
        50..300 => 960 + seed.next() % 128,
        _ => seed.next() % 300,
    };
    bytes.clear();
    bytes.resize(len as usize, 0);
    for word in bytes.chunks_mut(8) {
        let random = seed.next().to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
    Header {
        kind: Kind::Partial,
        op: OpId { comm: CommId(0), seq: OpSeq(u64::from(n)) },
        attempt: Attempt(0),
        epoch: Epoch(1),
        chunk: ChunkId(n),
        signature: 0,
        payload_bytes: len as u32,
        stable: OpSeq(0),
        checksum: 0,
    }
}

/// In the child: its end, connected to the parent's address.
fn child_end() -> Option<End> {
    let address = std::env::var(ADDRESS).ok()?;
    let mut end = End::new(CHILD, PARENT);
    end.open(address);
    println!("address={}", end.transport.address());
    Some(end)
}

/// Starts this binary again for the test `name` alone, and opens the epoch with it.
fn start_child(name: &str) -> (End, Child) {
    let mut end = End::new(PARENT, CHILD);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ADDRESS, end.transport.address())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address =
        lines.find_map(|line| line.unwrap().split_once("address=").map(|(_, a)| a.to_owned())).unwrap();
    // The rest of its output is of no interest, but must go somewhere.
    std::thread::spawn(move || lines.for_each(drop));
    end.open(address);
    (end, child)
}

#[test]
fn a_hundred_thousand_messages_of_random_sizes_arrive_whole_and_in_order() {
    const MESSAGES: u32 = 100_000;
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    if let Some(mut end) = child_end() {
        for n in 0..MESSAGES {
            let header = message(n, &mut expected);
            end.send(&header, &expected);
        }
        // Stays until the parent has all, and hears so.
        assert_eq!(end.receive(&mut found).map(|h| h.chunk), Some(ChunkId(MESSAGES)));
        return;
    }
    let (mut end, mut child) =
        start_child("a_hundred_thousand_messages_of_random_sizes_arrive_whole_and_in_order");
    for n in 0..MESSAGES {
        let header = message(n, &mut expected);
        assert_eq!(end.receive(&mut found), Some(header), "message {n}");
        assert!(found == expected, "message {n} of {} bytes is corrupt", expected.len());
    }
    assert!(end.faults.is_empty());
    let done = Header { payload_bytes: 0, ..message(MESSAGES, &mut expected) };
    end.send(&done, &[]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_member_killed_amid_its_stream_is_a_fault_and_corrupts_nothing() {
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    if let Some(mut end) = child_end() {
        for n in 0.. {
            let header = message(n, &mut expected);
            end.send(&header, &expected);
        }
    }
    for kill_at in [1, 100, 5_000] {
        let (mut end, mut child) =
            start_child("a_member_killed_amid_its_stream_is_a_fault_and_corrupts_nothing");
        let mut received = 0;
        while let Some(header) = end.receive(&mut found) {
            assert_eq!(header, message(received, &mut expected), "message {received}");
            assert!(found == expected, "message {received} is corrupt");
            received += 1;
            if received == kill_at {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(received >= kill_at);
        assert!(
            matches!(&end.faults[..], [LinkEvent::Fault { member: CHILD, .. }]),
            "{:?} after {received} messages",
            end.faults
        );
    }
}

#[test]
fn a_stopped_member_that_wakes_after_its_revocation_is_not_heard() {
    let mut found = Vec::new();
    if let Some(mut end) = child_end() {
        // Writes until it hears that it is out: as a zombie, into a segment that nobody maps any more.
        for n in 0.. {
            let header = message(n % 8, &mut found);
            match end.transport.reserve(PARENT, found.len()) {
                Some(slot) => {
                    slot.write(&found);
                    end.transport.commit(PARENT, &header);
                }
                None => end.turn(),
            }
            if !end.faults.is_empty() {
                return;
            }
        }
    }
    let (mut end, mut child) = start_child("a_stopped_member_that_wakes_after_its_revocation_is_not_heard");
    let pid = rustix::process::Pid::from_child(&child);
    assert!(end.receive(&mut found).is_some());
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    end.transport.revoke(&[CHILD]);
    assert!(end.transport.peek(CHILD).is_none());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(child.wait().unwrap().success(), "the zombie heard that it is out");
    end.transport.progress(&mut end.faults);
    assert!(end.transport.peek(CHILD).is_none() && end.faults.is_empty());
    assert!(end.transport.reserve(CHILD, 8).is_none());
}
