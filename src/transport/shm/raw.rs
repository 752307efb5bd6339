//! The shared segment of a link: its layout, its mapping and its words. All unsafe code of this transport is here.
//!
//! ```text
//! 0      taken            written by the receiver
//! 128    receiver parked  set by the receiver, taken by the sender
//! 256    sender parked    set by the sender, taken by the receiver
//! 4096   CELLS cells      a line of header, whose last word is the stamp, and INLINE_BYTES of payload
//! SLOTS  LINK_SLOTS slots SLOT_BYTES of payload each, for what does not fit a cell
//! ```
//!
//! The other process is not trusted: it may write anything anywhere in the segment, at any time. So a segment is
//! words and raw copies, never a Rust reference to plain bytes; offsets never come out of it; and it is sealed, so
//! that its pages cannot be taken away under a reader.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use phalanx_core::units::{LINK_SLOTS, SLOT_BYTES};
use phalanx_core::wire::header::HEADER_BYTES;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::device::Span;
use crate::sync::{SharedWord, load_data, store_data};

/// Messages of one link that may wait at once.
pub const CELLS: usize = 64;
/// Payload up to this size travels in the cell itself and does not wait for a slot.
pub const INLINE_BYTES: usize = 1024;
/// Bytes of a segment.
pub const SEGMENT_BYTES: usize = SLOTS_AT + LINK_SLOTS * SLOT_BYTES;

const WORD_BYTES: usize = size_of::<SharedWord>();
/// An odd number of lines: neighbouring cells fall into different sets of a cache.
const CELL_BYTES: usize = HEADER_BYTES + INLINE_BYTES;
const CELLS_AT: usize = 4096;
const SLOTS_AT: usize = CELLS_AT + CELLS * CELL_BYTES;
/// Where the stamp lies in a header line: these bytes of a [`phalanx_core::wire::Header`] are unused.
const STAMP_AT: usize = HEADER_BYTES - WORD_BYTES;

const _: () = assert!(SLOTS_AT.is_multiple_of(4096), "slots begin on a page");
const _: () = assert!(CELLS > LINK_SLOTS, "small messages must not wait behind large ones");
const _: () = assert!(CELL_BYTES.is_multiple_of(64) && WORD_BYTES == 8);

/// A single word of the segment's first page.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    /// Messages that the receiver is done with.
    Taken,
    /// Not zero: the receiver sleeps and wants its bell rung at the next message.
    ReceiverParked,
    /// Not zero: the sender sleeps and wants its bell rung at the next free cell.
    SenderParked,
}

/// Why a segment offered by another member is not mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// Its pages could be taken away while they are read.
    #[error("the offered segment is not sealed against shrinking")]
    Unsealed,
    /// Another layout.
    #[error("the offered segment has {0} bytes instead of {SEGMENT_BYTES}; is every rank the same version?")]
    Size(i64),
    /// The kernel refused.
    #[error("the offered segment cannot be mapped: {0}")]
    Kernel(#[from] rustix::io::Errno),
}

/// A mapped segment. Untouched pages cost no memory.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this type is its only owner here.
unsafe impl Send for Segment {}

