//! From a connected socket to a link: who is there, then the memory, then silence.
//!
//! | stage     | the connecting end (sender)                  | the accepting end (receiver)                  |
//! |-----------|----------------------------------------------|-----------------------------------------------|
//! | `Proving` | steps its [`Prove`]; then sends the offer    | steps its [`Prove`]; then waits for the offer |
//! | `Sealing` | the answer brings the receiver's bell: `Up`  | the offer brings segment and bell: answer, `Up` |
//! | `Up`      | nothing more is said; the end of the socket is the end of the member                         ||

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use phalanx_core::ids::MemberId;

use super::raw::{CELLS, INLINE_BYTES, SEGMENT_BYTES, Segment};
use super::ring::{ReceiveRing, SendRing};
use super::socket::{self, Heard};
use crate::sync::Doorbell;

/// One end of a mutual proof of identity, without I/O: packets in, packets out. Either end may speak first.
///
/// It is stepped before anything else is exchanged; no descriptor and no memory of an unproven peer is touched.
pub trait Prove: Send {
    /// Takes a packet from the other end.
    ///
    /// # Errors
    /// Why the other end is refused; nothing more is exchanged with it.
    fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// The next packet to the other end, at most 4096 bytes and not empty.
    fn poll_bytes(&mut self) -> Option<Vec<u8>>;

    /// Who is at the other end, once that is proven and nothing more from there is needed.
    fn peer(&self) -> Option<MemberId>;
}

/// Which end of a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The end that connects to this member.
    Connect(MemberId),
    /// The end that accepts, and learns from whom.
    Accept,
}

/// Makes a fresh proof for each connection, or says why it cannot.
pub type ProveFactory = Box<dyn FnMut(Side) -> Result<Box<dyn Prove>, String> + Send>;

/// First packet after the proof, with segment and the sender's bell: mark, then the sizes both must agree on.
const OFFER_MARK: &[u8; 8] = b"PHXshm\x00\x01";
/// The reply, with the receiver's bell.
const ANSWER: &[u8; 8] = b"PHXshm\x01\x01";

fn offer_bytes() -> Vec<u8> {
    let mut bytes = OFFER_MARK.to_vec();
    for size in [SEGMENT_BYTES, CELLS, INLINE_BYTES] {
        bytes.extend((size as u64).to_le_bytes());
    }
    bytes
}

enum Stage {
    Proving(Box<dyn Prove>),
    Sealing(Option<Segment>),
    Up,
}

/// What a step on a connection led to.
pub enum Stepped {
    /// Nothing is there to be read; wait.
    Idle,
    /// Something was read; there may be more.
    Busy,
    /// The link to the peer is up.
    Sends(SendRing, Doorbell),
    /// The link from this member is up.
    Receives(MemberId, ReceiveRing, Doorbell),
}

/// A socket on its way to be a link, and later the sign of life of its other end.
pub struct Connection {
    socket: OwnedFd,
    side: Side,
    /// The member dialed, or the one that proved itself.
    peer: Option<MemberId>,
    stage: Stage,
}

impl Connection {
    /// Begins a connection; `prove` is its end for `side`.
    ///
    /// # Errors
    /// When the first packet cannot be sent.
    pub fn begin(socket: OwnedFd, side: Side, prove: Box<dyn Prove>) -> Result<Self, String> {
        let peer = match side {
            Side::Connect(to) => Some(to),
            Side::Accept => None,
        };
        let mut connection = Self { socket, side, peer, stage: Stage::Proving(prove) };
        connection.say_proof()?;
        Ok(connection)
    }

    /// The member dialed or proven.
    pub const fn peer(&self) -> Option<MemberId> {
        self.peer
    }

    /// Whether this is a dialed connection that is not a link yet.
    pub const fn is_dialing(&self) -> bool {
        matches!(self.side, Side::Connect(_)) && !matches!(self.stage, Stage::Up)
    }

    /// The socket, to be watched.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads one packet and acts on it. Members in `refused` get nowhere.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub fn step(&mut self, refused: &BTreeSet<MemberId>, bell: &Doorbell) -> Result<Stepped, String> {
        let heard = socket::receive(self.socket.as_fd()).map_err(|e| format!("its socket broke: {e}"))?;
        match heard {
            Heard::Nothing => Ok(Stepped::Idle),
            Heard::Closed => Err("it closed the connection: its process ended or shut us out".to_owned()),
            Heard::Packet(bytes, descriptors) => match &mut self.stage {
                // Whatever an unproven peer attached is closed unseen.
                Stage::Proving(prove) => {
                    prove.handle_bytes(&bytes)?;
                    self.say_proof()?;
                    self.conclude_proof(refused, bell)
                }
                Stage::Sealing(segment) => {
                    let segment = segment.take();
                    self.stage = Stage::Up;
                    self.seal(segment, &bytes, descriptors, bell)
                }
                Stage::Up => Err("it spoke when there is nothing to say; same version?".to_owned()),
            },
        }
    }

    fn say_proof(&mut self) -> Result<(), String> {
        if let Stage::Proving(prove) = &mut self.stage {
            while let Some(bytes) = prove.poll_bytes() {
                socket::send(self.socket.as_fd(), &bytes, &[]).map_err(|e| format!("handshake: {e}"))?;
            }
        }
        Ok(())
    }

    fn conclude_proof(&mut self, refused: &BTreeSet<MemberId>, bell: &Doorbell) -> Result<Stepped, String> {
        let Stage::Proving(prove) = &self.stage else { return Ok(Stepped::Busy) };
        let Some(proven) = prove.peer() else { return Ok(Stepped::Busy) };
        if refused.contains(&proven) {
            return Err(format!("{proven} was shut out and came back"));
        }
        match self.side {
            Side::Connect(dialed) if dialed != proven => {
                return Err(format!("{proven} answers at the address of {dialed}"));
            }
            Side::Connect(_) => {
                let (segment, file) = Segment::create().map_err(|e| format!("no segment: {e}"))?;
                socket::send(self.socket.as_fd(), &offer_bytes(), &[file.as_fd(), bell.as_fd()])
                    .map_err(|e| format!("offer of a segment: {e}"))?;
                self.stage = Stage::Sealing(Some(segment));
            }
            Side::Accept => {
                self.peer = Some(proven);
                self.stage = Stage::Sealing(None);
            }
        }
        Ok(Stepped::Busy)
    }

    /// `segment` is ours at the connecting end, none at the accepting end.
    fn seal(
        &self,
        segment: Option<Segment>,
        bytes: &[u8],
        descriptors: Vec<OwnedFd>,
        bell: &Doorbell,
    ) -> Result<Stepped, String> {
        let mut descriptors = descriptors.into_iter();
        match (segment, self.peer, descriptors.next(), descriptors.next()) {
            (Some(ours), _, Some(theirs), None) if bytes == ANSWER => {
                Ok(Stepped::Sends(SendRing::new(ours), Doorbell::from_fd(theirs)))
            }
            (None, Some(peer), Some(file), Some(theirs)) if bytes == offer_bytes() => {
                let segment = Segment::map(file.as_fd()).map_err(|e| e.to_string())?;
                socket::send(self.socket.as_fd(), ANSWER, &[bell.as_fd()])
                    .map_err(|e| format!("answer to an offer: {e}"))?;
                Ok(Stepped::Receives(peer, ReceiveRing::new(segment), Doorbell::from_fd(theirs)))
            }
            (Some(_), ..) => Err("its answer to our offer is none; same version?".to_owned()),
            (None, ..) => Err("its offer has other sizes or lacks a descriptor; same version?".to_owned()),
        }
    }
}
