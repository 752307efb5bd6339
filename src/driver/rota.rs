//! Who drives, who waits, who sleeps; and why nobody who sleeps is forgotten.
//!
//! One thread at a time holds the token and so may touch the engine; one at a time lies in the bed, where all that can
//! happen wakes it: links, the control connection, the bell. Five things must never be slept through:
//!
//! | what happens | how the sleeper learns of it |
//! |---|---|
//! | a message, room, a word of the coordinator | `arm`, under the token, looks again; what comes then wakes the bed |
//! | a kick: an op is posted that nobody waits for | it says that it sleeps, then looks at the count of kicks |
//! | a caller begins to wait, and wants the bed | the same with the count of waiters |
//! | another caller drives for one that sleeps | it looks who sleeps, under the token or just after it, and rings |
//! | the wait is over that the background thread stands aside for | the same with the count of waits that are over |
//!
//! The counts are changed and looked at by read-modify-write, and those of one word stand in one order. So whoever
//! counts first is seen by the sleeper, and whoever counts after it sees the sleeper and rings. Nothing here needs a
//! fence, and a caller that waits pays for one addition. The model at the end of the file runs this very code.

use std::sync::TryLockError;
use std::time::Duration;

use crate::sync::Ordering;
use crate::sync::local::{AtomicU64, Mutex, MutexGuard};

/// Values of [`Rota::asleep`].
const NOBODY: u64 = 0;
const BACKGROUND: u64 = 1;
const CALLER: u64 = 2;

/// Who goes to bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The background thread, which leaves the bed to a caller that waits.
    Background,
    /// A caller that waits.
    Caller,
}

/// Number of kicks at some moment, to be taken before the last look for work: a later kick forbids sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kicks(u64);

/// The token over `T`, the bed `B`, and the counts.
#[derive(Debug)]
pub(super) struct Rota<T, B> {
    token: Mutex<T>,
    bed: Mutex<B>,
    /// Who lies in the bed, or is about to; written by the holder of the bed only.
    asleep: AtomicU64,
    /// Callers inside a wait.
    waiters: AtomicU64,
    kicks: AtomicU64,
    /// Counts the waits that are over: the background thread stays away while it moves.
    driven: AtomicU64,
    /// Not zero: the background thread sleeps until a wait is over, or is about to.
    aside: AtomicU64,
}

impl<T, B> Rota<T, B> {
    pub(super) fn new(token: T, bed: B) -> Self {
        Self {
            token: Mutex::new(token),
            bed: Mutex::new(bed),
            asleep: AtomicU64::new(NOBODY),
            waiters: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            driven: AtomicU64::new(0),
            aside: AtomicU64::new(0),
        }
    }

