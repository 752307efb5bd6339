//! TCP links against a bare `TcpStream` between the same two threads, over the loopback interface, in the same run:
//! round trips of small messages, and a one-way stream of full slots. `cargo bench --bench transport_tcp`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::Instant;

use phalanx::auth::JobKey;
use phalanx::core::ids::{Attempt, ChunkId, Epoch, MemberId, OpId, OpSeq};
use phalanx::core::units::SLOT_BYTES;
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::{Header, Kind};
use phalanx::device::Block;
use phalanx::transport::tcp::{TcpConfig, TcpTransport};
use phalanx::transport::{Peer, Transport};

const ROUNDS: usize = 20_000;
const MESSAGES: usize = 8_000;
const REPEATS: usize = 5;

fn header(payload_bytes: usize) -> Header {
    Header {
        kind: Kind::Partial,
        op: OpId::default(),
        attempt: Attempt(0),
        epoch: Epoch(1),
        chunk: ChunkId(0),
        signature: 0,
        payload_bytes: payload_bytes as u32,
        stable: OpSeq(0),
        checksum: 0,
    }
}

/// One end of a link that spins.
struct End {
    transport: TcpTransport,
    peer: MemberId,
    block: Block,
    _poll: mio::Poll,
}

impl End {
    fn pair() -> [Self; 2] {
        let key = JobKey::from_bytes([1; 32]);
        let mut ends = [1, 2].map(|m| {
            let poll = mio::Poll::new().unwrap();
            let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let config = TcpConfig { me: MemberId(m), key: key.clone(), bind, ports: 0..=0, interface: None };
            let transport = TcpTransport::new(config, poll.registry(), 0).unwrap();
            Self { transport, peer: MemberId(3 - m), block: Block::zeroed(SLOT_BYTES), _poll: poll }
        });
        let addresses = ends.each_ref().map(|end| end.transport.address());
        for (i, end) in ends.iter_mut().enumerate() {
            let peer = Peer { member: end.peer, host: 0, tcp: Some(addresses[1 - i]), shm: None };
            end.transport.open(Epoch(1), &[peer]);
        }
        ends
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        self.transport.progress(&mut events);
        assert!(events.is_empty(), "{events:?}");
    }

    fn send(&mut self, bytes: usize) {
        let payload = self.block.span().part(0, bytes);
        while !self.transport.post(self.peer, &header(bytes), payload) {
            self.turn();
        }
    }

    /// Spins as a driver does: mostly on the link it waits for, now and then on everything.
    fn receive(&mut self) {
        let mut looks = 0u32;
        while self.transport.peek(self.peer).is_none() {
            looks += 1;
            if looks.is_multiple_of(16) {
                self.turn();
            }
        }
        self.transport.consume(self.peer);
    }
}

/// Seconds that `first` takes while `second` runs in another thread.
fn race(first: impl FnOnce() + Send, second: impl FnOnce() + Send) -> f64 {
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            second();
        });
        start.wait();
        let clock = Instant::now();
        first();
        clock.elapsed().as_secs_f64()
    })
}

fn bare_pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let b = listener.accept().unwrap().0;
    for stream in [&a, &b] {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    [a, b]
}

/// Reads exactly so many bytes, spinning.
fn read_all(stream: &mut TcpStream, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        if let Ok(got) = stream.read(bytes) {
            assert!(got > 0);
            bytes = &mut bytes[got..];
        }
    }
}

fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if let Ok(sent) = stream.write(bytes) {
            bytes = &bytes[sent..];
        }
    }
}

fn bare_round_trips(bytes: usize) -> f64 {
    let [mut a, mut b] = bare_pair();
    let (mut out, mut back) = (vec![0; HEADER_BYTES + bytes], vec![0; HEADER_BYTES + bytes]);
    let first = || {
        for _ in 0..ROUNDS {
            write_all(&mut a, &out);
            read_all(&mut a, &mut out);
        }
    };
    let second = || {
        for _ in 0..ROUNDS {
            read_all(&mut b, &mut back);
            write_all(&mut b, &back);
        }
    };
    race(first, second) / ROUNDS as f64
}

fn link_round_trips(bytes: usize) -> f64 {
    let [mut a, mut b] = End::pair();
    let mut rounds = |count: usize| {
        let first = || (0..count).for_each(|_| (a.send(bytes), a.receive()).1);
        let second = || (0..count).for_each(|_| (b.receive(), b.send(bytes)).1);
        race(first, second) / count as f64
    };
    rounds(100);
    rounds(ROUNDS)
}

fn bare_stream() -> f64 {
    let [mut a, mut b] = bare_pair();
    let out = vec![0; HEADER_BYTES + SLOT_BYTES];
    let mut target = vec![0; HEADER_BYTES + SLOT_BYTES];
    let first = || (0..MESSAGES).for_each(|_| read_all(&mut a, &mut target));
    let second = || (0..MESSAGES).for_each(|_| write_all(&mut b, &out));
    (MESSAGES * SLOT_BYTES) as f64 / race(first, second) / 1e9
}

fn link_stream() -> f64 {
    let [mut a, mut b] = End::pair();
    race(|| a.receive(), || b.send(0));
    let first = || (0..MESSAGES).for_each(|_| a.receive());
    let second = || {
        (0..MESSAGES).for_each(|_| b.send(SLOT_BYTES));
        while !b.transport.flushed(b.peer) {
            b.turn();
        }
    };
    (MESSAGES * SLOT_BYTES) as f64 / race(first, second) / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!("measure,payload_bytes,bare,link,ratio");
    for bytes in [0, 8, 1024, 16 * 1024] {
        // Alternating, so that a change of the machine's mood hits both alike.
        let (bare, link): (Vec<f64>, Vec<f64>) =
            (0..REPEATS).map(|_| (bare_round_trips(bytes) * 1e6, link_round_trips(bytes) * 1e6)).unzip();
        let (bare, link) = (median(bare), median(link));
        println!("round_trip_us,{bytes},{bare:.2},{link:.2},{:.3}", link / bare);
    }
    let (bare, link): (Vec<f64>, Vec<f64>) = (0..REPEATS).map(|_| (bare_stream(), link_stream())).unzip();
    let (bare, link) = (median(bare), median(link));
    println!("stream_gb_per_s,{SLOT_BYTES},{bare:.2},{link:.2},{:.3}", link / bare);
}
