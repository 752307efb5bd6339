//! The two ends of a link: an in-order ring of messages in a shared segment.
//!
//! Order is that of the cells, for small and large messages alike. Which slot a large payload lies in is counted at
//! both ends, never read from the segment.

use phalanx_core::ids::Epoch;
use phalanx_core::units::{LINK_SLOTS, SLOT_BYTES};
use phalanx_core::wire::Header;
use phalanx_core::wire::header::{HEADER_BYTES, HeaderError};

use super::raw::{CELLS, Control, INLINE_BYTES, Segment};
use crate::device::Span;
use crate::sync::{self, ReceiveCursor, Scribbled, SendCursor, SharedWord, Word};

/// What the ends of a ring need of the memory between them. A [`Segment`]; in the model below, memory of loom.
pub trait Memory {
    /// Words that both ends change.
    type Word: Word;
    /// Room for the payload of a message.
    type Place;
    /// Messages that may wait at once.
    const CELLS: u64;
    /// Places for what does not fit a cell; at most [`LINK_SLOTS`].
    const SLOTS: u64;

    /// As [`Segment::control`].
    fn control(&self, which: Control) -> &Self::Word;
    /// As [`Segment::stamp`].
    fn stamp(&self, message: u64) -> &Self::Word;
    /// As [`Segment::write_header`].
    fn write_header(&self, message: u64, header: &[u8; HEADER_BYTES]);
    /// As [`Segment::read_header`].
    fn read_header(&self, message: u64) -> [u8; HEADER_BYTES];
    /// As [`Segment::inline_payload`].
    fn inline_payload(&self, message: u64, bytes: usize) -> Self::Place;
    /// As [`Segment::slot_payload`].
    fn slot_payload(&self, slot: usize, bytes: usize) -> Self::Place;
}

impl Memory for Segment {
    type Word = SharedWord;
    type Place = Span;
    const CELLS: u64 = CELLS as u64;
    const SLOTS: u64 = LINK_SLOTS as u64;

    fn control(&self, which: Control) -> &SharedWord {
        self.control(which)
    }
    fn stamp(&self, message: u64) -> &SharedWord {
        self.stamp(message)
    }
    fn write_header(&self, message: u64, header: &[u8; HEADER_BYTES]) {
        self.write_header(message, header);
    }
    fn read_header(&self, message: u64) -> [u8; HEADER_BYTES] {
        self.read_header(message)
    }
    fn inline_payload(&self, message: u64, bytes: usize) -> Span {
        self.inline_payload(message, bytes)
    }
    fn slot_payload(&self, slot: usize, bytes: usize) -> Span {
        self.slot_payload(slot, bytes)
    }
}

/// Which slot the large payload of this number lies in, counted alike at both ends.
const fn slot<M: Memory>(large: u64) -> usize {
    (large % M::SLOTS) as usize
}

/// The sending end.
#[derive(Debug)]
pub struct SendRing<M = Segment> {
    segment: M,
    cursor: SendCursor,
    /// Large payloads sent so far.
    large: u64,
    /// By slot: it is free once so many messages are taken.
    free_after: [u64; LINK_SLOTS],
    /// Size of the message being written.
    reserved: Option<usize>,
    /// Size of a message that found no room.
    wanted: Option<usize>,
}

impl<M: Memory> SendRing<M> {
    /// The sending end of a fresh segment.
    pub fn new(segment: M) -> Self {
        Self {
            segment,
            cursor: SendCursor::new(M::CELLS),
            large: 0,
            free_after: [0; LINK_SLOTS],
            reserved: None,
            wanted: None,
        }
    }

    fn has_room(&mut self, bytes: usize) -> Result<bool, Scribbled> {
        let taken = self.segment.control(Control::Taken);
        if !self.cursor.has_room(taken)? {
            return Ok(false);
        }
        Ok(bytes <= INLINE_BYTES || self.cursor.is_taken(self.free_after[slot::<M>(self.large)], taken)?)
    }

    /// Where to write the next message's payload; `None`: no room.
    ///
    /// # Errors
    /// When the receiver wrote an impossible count.
    ///
    /// # Panics
    /// When no slot is large enough.
    pub fn reserve(&mut self, bytes: usize) -> Result<Option<M::Place>, Scribbled> {
        assert!(bytes <= SLOT_BYTES, "a message of {bytes} bytes, a slot holds {SLOT_BYTES}");
        if !self.has_room(bytes)? {
            self.wanted = Some(bytes);
            return Ok(None);
        }
        (self.reserved, self.wanted) = (Some(bytes), None);
        Ok(Some(if bytes <= INLINE_BYTES {
            self.segment.inline_payload(self.cursor.position(), bytes)
        } else {
            self.segment.slot_payload(slot::<M>(self.large), bytes)
        }))
    }

