//! Messages that came before the call they belong to, copied out of their slots so that others can pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use phalanx_core::ids::{CommId, MemberId};
use phalanx_core::units::LINK_SLOTS;
use phalanx_core::wire::Header;

use crate::device::{Block, Span};
use crate::transport::Arrival;

#[derive(Debug)]
struct Message {
    header: Header,
    block: Block,
}

/// What a sender of early messages is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    Pause,
    Proceed,
}

/// Early messages, by sender and communicator in the order in which they came.
#[derive(Debug)]
pub(super) struct Aside {
    queues: BTreeMap<(MemberId, CommId), VecDeque<Message>>,
    /// Memory that the messages of each sender take.
    bytes: BTreeMap<MemberId, usize>,
    /// Who was asked to pause what.
    pausing: BTreeSet<(MemberId, CommId)>,
    /// So many of one sender and communicator are enough.
    pause_at: usize,
}

/// Of one sender and communicator; what its link holds comes on top. A plan is proven free of deadlock where a sender
/// waits for a message that lies [`LINK_SLOTS`] places ahead: no pause may come before, nor last any longer.
const PAUSE_AT: usize = 2 * LINK_SLOTS;

/// Memory for the messages of one sender. What can be under way when it hears of a pause, in the kernel's buffers and
/// in slots, is less; a sender that goes on and on finds its link full instead.
const SENDER_BYTES_MAX: usize = 64 << 20;
/// What a message takes besides its payload.
const MESSAGE_BYTES: usize = 256;

impl Default for Aside {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), bytes: BTreeMap::new(), pausing: BTreeSet::new(), pause_at: PAUSE_AT }
    }
}

impl Aside {
    /// Asks for a pause at so many messages of a sender and communicator, [`LINK_SLOTS`] at least.
    pub(super) fn set_pause_at(&mut self, messages: usize) {
        self.pause_at = messages.max(LINK_SLOTS);
    }

    pub(super) fn clear(&mut self) {
        self.queues.clear();
        self.bytes.clear();
        self.pausing.clear();
    }

    /// The first message of a sender and communicator.
    pub(super) fn front(&mut self, from: MemberId, comm: CommId) -> Option<(Header, Span)> {
        let first = self.queues.get_mut(&(from, comm))?.front_mut()?;
        Some((first.header, first.block.span()))
    }

    /// Whether a sender was told to pause and has not, for far longer than it can take to hear of it: its messages stay
    /// on their link.
    pub(super) fn is_full(&self, from: MemberId) -> bool {
        self.bytes.get(&from).is_some_and(|bytes| *bytes >= SENDER_BYTES_MAX)
    }

    /// Copies a message. It is taken also after the pause: the sender may not have heard of it yet.
    pub(super) fn push(&mut self, from: MemberId, arrival: &Arrival) -> Tell {
        let mut block = Block::zeroed(arrival.payload.len());
        block.span().copy_from(arrival.payload);
        let key = (from, arrival.header.op.comm);
        *self.bytes.entry(from).or_default() += MESSAGE_BYTES + arrival.payload.len();
        let queue = self.queues.entry(key).or_default();
        queue.push_back(Message { header: arrival.header, block });
        if queue.len() >= self.pause_at && self.pausing.insert(key) { Tell::Pause } else { Tell::Nothing }
    }

    /// The first message of a sender and communicator is done with.
    pub(super) fn pop(&mut self, from: MemberId, comm: CommId) -> Tell {
        let key = (from, comm);
        let Some(queue) = self.queues.get_mut(&key) else { return Tell::Nothing };
        if let Some(done) = queue.pop_front()
            && let Some(bytes) = self.bytes.get_mut(&from)
        {
            *bytes = bytes.saturating_sub(MESSAGE_BYTES + done.header.payload_bytes as usize);
        }
        let left = queue.len();
        if left == 0 {
            self.queues.remove(&key);
        }
        if left < LINK_SLOTS && self.pausing.remove(&key) { Tell::Proceed } else { Tell::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Attempt, ChunkId, Epoch, OpId, OpSeq};
    use phalanx_core::wire::Kind;

    fn push(aside: &mut Aside, chunk: u32) -> Tell {
        let mut block = Block::zeroed(3);
        block.span().write(&[chunk as u8; 3]);
        let header = Header {
            kind: Kind::Partial,
            op: OpId { comm: CommId(3), seq: OpSeq(0) },
            attempt: Attempt(0),
            epoch: Epoch(1),
            chunk: ChunkId(chunk),
            signature: 0,
            payload_bytes: 3,
            stable: OpSeq(0),
            checksum: 0,
        };
        aside.push(MemberId(1), &Arrival { header, payload: block.span() })
    }

    /// The proof of a plan lets a sender go on once the message `LINK_SLOTS` places ahead is taken.
    #[test]
    fn a_sender_is_paused_above_the_slots_of_a_link_and_proceeds_below_them() {
        let (from, comm) = (MemberId(1), CommId(3));
        let mut aside = Aside::default();
        aside.set_pause_at(1);
        let mut told = Vec::new();
        for chunk in 0..LINK_SLOTS as u32 + 2 {
            told.push(push(&mut aside, chunk));
        }
        let mut want = vec![Tell::Nothing; LINK_SLOTS + 2];
        want[LINK_SLOTS - 1] = Tell::Pause;
        assert_eq!(told, want);
        for chunk in 0..LINK_SLOTS as u32 + 2 {
            let (header, span) = aside.front(from, comm).unwrap();
            let mut bytes = [0; 3];
            span.read(&mut bytes);
            assert_eq!((header.chunk, bytes), (ChunkId(chunk), [chunk as u8; 3]));
            let want = if chunk == 2 { Tell::Proceed } else { Tell::Nothing };
            assert_eq!(aside.pop(from, comm), want, "{chunk}");
        }
        assert!(aside.front(from, comm).is_none());
        assert_eq!(aside.front(MemberId(2), comm).map(|(h, _)| h.chunk), None);
    }

    /// Found by hostile input: a sender that did not pause filled the memory of its receiver.
    #[test]
    fn a_sender_that_never_pauses_fills_its_own_share_and_no_more() {
        let from = MemberId(1);
        let mut aside = Aside::default();
        let mut taken = 0u32;
        while !aside.is_full(from) {
            push(&mut aside, taken);
            taken += 1;
            assert!(taken as usize <= SENDER_BYTES_MAX / MESSAGE_BYTES, "no end");
        }
        assert!(!aside.is_full(MemberId(2)));
        aside.pop(from, CommId(3));
        assert!(!aside.is_full(from), "room again");
        aside.clear();
        assert!(!aside.is_full(from) && aside.bytes.is_empty());
    }

    #[test]
    fn a_fence_forgets_messages_and_pauses() {
        let mut aside = Aside::default();
        aside.set_pause_at(LINK_SLOTS);
        let fill = |aside: &mut Aside| -> Vec<Tell> {
            (0..LINK_SLOTS as u32).map(|chunk| push(aside, chunk)).collect()
        };
        let first = fill(&mut aside);
        aside.clear();
        assert!(aside.front(MemberId(1), CommId(3)).is_none());
        assert_eq!(fill(&mut aside), first, "it is paused anew");
    }
}
