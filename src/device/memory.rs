//! Raw memory of the data path: the one place that turns addresses into bytes.
//!
//! A [`Span`] names memory that somebody else keeps alive: a slot of a link (until it is consumed or committed),
//! or a caller's buffer (until its op is dropped by the engine). Shared memory is written by other processes, so
//! it is never seen as a `&[u8]` for longer than a copy, and kernels work on raw pointers.

/// Memory lent for one step. `Copy`, like the pointer it wraps; who lends it says until when it is valid.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: a `Span` is an address and a length. The lender's promise (see `Span::new`) is about the memory, not
// about a thread; the holder of the progress token is the only one that touches it.
unsafe impl Send for Span {}

impl Span {
    /// Names `bytes` bytes at `start`.
    ///
    /// # Safety
    /// The memory must stay valid for reads and writes (reads only, where the span is only ever read) until the
    /// lender takes it back, and nobody may hold a Rust reference to it that the accesses would violate.
    #[must_use]
    pub const unsafe fn new(start: *mut u8, bytes: usize) -> Self {
        Self { start, bytes }
    }

    /// No memory at all.
    #[must_use]
    pub const fn empty() -> Self {
        Self { start: std::ptr::NonNull::<u64>::dangling().as_ptr().cast(), bytes: 0 }
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> *mut u8 {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.bytes
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.bytes == 0
    }

    /// The part `offset..offset + bytes`.
    ///
    /// # Panics
    /// When the part is not inside.
    #[must_use]
    pub fn part(self, offset: usize, bytes: usize) -> Self {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|e| e <= self.bytes),
            "{offset}+{bytes} outside a span of {} bytes",
            self.bytes
        );
        // SAFETY: `offset <= self.bytes` was checked above, so the address stays inside the lent memory.
        unsafe { Self::new(self.start.add(offset), bytes) }
    }

    /// Copies `source` here; the two may be the same memory but must not overlap otherwise.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from(self, source: Self) {
        assert_eq!(self.bytes, source.bytes, "copy between spans of different length");
        if self.start != source.start {
            // SAFETY: both spans are valid for their equal length by the contract of `Span::new`; `copy` allows
            // overlap.
            unsafe { std::ptr::copy(source.start, self.start, self.bytes) }
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(self, source: &[u8]) {
        assert_eq!(self.bytes, source.len(), "write of a different length");
        // SAFETY: the span is valid for `bytes` by the contract of `Span::new`, `source` is a live slice.
        unsafe { std::ptr::copy(source.as_ptr(), self.start, self.bytes) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn read(self, target: &mut [u8]) {
        assert_eq!(self.bytes, target.len(), "read of a different length");
        // SAFETY: as in `write`, the other way.
        unsafe { std::ptr::copy(self.start, target.as_mut_ptr(), self.bytes) }
    }
}

/// Heap memory aligned to a cache line, owned by the runtime: staging buffers, scratch, the retention log.
#[derive(Debug)]
pub struct Block {
    words: Vec<Line>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Block {
    /// Zeroed memory of at least `bytes` bytes.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        Self { words: vec![Line([0; 64]); bytes.div_ceil(64)], bytes }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The whole block as a span; valid while the block lives (moving the `Block` does not move its memory).
    #[must_use]
    pub fn span(&mut self) -> Span {
        // SAFETY: the vector owns `words.len() * 64 >= bytes` bytes at this address until it is dropped, and a
        // `Block` hands out no references into it.
        unsafe { Span::new(self.words.as_mut_ptr().cast(), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_copies() {
        let (mut a, mut b) = (Block::zeroed(100), Block::zeroed(100));
        a.span().part(10, 3).write(&[1, 2, 3]);
        b.span().copy_from(a.span());
        let mut out = [0; 5];
        b.span().part(9, 5).read(&mut out);
        assert_eq!(out, [0, 1, 2, 3, 0]);
        assert_eq!(a.span().start() as usize % 64, 0);
    }

    #[test]
    #[should_panic(expected = "outside a span")]
    fn a_part_past_the_end_is_refused() {
        let _ = Block::zeroed(8).span().part(usize::MAX, 2);
    }
}
