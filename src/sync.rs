//! Atomics and sleeping, in one file so that loom can stand in: all that a wake-up or a byte of shared memory depends
//! on.
//!
//! Three things live here. The cursors say when a cell of a one-way ring may be read or written again; the park
//! words make sure that whoever sleeps is woken; [`Doorbell`] and [`Park`] are what it sleeps on. The cursors and
//! the park words are generic over [`Word`], because the real words lie in memory shared with another process and
//! loom's cannot. [`local`] has the words and locks of one process, for `driver/rota.rs`. The models stand with the
//! code that they run: `transport/shm/ring_model_tests.rs` and the end of `driver/rota.rs`.
//!
//! Atomics elsewhere (`ATOMIC` in `tests/tidy/places.rs` lists the files) are counters that nobody sleeps on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
pub use std::sync::atomic::Ordering;

#[cfg(not(phalanx_loom))]
use std::sync::atomic::fence;

#[cfg(phalanx_loom)]
use loom::sync::atomic::fence;

use mio::unix::SourceFd;

/// A word of memory shared with another process: it has the layout of a `u64` and needs 8-byte alignment.
pub type SharedWord = std::sync::atomic::AtomicU64;

/// Words and locks of one process; in a model those of loom.
pub mod local {
    #[cfg(not(phalanx_loom))]
    pub use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64},
    };

    #[cfg(phalanx_loom)]
    pub use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64},
    };
}

/// What the algorithms of this file need of an atomic word.
pub trait Word {
    /// Reads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, value: u64, order: Ordering);
    /// Writes the word and gives the old value.
    fn swap(&self, value: u64, order: Ordering) -> u64;
}

/// Implements [`Word`] for an atomic type by its methods of the same names.
macro_rules! word {
    ($atomic:ty) => {
        impl Word for $atomic {
            fn load(&self, order: Ordering) -> u64 {
                <$atomic>::load(self, order)
            }
            fn store(&self, value: u64, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            fn swap(&self, value: u64, order: Ordering) -> u64 {
                <$atomic>::swap(self, value, order)
            }
        }
    };
}

word!(SharedWord);
#[cfg(phalanx_loom)]
word!(loom::sync::atomic::AtomicU64);

/// Reads a word that a later acquire or an earlier validation orders: plain data that happens to be shared.
pub fn load_data(word: &impl Word) -> u64 {
    word.load(Ordering::Relaxed)
}

/// Writes a word that a later publish orders.
pub fn store_data(word: &impl Word, value: u64) {
    word.store(value, Ordering::Relaxed);
}

/// The other end wrote a count that no correct program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring says {found} messages were taken, expected {least} to {most}; its memory was overwritten")]
pub struct Scribbled {
    /// What was read.
    pub found: u64,
    /// The count last read.
    pub least: u64,
    /// Messages sent so far.
    pub most: u64,
}

/// The sending end of a ring: what was sent, and what is known to be taken.
///
/// Message `n` lies in cell `n % cells` and is published by storing the stamp `n + 1` there: one word says both
/// that the cell is full and of which lap it is.
#[derive(Debug)]
pub struct SendCursor {
    sent: u64,
    taken: u64,
    cells: u64,
}

impl SendCursor {
    /// The cursor of a new ring.
    ///
    /// # Panics
    /// When there are no cells.
    #[must_use]
    pub const fn new(cells: u64) -> Self {
        assert!(cells > 0, "a ring needs a cell");
        Self { sent: 0, taken: 0, cells }
    }

    /// Number of the next message.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.sent
    }

    /// Whether the receiver took all messages below `count`. Touches the shared word only if the answer is not
    /// known already.
    ///
    /// # Errors
    /// When the shared word is impossible.
    pub fn is_taken(&mut self, count: u64, taken: &impl Word) -> Result<bool, Scribbled> {
        if self.taken < count {
            // Acquire pairs with the release in `ReceiveCursor::release`: the receiver has read the cell.
            let found = taken.load(Ordering::Acquire);
            if found < self.taken || found > self.sent {
                return Err(Scribbled { found, least: self.taken, most: self.sent });
            }
            self.taken = found;
        }
        Ok(self.taken >= count)
    }

    /// Whether the next cell is free.
    ///
    /// # Errors
    /// As [`Self::is_taken`].
    pub fn has_room(&mut self, taken: &impl Word) -> Result<bool, Scribbled> {
        self.is_taken((self.sent + 1).saturating_sub(self.cells), taken)
    }

    /// Makes the filled cell visible; `stamp` is that cell's.
    pub fn publish(&mut self, stamp: &impl Word) {
        self.sent += 1;
        // Release: everything written to the cell comes first.
        stamp.store(self.sent, Ordering::Release);
    }
}

