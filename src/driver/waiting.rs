//! Who drives when, and how a driver that finds nothing to do waits.

use std::sync::Arc;
use std::time::Duration;

use super::rota::{Kicks, Who};
use super::{Driver, Inner, Ticket};
use crate::sync::Ordering;

/// Turns without progress before the core is yielded after each. Where ranks share a core, the one that is waited for
/// runs no sooner than the one that waits gives the core up; where they do not, a yield returns at once.
const SPINS: u32 = 2;
/// Yields without progress before the driver parks. Where it was a timeout that ended its sleep there are none: whoever
/// waits long is woken many times for nothing.
const YIELDS: u32 = 100;
/// A caller that cannot drive looks again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// The background thread stays away for so long after a caller has driven, or while one does.
const STAY_AWAY: Duration = Duration::from_millis(2);
/// It stands aside for so long at most while the same callers wait: their leaving wakes it.
const STAND_ASIDE: Duration = Duration::from_secs(1);

impl Driver {
    /// Drives, or lets another thread drive, until `done` says what came out.
    pub(super) fn wait_until<R>(
        &self,
        ticket: Option<&Ticket>,
        mut done: impl FnMut(&mut Inner) -> Option<R>,
    ) -> R {
        if self.rota.enter() {
            self.bell.ring(); // The background thread leaves the poll to this one.
        }
        let mut yields = YIELDS;
        let result = loop {
            let kicks = self.rota.kicks();
            if let Some(mut inner) = self.rota.try_lock() {
                if let Some(result) = self.drive(&mut inner, yields, &mut done) {
                    break result;
                }
                drop(inner);
                let mut result = None;
                let is_woken = self.park(Who::Caller, kicks, |inner| {
                    // Another caller may have ended this wait meanwhile, and be gone.
                    result = done(inner);
                    result.is_some()
                });
                if let Some(result) = result {
                    break result;
                }
                yields = if is_woken { YIELDS } else { 0 };
                continue;
            }
            match ticket {
                Some(ticket) => {
                    ticket.park.park(Some(LOOK_AGAIN));
                    if ticket.is_over()
                        && let Some(mut inner) = self.rota.try_lock()
                        && let Some(result) = done(&mut inner)
                    {
                        break result;
                    }
                }
                None => std::thread::yield_now(),
            }
        };
        // What is still to be sent is left to whoever sleeps.
        self.wake_caller();
        if self.rota.leave() {
            self.background.unpark();
        }
        result
    }

    fn wake_caller(&self) {
        if self.rota.wake_caller() {
            self.bell.ring();
        }
    }

    /// Turns until `done`, or until nothing has moved for a while (`None`: time to park, links are armed).
    fn drive<R>(
        &self,
        inner: &mut Inner,
        yields: u32,
        done: &mut impl FnMut(&mut Inner) -> Option<R>,
    ) -> Option<R> {
        let mut idle = 0;
        loop {
            if let Some(result) = done(inner) {
                return Some(result);
            }
            if inner.turn(self.started) {
                idle = 0;
                self.wake_caller();
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
            } else if idle < SPINS + yields {
                std::thread::yield_now();
            } else {
                return None;
            }
        }
    }

    /// Sleeps until something happens, or until the next timeout: false. The token is free meanwhile.
    /// `is_over`, a last look under the token: there is nothing to sleep for.
    fn park(&self, who: Who, seen: Kicks, mut is_over: impl FnMut(&mut Inner) -> bool) -> bool {
        let mut is_timeout = false;
        let sleep = |poll: &mut mio::Poll, timeout| {
            let mut events = mio::Events::with_capacity(64);
            // An interrupted poll is a short one.
            let _interrupted = poll.poll(&mut events, Some(timeout));
            is_timeout = events.is_empty();
            self.bell.drain();
        };
        let arm = |inner: &mut Inner| if is_over(inner) { None } else { inner.arm(self.started) };
        if !self.rota.rest(who, seen, arm, sleep, Inner::disarm) {
            // Another thread sleeps there: it will wake for both.
            std::thread::sleep(LOOK_AGAIN);
            return false;
        }
        !is_timeout
    }

    pub(super) fn run_background(self: &Arc<Self>) {
        let (mut seen, mut is_same_wait) = (0, false);
        while !self.stop.load(Ordering::Acquire) {
            let driven = self.rota.driven();
            let is_waited = self.rota.has_waiters();
            if is_waited && driven == seen && is_same_wait {
                // A long wait: to look in again and again would cost a part of a core.
                self.rota.stand_aside(seen, || {
                    self.background.park(Some(STAND_ASIDE));
                });
                continue;
            }
            is_same_wait = is_waited && driven == seen;
            if is_waited || driven != seen {
                seen = driven;
                self.background.park(Some(STAY_AWAY));
                continue;
            }
            if Arc::strong_count(self) == 1 {
                return; // Nobody is left to drive for.
            }
            let kicks = self.rota.kicks();
            let Some(mut inner) = self.rota.try_lock() else {
                std::thread::yield_now();
                continue;
            };
            let mut moved = false;
            while inner.turn(self.started) {
                moved = true;
                if self.rota.has_waiters() {
                    break;
                }
            }
            drop(inner);
            if !moved && !self.rota.has_waiters() {
                self.park(Who::Background, kicks, |_| false);
            }
        }
    }

    /// An op was started that nobody waits for yet: the background thread takes it on, or the caller that sleeps in the
    /// poll.
    pub fn kick(&self) {
        if self.rota.kick() {
            self.bell.ring();
        }
        self.background.unpark();
    }
}
