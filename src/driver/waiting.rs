//! Who drives when, and how a driver that finds nothing to do waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use super::{Driver, Inner, Ticket};
use crate::transport::Transport;

/// Turns without progress before the core is yielded after each. Where ranks share a core, the one that is waited for
/// runs no sooner than the one that waits gives the core up; where they do not, a yield returns at once.
const SPINS: u32 = 2;
/// Yields without progress before the driver parks.
const YIELDS: u32 = 100;
/// A caller that cannot drive looks again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// The background thread stays away for so long after a caller has driven.
const STAY_AWAY: Duration = Duration::from_millis(2);

impl Driver {
    /// Drives, or lets another thread drive, until `done` says what came out.
    pub(super) fn wait_until<R>(
        &self,
        ticket: Option<&Ticket>,
        mut done: impl FnMut(&mut Inner) -> Option<R>,
    ) -> R {
        self.waiters.fetch_add(1, Ordering::AcqRel);
        if self.parked.load(Ordering::Acquire) {
            self.bell.ring(); // The background thread leaves the poll to this one.
        }
        let result = loop {
            if let Some(mut inner) = self.try_lock() {
                if let Some(result) = self.drive(&mut inner, &mut done) {
                    break result;
                }
                drop(inner);
                self.park();
                continue;
            }
            match ticket {
                Some(ticket) => {
                    ticket.park.park(Some(LOOK_AGAIN));
                    if ticket.is_over()
                        && let Some(mut inner) = self.try_lock()
                        && let Some(result) = done(&mut inner)
                    {
                        break result;
                    }
                }
                None => std::thread::yield_now(),
            }
        };
        self.driven.fetch_add(1, Ordering::Release);
        self.waiters.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Turns until `done`, or until nothing has moved for a while (`None`: time to park, links are armed).
    fn drive<R>(&self, inner: &mut Inner, done: &mut impl FnMut(&mut Inner) -> Option<R>) -> Option<R> {
        let mut idle = 0;
        loop {
            if let Some(result) = done(inner) {
                return Some(result);
            }
            if inner.turn(self.started) {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
            } else if idle < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                return None;
            }
        }
    }

    /// Sleeps until something happens. The token is free meanwhile.
    fn park(&self) {
        let mut poll = match self.poll.try_lock() {
            Ok(poll) => poll,
            // Another thread sleeps there: it will wake for both.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {
                std::thread::sleep(LOOK_AGAIN);
                return;
            }
        };
        let timeout = {
            let Some(mut inner) = self.try_lock() else { return };
            if !inner.executor.transport.arm() {
                inner.executor.transport.disarm();
                return;
            }
            inner.park_for(self.started)
        };
        let mut events = mio::Events::with_capacity(64);
        // An interrupted poll is a short one.
        let _interrupted = poll.poll(&mut events, Some(timeout));
        self.bell.drain();
        // Still with the poll in hand: a thread that arms next must not have its announcement taken back by this one,
        // it would sleep through what peers then do not ring for. If the token is taken, its holder is awake, and links
        // that stay armed only ring too often.
        if let Some(mut inner) = self.try_lock() {
            inner.executor.transport.disarm();
        }
        drop(poll);
    }

    pub(super) fn run_background(self: &Arc<Self>) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Acquire) {
            let driven = self.driven.load(Ordering::Acquire);
            if self.waiters.load(Ordering::Acquire) > 0 || driven != seen {
                seen = driven;
                self.background.park(Some(STAY_AWAY));
                continue;
            }
            if Arc::strong_count(self) == 1 {
                return; // Nobody is left to drive for.
            }
            let Some(mut inner) = self.try_lock() else {
                std::thread::yield_now();
                continue;
            };
            let mut moved = false;
            while inner.turn(self.started) {
                moved = true;
                if self.waiters.load(Ordering::Acquire) > 0 {
                    break;
                }
            }
            drop(inner);
            if moved || self.waiters.load(Ordering::Acquire) > 0 {
                continue;
            }
            self.parked.store(true, Ordering::Release);
            if self.waiters.load(Ordering::Acquire) == 0 {
                self.park();
            }
            self.parked.store(false, Ordering::Release);
        }
    }

    /// An op was started that nobody waits for yet: the background thread takes it on.
    pub fn kick(&self) {
        self.background.unpark();
        if self.parked.load(Ordering::Acquire) {
            self.bell.ring();
        }
    }
}