impl Segment {
    /// A fresh, zeroed segment, and the file to hand to the receiver.
    ///
    /// # Errors
    /// When the process is out of descriptors or address space.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let file = rustix::fs::memfd_create("phalanx-link", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, SEGMENT_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let segment = Self::map_checked(&file)?;
        Ok((segment, file))
    }

    /// Maps a segment that another member made.
    ///
    /// # Errors
    /// When it is not sealed or not of the size of a segment.
    pub fn map(file: BorrowedFd<'_>) -> Result<Self, SegmentError> {
        // A file that cannot have seals is no memfd.
        let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| SegmentError::Unsealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(SegmentError::Unsealed);
        }
        let bytes = rustix::fs::fstat(file)?.st_size;
        if usize::try_from(bytes) != Ok(SEGMENT_BYTES) {
            return Err(SegmentError::Size(bytes));
        }
        Ok(Self::map_checked(file)?)
    }

    fn map_checked(file: impl std::os::fd::AsFd) -> rustix::io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                SEGMENT_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        NonNull::new(base.cast()).map(|base| Self { base }).ok_or(rustix::io::Errno::NOMEM)
    }

    fn word(&self, offset: usize) -> &SharedWord {
        assert!(offset.is_multiple_of(WORD_BYTES) && offset <= SEGMENT_BYTES - WORD_BYTES);
        // SAFETY: `base` is page-aligned and valid for SEGMENT_BYTES until `drop` (mapped in `map_checked`; the seals
        // checked or set by its callers keep the pages there); the assertion above keeps the word inside and aligned.
        // Every access of either process to this place is atomic, as words and payload never share a place.
        unsafe { self.base.add(offset).cast::<SharedWord>().as_ref() }
    }

    fn span(&self, offset: usize, bytes: usize) -> Span {
        assert!(offset <= SEGMENT_BYTES && bytes <= SEGMENT_BYTES - offset);
        // SAFETY: inside the mapping by the assertion above; the ring that owns this segment takes the span back
        // before it drops it; no Rust reference to payload is ever made here.
        unsafe { Span::new(self.base.add(offset).as_ptr(), bytes) }
    }

    /// A control word; each has its own pair of cache lines.
    pub fn control(&self, which: Control) -> &SharedWord {
        self.word(128 * which as usize)
    }

    /// The stamp of a message's cell: published last, so that it covers header and payload.
    pub fn stamp(&self, message: u64) -> &SharedWord {
        self.word(Self::cell_at(message) + STAMP_AT)
    }

    /// Writes the header of a message, all but the stamp.
    pub fn write_header(&self, message: u64, header: &[u8; HEADER_BYTES]) {
        let cell = Self::cell_at(message);
        for (index, bytes) in header[..STAMP_AT].as_chunks::<WORD_BYTES>().0.iter().enumerate() {
            store_data(self.word(cell + index * WORD_BYTES), u64::from_ne_bytes(*bytes));
        }
    }

    /// Reads the header of a message, with zeroes for the stamp.
    pub fn read_header(&self, message: u64) -> [u8; HEADER_BYTES] {
        let (cell, mut header) = (Self::cell_at(message), [0; HEADER_BYTES]);
        for (index, bytes) in header[..STAMP_AT].as_chunks_mut::<WORD_BYTES>().0.iter_mut().enumerate() {
            *bytes = load_data(self.word(cell + index * WORD_BYTES)).to_ne_bytes();
        }
        header
    }

    /// Room for payload in the cell of a message.
    pub fn inline_payload(&self, message: u64, bytes: usize) -> Span {
        assert!(bytes <= INLINE_BYTES);
        self.span(Self::cell_at(message) + HEADER_BYTES, bytes)
    }

    /// Room for payload in a slot.
    pub fn slot_payload(&self, slot: usize, bytes: usize) -> Span {
        assert!(slot < LINK_SLOTS && bytes <= SLOT_BYTES);
        self.span(SLOTS_AT + slot * SLOT_BYTES, bytes)
    }

    const fn cell_at(message: u64) -> usize {
        CELLS_AT + (message % CELLS as u64) as usize * CELL_BYTES
    }

    /// The whole segment, for tests that overwrite it as a broken process would.
    #[cfg(test)]
    pub fn everything(&self) -> Span {
        self.span(0, SEGMENT_BYTES)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `base` is the whole mapping made in `map_checked`, unmapped only here; spans into it were taken
        // back by the ring that owns it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SEGMENT_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_mappings_are_one_memory_and_the_file_keeps_its_size() {
        let (ours, file) = Segment::create().unwrap();
        let theirs = Segment::map(file.as_fd()).unwrap();
        store_data(ours.control(Control::SenderParked), 7);
        assert_eq!(load_data(theirs.control(Control::SenderParked)), 7);
        assert_eq!(load_data(theirs.control(Control::ReceiverParked)), 0);
        let header: [u8; HEADER_BYTES] = std::array::from_fn(|i| if i < STAMP_AT { i as u8 } else { 0 });
        theirs.write_header(65, &header);
        assert_eq!(ours.read_header(65), header);
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 1 << 30).is_err());
    }

    #[test]
    fn a_file_that_could_shrink_or_has_another_size_is_refused() {
        let file = rustix::fs::memfd_create("t", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, SEGMENT_BYTES as u64).unwrap();
        assert!(matches!(Segment::map(file.as_fd()), Err(SegmentError::Unsealed)));
        rustix::fs::ftruncate(&file, 4096).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(matches!(Segment::map(file.as_fd()), Err(SegmentError::Size(4096))));
    }

    #[test]
    fn places_do_not_overlap() {
        let (segment, _file) = Segment::create().unwrap();
        let mut places: Vec<(usize, usize)> = Vec::new();
        let start = |span: Span| span.start() as usize;
        let base = start(segment.everything());
        for control in [Control::Taken, Control::ReceiverParked, Control::SenderParked] {
            places.push((std::ptr::from_ref(segment.control(control)) as usize - base, 128));
        }
        for message in 0..CELLS as u64 {
            let payload = segment.inline_payload(message, INLINE_BYTES);
            places.push((start(payload) - base - HEADER_BYTES, CELL_BYTES));
            let stamp = std::ptr::from_ref(segment.stamp(message)) as usize;
            assert_eq!(stamp + WORD_BYTES, start(payload), "the stamp ends the header line");
        }
        for slot in 0..LINK_SLOTS {
            places.push((start(segment.slot_payload(slot, SLOT_BYTES)) - base, SLOT_BYTES));
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        assert_eq!(places.last().map(|p| p.0 + p.1), Some(SEGMENT_BYTES));
    }
}
