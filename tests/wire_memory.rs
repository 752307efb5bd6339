//! What a decoder allocates: at most a stated multiple of the frame it was given, whatever is in it. The allocator of
//! this test binary counts by thread.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "wire/frames.rs"]
mod frames;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use phalanx::core::coordinator::Record;
use phalanx::core::ids::MemberId;
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::message::{Downward, Holding, Upward};
use phalanx::core::wire::{Header, Wire};
use phalanx::sim::random::Random;

use frames::{corpus, damage};

/// Bytes of memory in use at once while a frame is decoded, at most, a byte of the frame. The worst is a list of
/// [`Holding`]s: 1 byte each on the wire, 32 in memory, in a list that doubles, at the moment when the old and the new
/// half are both there. The doc comment of `wire/codec.rs` and docs/testing.md say the same number.
const PEAK_MAX: usize = 96;
/// The same for what is kept.
const KEPT_MAX: usize = 64;

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the most of it since [`measured`] began.
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no counter any more, and nobody asks for it.
    let _ = LIVE.try_with(|cell| {
        let (live, peak) = cell.get();
        cell.set((live + bytes, peak.max(live + bytes)));
    });
}

// SAFETY: every call goes on to the system's allocator with the caller's own arguments, so what the caller promises
// there holds here; counting touches a plain cell and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: see above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Old and new at once: the system may move it.
        count(bytes as isize);
        count(-(layout.size() as isize));
        // SAFETY: see above.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes in use at once while `decode` runs, and what its result keeps.
fn measured<T>(decode: impl FnOnce() -> T) -> (usize, usize) {
    let before = LIVE.with(|cell| {
        let (live, _) = cell.get();
        cell.set((live, live));
        live
    });
    let result = decode();
    let (live, peak) = LIVE.with(Cell::get);
    drop(result);
    ((peak - before) as usize, (live - before) as usize)
}

/// By every decoder; the largest multiples seen.
fn judge(frame: &[u8]) -> (usize, usize) {
    let all = [
        measured(|| Upward::from_frame(frame)),
        measured(|| Downward::from_frame(frame)),
        measured(|| Record::from_frame(frame)),
    ];
    for (peak, kept) in all {
        assert!(peak <= PEAK_MAX * frame.len(), "{peak} bytes at once for {} bytes: {frame:?}", frame.len());
        assert!(kept <= KEPT_MAX * frame.len(), "{kept} bytes kept for {} bytes: {frame:?}", frame.len());
    }
    let len = frame.len().max(1);
    all.iter().fold((0, 0), |most, one| (most.0.max(one.0 / len), most.1.max(one.1 / len)))
}

#[test]
fn the_allocator_counts() {
    assert_eq!(measured(|| Vec::<u8>::with_capacity(1000)), (1000, 1000));
    assert_eq!(measured(|| drop(Vec::<u64>::with_capacity(1000))), (8000, 0));
    let (peak, kept) = measured(|| {
        let mut list = vec![0u8; 1000];
        list.reserve_exact(1000);
        list
    });
    assert_eq!((peak, kept), (3000, 2000));
}

/// The bound is no larger than it must be: longer lists come as near as one likes.
#[test]
fn lists_of_the_smallest_elements_reach_the_bound_and_stay_below() {
    let mut most = (0, 0);
    for len in (0..=18).flat_map(|power| [1usize << power, (1 << power) + 1]) {
        let mut decision = frames::decision();
        decision.ops.truncate(1);
        decision.ops[0].held = vec![Holding::Nothing {}; len];
        let mut record = Record { former: vec![MemberId(1); len], ..Record::default() };
        let held = judge(&Downward::Decide { decision: decision.clone() }.to_frame());
        most = (most.0.max(held.0), most.1.max(held.1));
        judge(&record.to_frame());
        decision.ops.clear();
        decision.view.seats = vec![None; len];
        record.decision = Some(decision);
        judge(&record.to_frame());
    }
    assert!(most.0 >= PEAK_MAX - 2 && most.1 >= KEPT_MAX - 2, "the bound is too generous: {most:?}");
}

#[test]
fn damaged_and_arbitrary_frames_stay_below_the_bound() {
    let base = u64::from(std::process::id());
    println!("base {base}");
    let corpus = corpus();
    for frame in &corpus {
        judge(frame);
    }
    for round in 0..60_000 {
        let mut random = Random::new(base << 32 | round);
        let frame = if round % 3 > 0 {
            let mut frame = corpus[random.below(corpus.len() as u64) as usize].clone();
            damage(&mut frame, &mut random);
            frame
        } else {
            // Small numbers are what kinds, flags and short lists are made of: they get further.
            let most = random.between(1, 256);
            (0..random.below(400)).map(|_| random.below(most) as u8).collect()
        };
        judge(&frame);
    }
}

/// A list that announces more than the frame has, in every place where a list can begin.
#[test]
fn an_announced_length_alone_allocates_nothing_to_speak_of() {
    for frame in corpus() {
        for at in 0..frame.len().saturating_sub(3) {
            let mut frame = frame.clone();
            frame[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            judge(&frame);
        }
    }
}

#[test]
fn headers_are_decoded_without_any_memory() {
    let mut random = Random::new(u64::from(std::process::id()));
    for _ in 0..10_000 {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|_| random.below(8) as u8);
        assert_eq!(measured(|| Header::from_wire(&bytes, 4096)).0, 0);
    }
}
