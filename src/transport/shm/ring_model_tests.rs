//! The ring under loom: the code of both ends as it ships, over memory that loom watches. A message that is torn, early
//! or of the wrong lap fails an assertion, a place that both ends are in at once fails loom's cell, and a wake-up that
//! is lost is a deadlock, because no timeout ever comes here.
//!
//! The models are short for a reason besides time: loom does not know that a swap stands right behind the value it
//! read. Where a park word is announced, taken and cancelled often enough, it lets the ringing end read its own old
//! swap after a later announcement that it must see by the fences, and reports a deadlock that cannot be.

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use phalanx_core::ids::{Attempt, ChunkId, CommId, Epoch, OpId, OpSeq};
use phalanx_core::wire::Kind;

use super::*;
use crate::sync::{Park, settle_park};

const CELLS: usize = 2;
const SLOTS: usize = 1;
const LARGE: usize = INLINE_BYTES + 1;
const EPOCH: Epoch = Epoch(1);

/// The memory of a ring of two cells and one slot. The header is plain memory here: that the ends never meet in it is
/// shown, though the real one is made of words that could bear it.
struct Shared {
    controls: [AtomicU64; 3],
    stamps: [AtomicU64; CELLS],
    headers: [Cell<[u8; HEADER_BYTES]>; CELLS],
    inline: [Cell<u64>; CELLS],
    slots: [Cell<u64>; SLOTS],
}

#[derive(Clone)]
struct Watched(Arc<Shared>);

/// Room for a payload, of which one number stands for all.
enum Place {
    Inline(Watched, usize),
    Slot(Watched, usize),
}

impl Place {
    fn number(&self) -> &Cell<u64> {
        match self {
            Self::Inline(memory, cell) => &memory.0.inline[*cell],
            Self::Slot(memory, slot) => &memory.0.slots[*slot],
        }
    }
}

impl Watched {
    fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self(Arc::new(Shared {
            controls: [word(), word(), word()],
            stamps: [word(), word()],
            headers: [Cell::new([0; HEADER_BYTES]), Cell::new([0; HEADER_BYTES])],
            inline: [Cell::new(0), Cell::new(0)],
            slots: [Cell::new(0)],
        }))
    }
}

const fn cell(message: u64) -> usize {
    (message % CELLS as u64) as usize
}

impl Memory for Watched {
    type Word = AtomicU64;
    type Place = Place;
    const CELLS: u64 = CELLS as u64;
    const SLOTS: u64 = SLOTS as u64;

    fn control(&self, which: Control) -> &AtomicU64 {
        &self.0.controls[which as usize]
    }
    fn stamp(&self, message: u64) -> &AtomicU64 {
        &self.0.stamps[cell(message)]
    }
    fn write_header(&self, message: u64, header: &[u8; HEADER_BYTES]) {
        self.0.headers[cell(message)].set(*header);
    }
    fn read_header(&self, message: u64) -> [u8; HEADER_BYTES] {
        self.0.headers[cell(message)].get()
    }
    fn inline_payload(&self, message: u64, _bytes: usize) -> Place {
        Place::Inline(self.clone(), cell(message))
    }
    fn slot_payload(&self, slot: usize, _bytes: usize) -> Place {
        Place::Slot(self.clone(), slot)
    }
}

#[derive(Default)]
struct Bells {
    sender: Park,
    receiver: Park,
}

fn header(message: u32, bytes: usize) -> Header {
    Header {
        kind: Kind::Partial,
        op: OpId { comm: CommId(1), seq: OpSeq(2) },
        attempt: Attempt(3),
        epoch: EPOCH,
        chunk: ChunkId(message),
        signature: 5,
        payload_bytes: bytes as u32,
        stable: OpSeq(0),
        checksum: 0,
    }
}

fn send_all(ring: &mut SendRing<Watched>, sizes: &[usize], bells: &Bells) {
    for (message, bytes) in (0..).zip(sizes) {
        let place = loop {
            if let Some(place) = ring.reserve(*bytes).unwrap() {
                break place;
            }
            // As the transport's `arm` does it, then the sleep, then `disarm`.
            ring.announce_park();
            settle_park();
            if !ring.take_news() {
                bells.sender.park(None);
            }
            ring.cancel_park();
        };
        place.number().set(u64::from(message) + 10);
        if ring.commit(&header(message, *bytes)) {
            bells.receiver.unpark();
        }
    }
}

fn receive_all(ring: &mut ReceiveRing<Watched>, sizes: &[usize], bells: &Bells) {
    for (message, bytes) in (0..).zip(sizes) {
        let head = loop {
            if let Some(head) = ring.head().unwrap() {
                break head;
            }
            ring.announce_park();
            settle_park();
            if !ring.take_news(EPOCH) {
                bells.receiver.park(None);
            }
            ring.cancel_park();
        };
        assert_eq!(head, header(message, *bytes));
        assert_eq!(ring.payload(&head).number().get(), u64::from(message) + 10, "torn or early message");
        if ring.release() {
            bells.sender.unpark();
        }
    }
}

fn check(sizes: &'static [usize]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let (memory, bells) = (Watched::new(), Arc::new(Bells::default()));
        let (mut send, mut receive) = (SendRing::new(memory.clone()), ReceiveRing::new(memory));
        let ringing = Arc::clone(&bells);
        let sender = thread::spawn(move || send_all(&mut send, sizes, &ringing));
        receive_all(&mut receive, sizes, &bells);
        sender.join().unwrap();
    });
}

#[test]
fn small_messages_go_round_the_cells() {
    check(&[0, 8, INLINE_BYTES]);
}

#[test]
fn large_messages_wait_for_the_slot_while_there_is_a_cell() {
    check(&[LARGE, LARGE]);
}
