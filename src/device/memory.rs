//! Raw memory of the data path: the one place that turns addresses into bytes.
//!
//! A [`Span`] names memory that somebody else keeps alive: a slot of a link (until it is consumed or committed),
//! or a caller's buffer (until its op is dropped by the engine). Shared memory is written by other processes, so
//! it is never seen as a `&[u8]` for longer than a copy, and kernels work on raw pointers.

use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Memory straight to and from a socket: the kernel reads and writes it by address, so no Rust reference to it exists.
impl Span {
    /// Parts that one system call takes at most.
    pub const PARTS_MAX: usize = 8;

    /// Sends `parts` one after the other without blocking; gives the bytes the kernel took. A closed peer is an
    /// error, not a signal.
    ///
    /// # Errors
    /// What the system reports; `WouldBlock` when its buffer is full.
    ///
    /// # Panics
    /// With more than [`PARTS_MAX`](Self::PARTS_MAX) parts.
    pub fn send(socket: BorrowedFd<'_>, parts: &[Self]) -> std::io::Result<usize> {
        let mut vectors = [EMPTY_VECTOR; Self::PARTS_MAX];
        let message = message(&mut vectors, parts);
        // SAFETY: `message` names `vectors`, alive here, whose entries are spans valid for reads by the contract of
        // `Span::new`; the descriptor is open while it is borrowed.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).map_err(|_| std::io::Error::last_os_error())
    }

    /// Fills `parts` one after the other with what has arrived, without blocking; 0 is the end of the stream.
    ///
    /// # Errors
    /// What the system reports; `WouldBlock` when nothing has arrived.
    ///
    /// # Panics
    /// With more than [`PARTS_MAX`](Self::PARTS_MAX) parts.
    pub fn receive(socket: BorrowedFd<'_>, parts: &[Self]) -> std::io::Result<usize> {
        let mut vectors = [EMPTY_VECTOR; Self::PARTS_MAX];
        let mut message = message(&mut vectors, parts);
        // SAFETY: as in `send`, with spans valid for writes.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| std::io::Error::last_os_error())
    }
}

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The kernel's description of `parts`; valid as long as `vectors`.
fn message(vectors: &mut [libc::iovec; Span::PARTS_MAX], parts: &[Span]) -> libc::msghdr {
    assert!(parts.len() <= Span::PARTS_MAX, "{} parts in one system call", parts.len());
    for (vector, part) in vectors.iter_mut().zip(parts) {
        *vector = libc::iovec { iov_base: part.start.cast(), iov_len: part.bytes };
    }
    // SAFETY: `msghdr` is a plain C struct for which all zeroes means "no address, no data, no control bytes".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    // The field is `size_t` with one C library and `int` with another; the count is at most PARTS_MAX.
    message.msg_iovlen = parts.len() as _;
    message
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
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole block as a span; valid while the block lives (moving the `Block` does not move its memory).
    #[must_use]
    pub fn span(&mut self) -> Span {
        // SAFETY: the vector owns `words.len() * 64 >= bytes` bytes at this address until it is dropped, and a
        // `Block` hands out no references into it.
        unsafe { Span::new(self.words.as_mut_ptr().cast(), self.bytes) }
    }
}

/// A block that several owners keep alive: a buffer that the runtime may still read after the caller let go of it.
#[derive(Debug, Clone)]
pub struct SharedBlock {
    start: Span,
    block: std::sync::Arc<Block>,
}

// SAFETY: the memory is plain bytes; who may touch them when is decided by the owners (`comm::Buffer` counts the ops
// that read it and hands out references only while none can write).
unsafe impl Sync for SharedBlock {}

impl SharedBlock {
    /// Zeroed memory.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let mut block = Block::zeroed(bytes);
        Self { start: block.span(), block: std::sync::Arc::new(block) }
    }

    /// The whole block; valid while a clone of this lives.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.start
    }

    /// The bytes, to read. The caller sees to it that nobody writes meanwhile.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        debug_assert_eq!(self.block.bytes(), self.start.len());
        // SAFETY: the block is alive through `self.block`, moving an `Arc` does not move it, and no op writes to a
        // `comm::Buffer` while its owner can call this (the owner gave it away, or waits).
        unsafe { std::slice::from_raw_parts(self.start.start(), self.start.len()) }
    }

    /// The bytes, to write. The caller sees to it that nobody reads or writes meanwhile.
    #[must_use]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the caller (`comm::Buffer::as_mut_slice`) has checked that no op reads the memory, and
        // holds the only handle that can start one.
        unsafe { std::slice::from_raw_parts_mut(self.start.start(), self.start.len()) }
    }
}

impl Span {
    /// Lends a slice for an op. The caller keeps its borrow until the op is over and nothing of it is read any more.
    #[must_use]
    pub(crate) fn lend(bytes: &mut [u8]) -> Self {
        // SAFETY: `comm` holds the borrow until the driver says that the op is freed (see `comm::collectives`).
        unsafe { Self::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Lends a slice that is only ever read, as [`Span::lend`].
    #[must_use]
    pub(crate) fn lend_shared(bytes: &[u8]) -> Self {
        // SAFETY: as in `lend`; inputs of ops are never written (only an op in place writes to its input, and that one
        // is lent by `lend`).
        unsafe { Self::new(bytes.as_ptr().cast_mut(), bytes.len()) }
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
    fn spans_travel_through_a_socket_without_blocking() {
        use std::os::fd::AsFd;
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut a, mut b) = (Block::zeroed(8), Block::zeroed(8));
        a.span().write(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let nothing = Span::receive(right.as_fd(), &[b.span()]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(Span::send(left.as_fd(), &[a.span().part(4, 4), a.span().part(0, 2)]).unwrap(), 6);
        assert_eq!(Span::receive(right.as_fd(), &[b.span().part(6, 2), b.span().part(0, 6)]).unwrap(), 6);
        let mut out = [0; 8];
        b.span().read(&mut out);
        assert_eq!(out, [7, 8, 1, 2, 0, 0, 5, 6]);
        drop(right);
        assert!(Span::send(left.as_fd(), &[a.span()]).is_err(), "an error, not a signal");
        assert_eq!(Span::receive(left.as_fd(), &[b.span()]).unwrap(), 0);
    }

    #[test]
    #[should_panic(expected = "outside a span")]
    fn a_part_past_the_end_is_refused() {
        let _ = Block::zeroed(8).span().part(usize::MAX, 2);
    }
}