/// The receiving end of a ring.
#[derive(Debug, Default)]
pub struct ReceiveCursor {
    received: u64,
}

impl ReceiveCursor {
    /// Number of the next message.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.received
    }

    /// Whether the next message is there; `stamp` is that of its cell.
    #[must_use]
    pub fn is_ready(&self, stamp: &impl Word) -> bool {
        stamp.load(Ordering::Acquire) == self.received + 1
    }

    /// Gives the cell back.
    pub fn release(&mut self, taken: &impl Word) {
        self.received += 1;
        // Release: the reads of the cell come before its reuse.
        taken.store(self.received, Ordering::Release);
    }
}

/// First half of going to sleep: says so. Then [`settle_park`], look again, and only then sleep.
pub fn announce_park(parked: &impl Word) {
    parked.store(1, Ordering::Relaxed);
}

/// Second half of going to sleep, once for any number of announced words: no look after it is older than the
/// announcement. With the fence in [`take_park`], either the sleeper sees the change or the changer sees the sleeper.
pub fn settle_park() {
    fence(Ordering::SeqCst);
}

/// Takes the announcement back: awake.
pub fn cancel_park(parked: &impl Word) {
    parked.store(0, Ordering::Relaxed);
}

/// Called after a change: whether a sleeper must be woken. True for one of any number of changes.
#[must_use]
pub fn take_park(parked: &impl Word) -> bool {
    fence(Ordering::SeqCst);
    parked.load(Ordering::Relaxed) != 0 && parked.swap(0, Ordering::Relaxed) != 0
}

/// Wakes a thread of this or another process that sleeps in a poll. Rings are not counted.
#[derive(Debug)]
pub struct Doorbell {
    counter: OwnedFd,
}