    /// Publishes the reserved message; true: the receiver sleeps, ring its bell.
    ///
    /// # Panics
    /// When nothing of this size is reserved.
    pub fn commit(&mut self, header: &Header) -> bool {
        let bytes = header.payload_bytes as usize;
        assert_eq!(self.reserved.take(), Some(bytes), "commit of another size than reserved");
        let message = self.cursor.position();
        self.segment.write_header(message, &header.to_wire());
        self.cursor.publish(self.segment.stamp(message));
        if bytes > INLINE_BYTES {
            self.free_after[slot::<M>(self.large)] = self.cursor.position();
            self.large += 1;
        }
        sync::take_park(self.segment.control(Control::ReceiverParked))
    }

    /// Forgets what found no room.
    pub const fn forget_wanted(&mut self) {
        self.wanted = None;
    }

    /// Announces that this end is about to sleep, if it waits for room.
    pub fn announce_park(&self) {
        if self.wanted.is_some() {
            sync::announce_park(self.segment.control(Control::SenderParked));
        }
    }

    /// Awake again.
    pub fn cancel_park(&self) {
        sync::cancel_park(self.segment.control(Control::SenderParked));
    }

    /// Whether a message that found no room has room now. A scribbled count is news, too: `reserve` will tell.
    pub fn has_news(&mut self) -> bool {
        self.wanted.is_some_and(|bytes| self.has_room(bytes) != Ok(false))
    }

