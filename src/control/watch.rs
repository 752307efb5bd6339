//! What a caller's thread may see of the coordinator: the latest snapshot and the events so far.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Epoch;
use phalanx_core::view::View;

/// Events kept for [`super::ServerHandle::wait_event`]; who comes later than that misses the oldest.
const EVENTS_KEPT: usize = 4096;

/// The coordinator at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The last decided view; before the first one, the seats taken so far.
    pub view: View,
    /// The epoch in force or being decided.
    pub epoch: Epoch,
    /// No fence is open and none is due.
    pub is_steady: bool,
    /// Spares that stand by.
    pub spares: usize,
    /// Process ids of watched children that have joined and are alive.
    pub joined: Vec<u32>,
    /// Why the server stopped, once it has.
    pub stopped: Option<String>,
}

/// An event and when the coordinator saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Position in the order of events, from 0.
    pub number: u64,
    /// Milliseconds since the server started.
    pub at_ms: u64,
    /// What happened.
    pub event: WorldEvent,
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    events: VecDeque<Seen>,
    next: u64,
}

/// Shared by the owner task, which writes, and handles, which read.
#[derive(Clone, Default)]
pub(super) struct Watch {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, a panic elsewhere cannot leave it half changed.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, snapshot: Snapshot) {
        let mut state = self.state();
        if state.snapshot != snapshot {
            state.snapshot = snapshot;
            self.shared.1.notify_all();
        }
    }

    pub(super) fn stop(&self, why: String) {
        let mut state = self.state();
        state.snapshot.stopped.get_or_insert(why);
        self.shared.1.notify_all();
    }

    pub(super) fn push(&self, at_ms: u64, event: WorldEvent) {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.events.len() == EVENTS_KEPT {
            state.events.pop_front();
        }
        state.events.push_back(Seen { number, at_ms, event });
        self.shared.1.notify_all();
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.state().snapshot.clone()
    }

    pub(super) fn events_seen(&self) -> u64 {
        self.state().next
    }

    /// Waits until `find` answers, the server stops, or the time is over.
    fn wait<T>(&self, within: Duration, mut find: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let until = Instant::now() + within;
        let mut state = self.state();
        loop {
            if let Some(found) = find(&state) {
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.snapshot.stopped.is_some() {
                return None;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn wait_until(
        &self,
        within: Duration,
        mut is_met: impl FnMut(&Snapshot) -> bool,
    ) -> Option<Snapshot> {
        self.wait(within, |state| is_met(&state.snapshot).then(|| state.snapshot.clone()))
    }

    pub(super) fn wait_event(
        &self,
        from: u64,
        within: Duration,
        mut is_wanted: impl FnMut(&WorldEvent) -> bool,
    ) -> Option<Seen> {
        self.wait(within, |state| {
            state.events.iter().find(|seen| seen.number >= from && is_wanted(&seen.event)).cloned()
        })
    }
}