    /// The token, waiting for it: for what a call has to say to the engine. Its holder gives it back at the latest when
    /// it has nothing to do.
    ///
    /// # Panics
    /// When a thread panicked while it drove: what the op in flight has is unknown, the process must end.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.token.lock().expect("the driver panicked: end this process, a spare takes its rank")
    }

    /// The token, if nobody has it: to drive.
    ///
    /// # Panics
    /// As [`Self::lock`].
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.token.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => {
                panic!("the driver panicked: end this process, a spare takes its rank")
            }
        }
    }

    /// A caller begins to wait. True: ring, the background thread sleeps where the caller may want to.
    #[must_use]
    pub(super) fn enter(&self) -> bool {
        self.waiters.fetch_add(1, Ordering::AcqRel);
        self.asleep.load(Ordering::Relaxed) == BACKGROUND
    }

    /// The wait is over. True: wake the background thread, it stands aside.
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        // In this order: who sees that the wait is over sees one waiter less.
        self.waiters.fetch_sub(1, Ordering::AcqRel);
        self.driven.fetch_add(1, Ordering::AcqRel);
        self.aside.load(Ordering::Relaxed) != 0
    }

    /// Whoever drives has taken what a caller in the bed would have woken for. True, once a sleep: ring, there is
    /// one. To be asked under the token, or after giving it back: who arms later looks again.
    #[must_use]
    pub(super) fn wake_caller(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) == CALLER
            && self.asleep.compare_exchange(CALLER, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The background thread sleeps for as long as nobody leaves a wait; `seen` is what [`Self::driven`] said.
    pub(super) fn stand_aside(&self, seen: u64, sleep: impl FnOnce()) {
        self.aside.store(1, Ordering::Relaxed);
        if self.driven.fetch_add(0, Ordering::AcqRel) == seen {
            sleep();
        }
        self.aside.store(0, Ordering::Relaxed);
    }

    /// Whether a caller waits. May be out of date; what depends on it is decided in [`Self::rest`].
    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Acquire) > 0
    }

    /// Waits that are over.
    pub(super) fn driven(&self) -> u64 {
        self.driven.load(Ordering::Acquire)
    }

    /// Kicks so far.
    pub(super) fn kicks(&self) -> Kicks {
        Kicks(self.kicks.load(Ordering::Acquire))
    }

    /// There is work that nobody waits for; it was posted under the token. True: ring, somebody sleeps.
    #[must_use]
    pub(super) fn kick(&self) -> bool {
        self.kicks.fetch_add(1, Ordering::AcqRel);
        self.asleep.load(Ordering::Relaxed) != NOBODY
    }

    /// Goes to bed, unless there is a reason not to, and comes out again. `seen` was taken before the last look for
    /// work. `arm`, under the token, says how long to sleep at most, or that something is there already; `disarm`
    /// follows, under the token too, once awake. False: the bed is another's.
    pub(super) fn rest(
        &self,
        who: Who,
        seen: Kicks,
        arm: impl FnOnce(&mut T) -> Option<Duration>,
        sleep: impl FnOnce(&mut B, Duration),
        disarm: impl FnOnce(&mut T),
    ) -> bool {
        // A bed that somebody panicked in is no bed: the token tells what to do about that.
        let Ok(mut bed) = self.bed.try_lock() else { return false };
        self.asleep.store(if who == Who::Background { BACKGROUND } else { CALLER }, Ordering::Relaxed);
        // Reads of the newest value, which release the word above to whoever counts next.
        let is_kicked = Kicks(self.kicks.fetch_add(0, Ordering::AcqRel)) != seen;
        let is_wanted = who == Who::Background && self.waiters.fetch_add(0, Ordering::AcqRel) > 0;
        if !is_kicked
            && !is_wanted
            && let Some(timeout) = self.try_lock().and_then(|mut inner| arm(&mut inner))
        {
            sleep(&mut bed, timeout);
            self.asleep.store(NOBODY, Ordering::Relaxed);
            // Still with the bed in hand: a thread that arms next must not have its announcement taken back by this
            // one, it would sleep through what peers then do not ring for. If the token is taken, its holder is awake,
            // and links that stay armed only ring too often.
            if let Some(mut inner) = self.try_lock() {
                disarm(&mut inner);
            }
        } else {
            self.asleep.store(NOBODY, Ordering::Relaxed);
        }
        drop(bed);
        true
    }
}