    /// As [`has_news`](Self::has_news), but true only once: whoever still wants the room asks for it again.
    pub fn take_news(&mut self) -> bool {
        let has_news = self.has_news();
        if has_news {
            self.wanted = None;
        }
        has_news
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct ReceiveRing<M = Segment> {
    segment: M,
    cursor: ReceiveCursor,
    /// Large payloads released so far.
    large: u64,
    /// Header of the first message: read once, because the sender may still write where it lay.
    head: Option<Header>,
    /// Whether the first message was handed out.
    is_shown: bool,
    /// Whether the first message has kept the driver awake once.
    is_told: bool,
}

impl<M: Memory> ReceiveRing<M> {
    /// The receiving end of a segment that its sender has just made.
    pub fn new(segment: M) -> Self {
        Self {
            segment,
            cursor: ReceiveCursor::default(),
            large: 0,
            head: None,
            is_shown: false,
            is_told: false,
        }
    }

    /// Header of the first message that waits.
    ///
    /// # Errors
    /// When what lies there is no header: the ring is of no use any more.
    pub fn head(&mut self) -> Result<Option<Header>, HeaderError> {
        let message = self.cursor.position();
        if self.head.is_none() && self.cursor.is_ready(self.segment.stamp(message)) {
            self.head = Some(Header::from_wire(&self.segment.read_header(message), SLOT_BYTES)?);
            (self.is_shown, self.is_told) = (false, false);
        }
        Ok(self.head)
    }

    /// Payload of the first message, whose header is `head`.
    pub fn payload(&mut self, head: &Header) -> M::Place {
        self.is_shown = true;
        let bytes = head.payload_bytes as usize;
        if bytes <= INLINE_BYTES {
            self.segment.inline_payload(self.cursor.position(), bytes)
        } else {
            self.segment.slot_payload(slot::<M>(self.large), bytes)
        }
    }

    /// Whether the first message was handed out and not given back yet.
    pub const fn is_shown(&self) -> bool {
        self.head.is_some() && self.is_shown
    }

    /// Lets the first message count as news again.
    pub const fn forget_shown(&mut self) {
        (self.is_shown, self.is_told) = (false, false);
    }

    /// Gives the first message's room back, if one was read; true: the sender sleeps, ring its bell.
    pub fn release(&mut self) -> bool {
        let Some(head) = self.head.take() else { return false };
        if head.payload_bytes as usize > INLINE_BYTES {
            self.large += 1;
        }
        self.cursor.release(self.segment.control(Control::Taken));
        sync::take_park(self.segment.control(Control::SenderParked))
    }

    /// Announces that this end is about to sleep.
    pub fn announce_park(&self) {
        sync::announce_park(self.segment.control(Control::ReceiverParked));
    }

    /// Awake again.
    pub fn cancel_park(&self) {
        sync::cancel_park(self.segment.control(Control::ReceiverParked));
    }

    /// Whether a message waits that was not handed out yet and that `open` lets through or drops. A broken header
    /// is news, too: the next look will tell.
    pub fn has_news(&mut self, open: Epoch) -> bool {
        match self.head() {
            Ok(Some(head)) => head.epoch <= open && !self.is_shown,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// As [`has_news`](Self::has_news), but true only once a message: one that the driver does not want yet must not
    /// keep it awake for as long as it waits.
    pub fn take_news(&mut self, open: Epoch) -> bool {
        self.has_news(open) && !std::mem::replace(&mut self.is_told, true)
    }
}

#[cfg(test)]
impl ReceiveRing {
    /// The whole segment, for tests that overwrite it.
    pub fn everything(&self) -> Span {
        self.segment.everything()
    }
}

#[cfg(all(test, phalanx_loom))]
#[path = "ring_model_tests.rs"]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Attempt, ChunkId, CommId, OpId, OpSeq};
    use phalanx_core::wire::Kind;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn header(chunk: u32, bytes: usize) -> Header {
        Header {
            kind: Kind::Partial,
            op: OpId { comm: CommId(1), seq: OpSeq(2) },
            attempt: Attempt(3),
            epoch: Epoch(4),
            chunk: ChunkId(chunk),
            signature: 5,
            payload_bytes: bytes as u32,
            stable: OpSeq(u64::MAX),
            checksum: u32::MAX,
        }
    }

    fn ring() -> (SendRing, ReceiveRing) {
        let (ours, file) = Segment::create().unwrap();
        (SendRing::new(ours), ReceiveRing::new(Segment::map(file.as_fd()).unwrap()))
    }

    #[test]
    fn the_wire_leaves_the_place_of_the_stamp_free() {
        assert_eq!(header(u32::MAX, usize::MAX).to_wire()[56..], [0; 8]);
    }

    #[test]
    fn small_messages_pass_while_all_slots_are_full_and_order_is_kept() {
        let (mut send, mut receive) = ring();
        let mut sent = 0;
        while send.reserve(SLOT_BYTES).unwrap().is_some() {
            send.commit(&header(sent, SLOT_BYTES));
            sent += 1;
        }
        assert_eq!(sent as usize, LINK_SLOTS);
        while send.reserve(INLINE_BYTES).unwrap().is_some() {
            send.commit(&header(sent, INLINE_BYTES));
            sent += 1;
        }
        assert_eq!(sent as usize, CELLS);
        for chunk in 0..sent {
            assert_eq!(receive.head().unwrap().unwrap().chunk, ChunkId(chunk));
            receive.release();
        }
        assert_eq!(receive.head(), Ok(None));
        assert!(send.reserve(SLOT_BYTES).unwrap().is_some());
    }

    #[test]
    fn a_slot_is_not_written_before_its_reader_is_done() {
        let (mut send, mut receive) = ring();
        for chunk in 0..LINK_SLOTS as u32 {
            send.reserve(INLINE_BYTES + 1).unwrap().unwrap().part(0, 1).write(&[chunk as u8]);
            send.commit(&header(chunk, INLINE_BYTES + 1));
        }
        let head = receive.head().unwrap().unwrap();
        let payload = receive.payload(&head);
        assert!(send.reserve(INLINE_BYTES + 1).unwrap().is_none());
        assert!(!send.has_news());
        let mut first = [9];
        payload.part(0, 1).read(&mut first);
        assert_eq!(first, [0]);
        receive.release();
        assert!(send.take_news());
        assert!(!send.take_news());
        assert!(send.reserve(INLINE_BYTES + 1).unwrap().is_some());
    }

    #[test]
    fn news_is_what_was_not_shown_and_is_not_of_the_future() {
        let (mut send, mut receive) = ring();
        assert!(!receive.has_news(Epoch(4)));
        send.reserve(0).unwrap().unwrap();
        send.commit(&header(0, 0));
        assert!(!receive.has_news(Epoch(3)));
        assert!(receive.has_news(Epoch(4)) && receive.has_news(Epoch(5)));
        let head = receive.head().unwrap().unwrap();
        let _payload = receive.payload(&head);
        assert!(!receive.has_news(Epoch(4)) && receive.is_shown());
        receive.forget_shown();
        assert!(receive.take_news(Epoch(4)));
        assert!(!receive.take_news(Epoch(4)), "an unwanted message keeps the driver awake once");
        receive.release();
        send.reserve(0).unwrap().unwrap();
        send.commit(&header(1, 0));
        assert!(receive.take_news(Epoch(4)), "the next one is news again");
    }

    proptest! {
        /// Random words anywhere in the segment: an error or a message, never a panic, never outside.
        #[test]
        fn a_scribbled_segment_is_survived(seed in proptest::collection::vec((0usize..72 * 128, any::<u64>()), 64),
                                           stamped: bool) {
            let (mut send, mut receive) = ring();
            let everything = receive.everything();
            for n in 0..200u64 {
                for (place, value) in &seed {
                    everything.part(place * 8, 8).write(&value.wrapping_mul(n | 1).to_ne_bytes());
                }
                if stamped {
                    let stamp = receive.cursor.position() + 1;
                    sync::store_data(receive.segment.stamp(stamp - 1), stamp);
                }
                let bytes = (n as usize * 977) % SLOT_BYTES;
                if let Ok(Some(place)) = send.reserve(bytes) {
                    prop_assert_eq!(place.len(), bytes);
                    send.commit(&header(n as u32, bytes));
                }
                if let Ok(Some(head)) = receive.head() {
                    let payload = receive.payload(&head);
                    let inside = payload.start() as usize - everything.start() as usize;
                    prop_assert!(inside + payload.len() <= everything.len());
                    receive.release();
                }
            }
        }
    }
}
