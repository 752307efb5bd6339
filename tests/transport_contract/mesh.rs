//! Members of one process that talk to each other over the transport under test.

use std::time::{Duration, Instant};

use phalanx::core::ids::{Attempt, OpSeq};
use phalanx::core::ids::{ChunkId, Epoch, MemberId, OpId};
use phalanx::core::wire::{Header, Kind};
use phalanx::device::Block;
use phalanx::transport::{LinkEvent, Peer, Transport};

/// Generous: only a hang takes that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One member: a transport and what its driver parks on.
pub trait Seat: Send {
    /// The transport.
    fn transport(&mut self) -> &mut dyn Transport;
    /// Its line in the table.
    fn peer(&self) -> Peer;
    /// Parks until the armed transport wakes it; false: it took `timeout`.
    fn park(&mut self, timeout: Duration) -> bool;
}

/// Makes members that can reach each other.
pub trait World: Default {
    /// A member of the job.
    fn seat(&self, member: MemberId) -> Box<dyn Seat>;
    /// A process that claims to be `member` without the job's key; an error says why there is no such thing here.
    fn impostor(&self, member: MemberId) -> Result<Box<dyn Seat>, &'static str>;
    /// Why this machine has no such world, if it has none.
    fn missing(&self) -> Option<String> {
        None
    }
    /// Whether the transport itself notices that a member of the same process was dropped.
    fn notices_death(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Some members with the events they saw.
pub struct Mesh {
    pub seats: Vec<Box<dyn Seat>>,
    pub events: Vec<Vec<LinkEvent>>,
    pub peers: Vec<Peer>,
}

impl Mesh {
    /// `n` members, `m1` to `mn`, in epoch 1.
    pub fn new(world: &impl World, n: usize) -> Self {
        let mut mesh = Self::of((1..=n as u64).map(|m| world.seat(MemberId(m))).collect());
        (0..n).for_each(|i| mesh.open(i, 1));
        mesh
    }

    /// These members, not opened.
    pub fn of(seats: Vec<Box<dyn Seat>>) -> Self {
        let peers = seats.iter().map(|seat| seat.peer()).collect();
        Self { events: vec![Vec::new(); seats.len()], seats, peers }
    }

    pub fn at(&mut self, i: usize) -> &mut dyn Transport {
        self.seats[i].transport()
    }

    pub fn member(&self, i: usize) -> MemberId {
        self.peers[i].member
    }

    /// Opens `epoch` at member `i` with all in the table.
    pub fn open(&mut self, i: usize, epoch: u64) {
        let peers = self.peers.clone();
        self.open_with(i, epoch, &peers);
    }

    pub fn open_with(&mut self, i: usize, epoch: u64, peers: &[Peer]) {
        let me = self.member(i);
        let peers: Vec<Peer> = peers.iter().filter(|peer| peer.member != me).cloned().collect();
        self.at(i).open(Epoch(epoch), &peers);
    }

    /// One turn of every member.
    pub fn turn(&mut self) {
        for (seat, events) in self.seats.iter_mut().zip(&mut self.events) {
            seat.transport().progress(events);
        }
    }

    /// Turns until `done` says so.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "no end of waiting for: {what}; events {:?}", self.events);
            self.turn();
            std::thread::yield_now();
        }
    }

    /// Sends when there is room; by `reserve` and `commit` for even tags, by `post` for odd ones.
    #[track_caller]
    pub fn send(&mut self, from: usize, to: usize, message: &Message) {
        self.until("room to send", |mesh| mesh.try_send(from, to, message).then_some(()));
    }

    pub fn try_send(&mut self, from: usize, to: usize, message: &Message) -> bool {
        let to = self.member(to);
        offer(self.at(from), to, message)
    }

    /// The next message on a link; consumes it.
    #[track_caller]
    pub fn take(&mut self, at: usize, from: usize) -> Message {
        self.until("a message", |mesh| mesh.try_take(at, from))
    }

    pub fn try_take(&mut self, at: usize, from: usize) -> Option<Message> {
        let from = self.member(from);
        receive(self.at(at), from)
    }

    /// Turns until all that `from` committed to `to` has left, and then some, so that it can be looked for.
    #[track_caller]
    pub fn settle(&mut self, from: usize, to: usize) {
        let to = self.member(to);
        self.until("a flushed link", |mesh| mesh.at(from).flushed(to).then_some(()));
        (0..50).for_each(|_| self.turn());
    }
}

/// Offers a message once.
pub fn offer(transport: &mut dyn Transport, to: MemberId, message: &Message) -> bool {
    let payload = message.payload();
    if message.tag.is_multiple_of(2) {
        let Some(slot) = transport.reserve(to, payload.len()) else { return false };
        slot.write(&payload);
        transport.commit(to, &message.header());
        return true;
    }
    let mut block = Block::zeroed(payload.len());
    block.span().write(&payload);
    let taken = transport.post(to, &message.header(), block.span());
    // The memory is the caller's again: what happens to it now must not reach the receiver.
    block.span().write(&vec![0xee; payload.len()]);
    taken
}

/// Takes a message if there is one, and checks every byte of it.
pub fn receive(transport: &mut dyn Transport, from: MemberId) -> Option<Message> {
    let arrival = transport.peek(from)?;
    let again = transport.peek(from).expect("peek gives the same message again");
    assert_eq!((again.header, again.payload.start()), (arrival.header, arrival.payload.start()));
    let mut payload = vec![0; arrival.payload.len()];
    arrival.payload.read(&mut payload);
    transport.consume(from);
    let header = arrival.header;
    let message = Message { epoch: header.epoch.0, tag: header.chunk.0, bytes: payload.len() };
    assert_eq!(header, message.header(), "every field of the header");
    assert!(payload == message.payload(), "payload of {message:?}");
    Some(message)
}

/// A message whose header and payload follow from three numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub epoch: u64,
    pub tag: u32,
    pub bytes: usize,
}

impl Message {
    pub fn header(&self) -> Header {
        Header {
            kind: if self.tag.is_multiple_of(3) { Kind::Final } else { Kind::Partial },
            op: OpId { seq: OpSeq(u64::from(self.tag) * 7), ..OpId::default() },
            attempt: Attempt(self.tag % 5),
            epoch: Epoch(self.epoch),
            chunk: ChunkId(self.tag),
            signature: !self.tag,
            payload_bytes: u32::try_from(self.bytes).unwrap(),
            stable: OpSeq(self.epoch + 9),
            checksum: self.tag.rotate_left(9),
        }
    }

    fn payload(&self) -> Vec<u8> {
        let mut random = Random(u64::from(self.tag) << 20 ^ self.epoch ^ self.bytes as u64);
        let mut bytes = Vec::with_capacity(self.bytes + 8);
        while bytes.len() < self.bytes {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(self.bytes);
        bytes
    }
}

/// A seeded generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}