impl Doorbell {
    /// A doorbell at rest.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self { counter: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)? })
    }

    /// The other side of a doorbell that another process handed over.
    #[must_use]
    pub const fn from_fd(counter: OwnedFd) -> Self {
        Self { counter }
    }

    /// Wakes the sleeper, or the next one that tries to sleep.
    pub fn ring(&self) {
        // The write fails if the counter is at its top, which means that it is ringing, or if another process gave
        // us something that is no doorbell, which is the loss of that process only.
        let _ringing = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
    }

    /// Silences it; true: it had been rung.
    pub fn drain(&self) -> bool {
        rustix::io::read(&self.counter, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}

impl mio::event::Source for Doorbell {
    fn register(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interest: mio::Interest,
    ) -> io::Result<()> {
        SourceFd(&self.counter.as_raw_fd()).register(registry, token, interest)
    }

    fn reregister(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interest: mio::Interest,
    ) -> io::Result<()> {
        SourceFd(&self.counter.as_raw_fd()).reregister(registry, token, interest)
    }

    fn deregister(&mut self, registry: &mio::Registry) -> io::Result<()> {
        SourceFd(&self.counter.as_raw_fd()).deregister(registry)
    }
}

pub use park::Park;

#[cfg(not(phalanx_loom))]
mod park {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use rustix::thread::futex;

    const EMPTY: u32 = 0;
    const TOKEN: u32 = 1;
    const ASLEEP: u32 = 2;

    /// Puts one caller to sleep until another thread of this process lets it go.
    #[derive(Debug, Default)]
    pub struct Park(AtomicU32);

    impl Park {
        /// Nobody asleep, no token.
        #[must_use]
        pub const fn new() -> Self {
            Self(AtomicU32::new(EMPTY))
        }

        /// Leaves a token and wakes the sleeper.
        pub fn unpark(&self) {
            if self.0.swap(TOKEN, Ordering::Release) == ASLEEP {
                // It fails only for an address that is no memory.
                let _woken = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
            }
        }

        /// Takes the token, waiting for it if need be; one caller at a time. False: `timeout` is over (none: for
        /// ever).
        pub fn park(&self, timeout: Option<Duration>) -> bool {
            // A timeout too long for the clock is no timeout.
            let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
            loop {
                match self.0.compare_exchange(EMPTY, ASLEEP, Ordering::Acquire, Ordering::Acquire) {
                    Ok(_) | Err(ASLEEP) => {}
                    Err(_token) => {
                        self.0.store(EMPTY, Ordering::Relaxed);
                        return true;
                    }
                }
                let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
                if left == Some(Duration::ZERO) {
                    return self.0.swap(EMPTY, Ordering::Acquire) == TOKEN;
                }
                let left = left.and_then(|l| futex::Timespec::try_from(l).ok());
                // Woken, timed out, interrupted or too late: the word says which.
                let _why = futex::wait(&self.0, futex::Flags::PRIVATE, ASLEEP, left.as_ref());
            }
        }
    }
}

#[cfg(phalanx_loom)]
mod park {
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    /// The model's stand-in: same tokens, and a timeout never comes.
    #[derive(Debug)]
    pub struct Park {
        token: Mutex<bool>,
        came: Condvar,
    }

    impl Default for Park {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Park {
        /// Nobody asleep, no token.
        #[must_use]
        pub fn new() -> Self {
            Self { token: Mutex::new(false), came: Condvar::new() }
        }

        /// Leaves a token and wakes the sleeper.
        pub fn unpark(&self) {
            *self.token.lock().expect("a model that panicked is over") = true;
            self.came.notify_one();
        }

        /// Takes the token, waiting for it if need be.
        pub fn park(&self, _timeout: Option<Duration>) -> bool {
            let mut token = self.token.lock().expect("a model that panicked is over");
            while !*token {
                token = self.came.wait(token).expect("a model that panicked is over");
            }
            *token = false;
            true
        }
    }
}

#[cfg(all(test, not(phalanx_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_full_ring_has_room_again_after_a_release() {
        let (stamps, taken) = ([SharedWord::new(0), SharedWord::new(0)], SharedWord::new(0));
        let (mut send, mut receive) = (SendCursor::new(2), ReceiveCursor::default());
        for n in 0..5u64 {
            assert!(send.has_room(&taken).unwrap());
            send.publish(&stamps[n as usize % 2]);
            if n == 0 {
                continue;
            }
            assert_eq!(send.has_room(&taken), Ok(false));
            assert!(receive.is_ready(&stamps[receive.position() as usize % 2]));
            receive.release(&taken);
        }
        receive.release(&taken);
        assert!(!receive.is_ready(&stamps[1]), "the stamp of an old lap is no message");
    }

    #[test]
    fn an_impossible_count_is_noticed() {
        let taken = SharedWord::new(7);
        let mut send = SendCursor::new(1);
        send.publish(&SharedWord::new(0));
        assert_eq!(send.has_room(&taken), Err(Scribbled { found: 7, least: 0, most: 1 }));
    }

    #[test]
    fn a_park_is_taken_once() {
        let parked = SharedWord::new(0);
        assert!(!take_park(&parked));
        announce_park(&parked);
        assert!(take_park(&parked) && !take_park(&parked));
        announce_park(&parked);
        cancel_park(&parked);
        assert!(!take_park(&parked));
    }

    #[test]
    fn a_token_is_kept_and_a_timeout_is_told() {
        let park = Arc::new(Park::new());
        park.unpark();
        park.unpark();
        assert!(park.park(None));
        assert!(!park.park(Some(Duration::ZERO)));
        assert!(!park.park(Some(Duration::from_millis(1))));
        let other = Arc::clone(&park);
        let thread = std::thread::spawn(move || other.park(None));
        park.unpark();
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_doorbell_ends_a_poll() {
        let (mut poll, mut events) = (mio::Poll::new().unwrap(), mio::Events::with_capacity(4));
        let mut bell = Doorbell::new().unwrap();
        poll.registry().register(&mut bell, mio::Token(3), mio::Interest::READABLE).unwrap();
        assert!(!bell.drain());
        let hand = Doorbell::from_fd(bell.as_fd().try_clone_to_owned().unwrap());
        std::thread::spawn(move || hand.ring());
        poll.poll(&mut events, None).unwrap();
        assert_eq!(events.iter().next().map(|e| e.token()), Some(mio::Token(3)));
        assert!(bell.drain() && !bell.drain());
    }
}
