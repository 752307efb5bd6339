//! Moves bytes between members, and keeps the fence.
//!
//! A link is one direction between two members: a short in-order queue of slots, each a [`Header`] and at most
//! [`SLOT_BYTES`](phalanx_core::units::SLOT_BYTES) of payload. The sender opens it at its first message. No method
//! blocks; the holder of the progress token is the only caller.

pub mod mux;
pub mod shm;
pub mod tcp;

use phalanx_core::ids::{Epoch, MemberId};
use phalanx_core::wire::Header;

use crate::device::Span;

/// Where a member can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The member.
    pub member: MemberId,
    /// Same value: same host, so shared memory reaches it.
    pub host: u64,
    /// Its TCP data listener.
    pub tcp: Option<std::net::SocketAddr>,
    /// Name of its Unix socket for shared memory (abstract namespace).
    pub shm: Option<String>,
}

/// A whole message that waits at the receiving end of a link.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its header; the epoch is the open one.
    pub header: Header,
    /// Its payload, valid until `consume`.
    pub payload: Span,
}

/// Something a transport noticed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// The link to or from this member broke: evidence for the coordinator, not a verdict.
    Fault {
        /// The member at the other end.
        member: MemberId,
        /// What was seen, for the error message.
        cause: String,
    },
}

/// The contract of every transport; `tests/transport_contract.rs` is its specification in code.
///
/// Fence: a message is handed out only if its epoch is the open one. Older ones are dropped and counted; newer ones
/// stay where they are until `open` reaches their epoch. After `revoke(dead)` returns, nothing more from the dead is
/// ever handed out, and no byte of theirs lands in memory that is read.
pub trait Transport {
    /// Starts `epoch` with these peers (this member excluded). Links to members in both the old and the new table
    /// stay open; queued messages of the old epoch may still travel and are dropped by the receiver. Links to
    /// members that are no longer in the table are revoked.
    fn open(&mut self, epoch: Epoch, peers: &[Peer]);

    /// Shuts these members out for good; their ids are refused from now on, also as incoming connections.
    fn revoke(&mut self, dead: &[MemberId]);

    /// The next whole message on the link from `from`, if there is one. Repeated calls give the same message.
    fn peek(&mut self, from: MemberId) -> Option<Arrival>;

    /// Gives the slot of the message last peeked back to the sender.
    fn consume(&mut self, from: MemberId);

    /// A slot with room for `payload_bytes` on the link to `to`; `None` if all are in use or the link is not up yet
    /// (offer again after `progress`). Valid until `commit`. A second `reserve` without `commit` gives the same slot.
    fn reserve(&mut self, to: MemberId, payload_bytes: usize) -> Option<Span>;

    /// Sends the reserved slot with this header (`payload_bytes` as reserved).
    fn commit(&mut self, to: MemberId, header: &Header);

    /// Sends `payload` as it lies; false: no room, nothing was taken. The memory is free again on return.
    fn post(&mut self, to: MemberId, header: &Header, payload: Span) -> bool {
        match self.reserve(to, payload.len()) {
            Some(slot) => {
                slot.copy_from(payload);
                self.commit(to, header);
                true
            }
            None => false,
        }
    }

    /// Tells the time, in microseconds of any steady clock; before `progress`, where a transport has time limits.
    fn tick(&mut self, now_us: u64) {
        let _ = now_us;
    }

    /// Moves what can be moved: accepts, connects, reads, writes. Appends what was noticed.
    fn progress(&mut self, events: &mut Vec<LinkEvent>);

    /// Called before the driver parks. Makes the next arrival, freed slot or connection wake it. False: something is
    /// ready already, do not park.
    fn arm(&mut self) -> bool;

    /// Called after the driver woke.
    fn disarm(&mut self);

    /// Messages dropped because their epoch was over.
    fn stale(&self) -> u64;

    /// Whether everything committed to `to` has left this process (shared memory: is in the segment).
    fn flushed(&mut self, to: MemberId) -> bool;
}
