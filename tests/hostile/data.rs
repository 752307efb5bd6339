//! A member that sends on its data links what no member sends.

use std::net::{SocketAddr, TcpStream};

use phalanx::auth::{JobKey, Purpose};
use phalanx::core::ids::{Attempt, ChunkId, CommId, Epoch, MemberId, OpId, OpSeq};
use phalanx::core::units::SLOT_BYTES;
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::{Header, Kind};
use phalanx::sim::random::Random;

use crate::insiders::NEVER;
use crate::line::{hello, prove, throw};
use crate::toll::Toll;

/// Messages of a burst.
const BURST: usize = 2048;

pub fn header(kind: Kind, epoch: Epoch, random: &mut Random) -> Header {
    Header {
        kind,
        op: OpId { comm: CommId(random.bits() as u32 | 1 << 31), seq: OpSeq(random.bits()) },
        attempt: Attempt(random.bits() as u32),
        epoch,
        chunk: ChunkId(random.bits() as u32),
        signature: random.bits() as u32,
        payload_bytes: 0,
        stable: OpSeq(random.bits()),
        checksum: 0,
    }
}

/// A proven data link to one member, in the name of another.
pub struct BadLink {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

impl BadLink {
    #[track_caller]
    pub fn open(to: SocketAddr, key: &JobKey, (from, receiver): (MemberId, MemberId)) -> Self {
        let proven = prove(to, key, hello(Purpose::DataTcp, from, receiver));
        Self { stream: proven.expect("who holds the key is let in").0, bytes: Vec::new() }
    }

    #[track_caller]
    fn send(&mut self) {
        assert!(throw(&mut self.stream, &self.bytes), "a member that sends whole messages was cut off");
        self.bytes.clear();
    }

    /// Messages of an epoch that is over, some with a payload.
    #[track_caller]
    pub fn outdated(&mut self, random: &mut Random, toll: &mut Toll) {
        let kinds = [Kind::Partial, Kind::Final, Kind::Confirm, Kind::Pause, Kind::Proceed];
        let mut header = header(random.pick(&kinds), Epoch(0), random);
        for one in 0..BURST {
            header.op.seq = OpSeq(random.bits());
            header.payload_bytes = if one % 256 == 0 { random.below(5000) as u32 } else { 0 };
            self.bytes.extend(header.to_wire());
            self.bytes.resize(self.bytes.len() + header.payload_bytes as usize, 0xdd);
        }
        self.send();
        toll.add("data: a message of an epoch that is over", BURST as u64);
    }

    /// The very same message again and again.
    #[track_caller]
    pub fn replayed(&mut self, random: &mut Random, toll: &mut Toll) {
        let header = header(Kind::Partial, Epoch(0), random).to_wire();
        (0..BURST).for_each(|_| self.bytes.extend(header));
        self.send();
        toll.add("data: a message replayed", BURST as u64);
    }

    /// Notes of the epoch in force about ops and communicators that nobody has.
    #[track_caller]
    pub fn notes(&mut self, epoch: Epoch, random: &mut Random, toll: &mut Toll) {
        for _ in 0..BURST {
            let kind = random.pick(&[Kind::Confirm, Kind::Pause, Kind::Proceed]);
            self.bytes.extend(header(kind, epoch, random).to_wire());
        }
        self.send();
        toll.add("data: a note about an op that nobody has", BURST as u64);
    }

    /// What is no message: the link ends.
    pub fn damaged(&mut self, random: &mut Random, toll: &mut Toll) {
        let mut bytes = header(Kind::Final, Epoch(NEVER), random).to_wire();
        let kind = match random.below(4) {
            0 => {
                bytes = std::array::from_fn(|_| random.bits() as u8);
                "data: random bytes"
            }
            1 => {
                bytes[random.below(4) as usize] ^= 1 << random.below(8);
                "data: another mark"
            }
            2 => {
                bytes[4] = random.between(5, 255) as u8;
                "data: a kind that there is not"
            }
            _ => {
                let announced = random.between(SLOT_BYTES as u64 + 1, u64::from(u32::MAX)) as u32;
                bytes[40..44].copy_from_slice(&announced.to_le_bytes());
                "data: a payload larger than a slot"
            }
        };
        throw(&mut self.stream, &bytes);
        toll.add(kind, 1);
    }

    /// A message cut short, and the end.
    pub fn cut(mut self, random: &mut Random, toll: &mut Toll) {
        let mut header = header(Kind::Final, Epoch(NEVER), random);
        header.payload_bytes = 1000;
        let all = [&header.to_wire()[..], &[0; 1000]].concat();
        throw(&mut self.stream, &all[..random.between(1, HEADER_BYTES as u64 + 999) as usize]);
        toll.add("data: a message cut short", 1);
    }
}