#[cfg(all(test, phalanx_loom))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::sync::Park;

    /// What the token covers here: an op is posted, and run by whoever drives.
    #[derive(Default)]
    struct Desk {
        is_posted: bool,
        is_run: bool,
    }

    struct Process {
        rota: Rota<Desk, ()>,
        /// Rung once, it ends this sleep or the next one, as the doorbell in the poll does. No timeout ever comes.
        bell: Park,
    }

    impl Process {
        fn new() -> Arc<Self> {
            Arc::new(Self { rota: Rota::new(Desk::default(), ()), bell: Park::new() })
        }

        fn rest(&self, who: Who, seen: Kicks) {
            // As in the driver: who arms looks again.
            let armed = |desk: &mut Desk| (!desk.is_run).then_some(Duration::MAX);
            let sleep = |(): &mut (), _| assert!(self.bell.park(None));
            if !self.rota.rest(who, seen, armed, sleep, |_| {}) {
                thread::yield_now(); // In the driver a short sleep.
            }
        }

        /// Drives and sleeps until the op has run, as the loops of `waiting.rs` do.
        fn drive(&self, who: Who) {
            loop {
                let seen = self.rota.kicks();
                let Some(mut desk) = self.rota.try_lock() else {
                    thread::yield_now();
                    continue;
                };
                desk.is_run |= desk.is_posted;
                if desk.is_run {
                    return;
                }
                drop(desk);
                self.rest(who, seen);
            }
        }

        fn post(&self) {
            self.rota.lock().is_posted = true;
            if self.rota.kick() {
                self.bell.unpark();
            }
        }
    }

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// A kick that is slept through is a deadlock of the model.
    fn kick(who: Who) {
        check(move || {
            let process = Process::new();
            let poster = Arc::clone(&process);
            let thread = thread::spawn(move || poster.post());
            process.drive(who);
            thread.join().unwrap();
        });
    }

    #[test]
    fn no_kick_of_the_background_thread_is_lost() {
        kick(Who::Background);
    }

    #[test]
    fn no_kick_of_a_caller_that_sleeps_for_both_is_lost() {
        kick(Who::Caller);
    }

    /// The caller stays in its wait until the background thread is out of the bed: one that sleeps on is a deadlock.
    #[test]
    fn the_background_thread_leaves_the_bed_to_a_caller() {
        check(|| {
            let process = Process::new();
            let sleeper = Arc::clone(&process);
            let thread = thread::spawn(move || {
                while !sleeper.rota.has_waiters() {
                    sleeper.rest(Who::Background, sleeper.rota.kicks());
                }
            });
            if process.rota.enter() {
                process.bell.unpark();
            }
            thread.join().unwrap();
            assert!(!process.rota.leave());
        });
    }

    #[test]
    fn the_background_thread_that_stands_aside_hears_of_the_end_of_the_wait() {
        check(|| {
            let process = Process::new();
            assert!(!process.rota.enter());
            let aside = Arc::clone(&process);
            let thread = thread::spawn(move || {
                while aside.rota.driven() == 0 {
                    aside.rota.stand_aside(0, || assert!(aside.bell.park(None)));
                }
                assert!(!aside.rota.has_waiters(), "it would stand aside for nobody");
            });
            if process.rota.leave() {
                process.bell.unpark();
            }
            thread.join().unwrap();
        });
    }

    /// One caller sleeps; another one takes what would have woken it from under it, and goes.
    #[test]
    fn a_caller_in_bed_hears_of_what_another_one_drove() {
        check(|| {
            let process = Process::new();
            let other = Arc::clone(&process);
            let thread = thread::spawn(move || {
                assert!(!other.rota.enter());
                other.rota.lock().is_run = true;
                if other.rota.wake_caller() {
                    other.bell.unpark();
                }
                assert!(!other.rota.leave());
            });
            assert!(!process.rota.enter());
            process.drive(Who::Caller);
            assert!(!process.rota.leave());
            thread.join().unwrap();
        });
    }

    /// A caller drives and sleeps, the background thread looks in, a third thread posts.
    #[test]
    fn two_sleepers_and_a_kick() {
        check(|| {
            let process = Process::new();
            let (poster, other) = (Arc::clone(&process), Arc::clone(&process));
            let posting = thread::spawn(move || poster.post());
            let background = thread::spawn(move || other.rest(Who::Background, other.rota.kicks()));
            if process.rota.enter() {
                process.bell.unpark();
            }
            process.drive(Who::Caller);
            assert!(!process.rota.leave());
            // The background thread may have gone to bed after all waiting was over; leaving rings.
            process.bell.unpark();
            posting.join().unwrap();
            background.join().unwrap();
        });
    }
}
