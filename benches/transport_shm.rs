//! Latency and bandwidth of the shared-memory transport between two processes.
//!
//! `cargo bench --bench transport_shm` prints one line per figure: the one-way time of an 8-byte message (half a
//! round trip, both ends spinning; both ends parked), the time per streamed small message, and decimal gigabytes a
//! second of 256 KiB messages that the sender copies in and the receiver copies out. Beside it, as the roof, a plain
//! copy of the same size within one thread.

#![allow(clippy::unwrap_used, reason = "a failed step of a benchmark ends it")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::auth::JobKey;
use phalanx::core::ids::{Attempt, ChunkId, CommId, Epoch, MemberId, OpId, OpSeq};
use phalanx::core::units::SLOT_BYTES;
use phalanx::core::wire::{Header, Kind};
use phalanx::device::Block;
use phalanx::transport::shm::{ShmTransport, prove_key};
use phalanx::transport::{Peer, Transport};

const PARENT: MemberId = MemberId(1);
const CHILD: MemberId = MemberId(2);
const ADDRESS: &str = "PHALANX_BENCH_SHM_PARENT";
const ROUNDS: usize = 100_000;
const PARKED_ROUNDS: usize = 20_000;
const SMALL_MESSAGES: usize = 1_000_000;
const LARGE_MESSAGES: usize = 20_000;

/// How an end waits.
#[derive(Clone, Copy)]
enum Wait {
    Spin,
    Park,
}

struct End {
    transport: ShmTransport,
    poll: mio::Poll,
    peer: MemberId,
    memory: Block,
}

impl End {
    fn new(me: MemberId, peer: MemberId) -> Self {
        let poll = mio::Poll::new().unwrap();
        let prove = prove_key(JobKey::from_bytes([7; 32]), me);
        let registry = poll.registry().try_clone().unwrap();
        let transport = ShmTransport::new(me, 1, prove, registry, 0).unwrap();
        Self { transport, poll, peer, memory: Block::zeroed(SLOT_BYTES) }
    }

    fn open(&mut self, address: String) {
        let peer = Peer { member: self.peer, host: 1, tcp: None, shm: Some(address) };
        self.transport.open(Epoch(1), &[peer]);
    }

    fn turn(&mut self, wait: Wait) {
        let mut events = Vec::new();
        self.transport.progress(&mut events);
        assert!(events.is_empty(), "{events:?}");
        match wait {
            // Two ends may share one core.
            Wait::Spin => std::thread::yield_now(),
            Wait::Park => {
                if self.transport.arm() {
                    self.poll.poll(&mut mio::Events::with_capacity(8), None).unwrap();
                    self.transport.disarm();
                }
            }
        }
    }

    fn send(&mut self, bytes: usize, wait: Wait) {
        let header = Header {
            kind: Kind::Partial,
            op: OpId { comm: CommId(0), seq: OpSeq(0) },
            attempt: Attempt(0),
            epoch: Epoch(1),
            chunk: ChunkId(0),
            signature: 0,
            payload_bytes: bytes as u32,
            stable: OpSeq(0),
            checksum: 0,
        };
        let payload = self.memory.span().part(0, bytes);
        while !self.transport.post(self.peer, &header, payload) {
            self.turn(wait);
        }
    }

    fn receive(&mut self, wait: Wait) {
        // A driver spins a little before it does anything dearer.
        let mut spins = 0;
        let arrival = loop {
            if let Some(arrival) = self.transport.peek(self.peer) {
                break arrival;
            }
            spins += 1;
            if matches!(wait, Wait::Spin) && spins % 1000 != 0 {
                std::hint::spin_loop()
            } else {
                self.turn(wait)
            }
        };
        self.memory.span().part(0, arrival.payload.len()).copy_from(arrival.payload);
        self.transport.consume(self.peer);
    }

    fn ping(&mut self, rounds: usize, wait: Wait) -> Vec<Duration> {
        (0..rounds)
            .map(|_| {
                let start = Instant::now();
                self.send(8, wait);
                self.receive(wait);
                start.elapsed()
            })
            .collect()
    }

    fn pong(&mut self, rounds: usize, wait: Wait) {
        for _ in 0..rounds {
            self.receive(wait);
            self.send(8, wait);
        }
    }
}

fn report(name: &str, mut round_trips: Vec<Duration>) {
    round_trips.sort_unstable();
    let one_way_ns = |part: f64| round_trips[(round_trips.len() as f64 * part) as usize].as_nanos() / 2;
    println!("{name:24} one way p50 {} ns, p99 {} ns", one_way_ns(0.5), one_way_ns(0.99));
}

fn stream(end: &mut End, messages: usize, bytes: usize) -> Duration {
    let start = Instant::now();
    (0..messages).for_each(|_| end.send(bytes, Wait::Spin));
    end.receive(Wait::Spin);
    start.elapsed()
}

fn sink(end: &mut End, messages: usize) {
    (0..messages).for_each(|_| end.receive(Wait::Spin));
    end.send(0, Wait::Spin);
}

fn child(address: String) {
    let mut end = End::new(CHILD, PARENT);
    end.open(address);
    println!("{}", end.transport.address());
    end.pong(ROUNDS, Wait::Spin);
    end.pong(PARKED_ROUNDS, Wait::Park);
    sink(&mut end, SMALL_MESSAGES);
    sink(&mut end, LARGE_MESSAGES);
    // Leaves after the parent.
    end.receive(Wait::Spin);
}

fn main() {
    if let Ok(address) = std::env::var(ADDRESS) {
        return child(address);
    }
    let mut end = End::new(PARENT, CHILD);
    let mut other = Command::new(std::env::current_exe().unwrap())
        .env(ADDRESS, end.transport.address())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut address).unwrap();
    end.open(address.trim_end().to_owned());
    report("8 B, spinning", end.ping(ROUNDS, Wait::Spin));
    report("8 B, parked", end.ping(PARKED_ROUNDS, Wait::Park));
    let took = stream(&mut end, SMALL_MESSAGES, 8);
    println!("{:24} {:.0} ns a message", "8 B, streamed", took.as_nanos() as f64 / SMALL_MESSAGES as f64);
    let took = stream(&mut end, LARGE_MESSAGES, SLOT_BYTES);
    let gb_per_s = |took: Duration| (LARGE_MESSAGES * SLOT_BYTES) as f64 / took.as_secs_f64() / 1e9;
    println!("{:24} {:.2} GB/s", "256 KiB, streamed", gb_per_s(took));
    end.send(0, Wait::Spin);
    other.wait().unwrap();

    let (mut source, start) = (Block::zeroed(SLOT_BYTES * 4), Instant::now());
    for n in 0..LARGE_MESSAGES {
        let slot = source.span().part(n % 4 * SLOT_BYTES, SLOT_BYTES);
        std::hint::black_box(end.memory.span()).copy_from(std::hint::black_box(slot));
    }
    println!("{:24} {:.2} GB/s", "256 KiB, one plain copy", gb_per_s(start.elapsed()));
}
