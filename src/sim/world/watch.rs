//! Writes the timeline, where one is asked for: what is told, and what shows in a member after its turn. It reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use phalanx_core::ids::{Epoch, MemberId, OpId, Rank};

use super::World;
use crate::sim::sweep::panic_in_words;
use crate::sim::timeline::{Entry, Link, Place, Timeline, What};

/// What a member showed when it was looked at last.
#[derive(Debug, Default)]
struct Seen {
    epoch: Epoch,
    rank: Option<Rank>,
    committed: u64,
    done: BTreeSet<OpId>,
}

/// The timeline of a run, and what is needed to write it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) timeline: Timeline,
    seen: BTreeMap<MemberId, Seen>,
}

impl World {
    /// Where a member is, for the timeline.
    pub(super) fn place(&self, member: MemberId) -> Place {
        Place::Member(member, self.members.get(&member).and_then(|m| m.executor.engine.rank()))
    }

    /// Something happens at a place.
    pub(super) fn tell(&mut self, place: Place, what: impl FnOnce() -> What) {
        let time_us = self.now_us;
        if let Some(watch) = &mut self.watch {
            watch.timeline.entries.push(Entry { time_us, place, link: None, what: what() });
        }
    }

    /// What was told last has not happened.
    pub(super) fn untell(&mut self) {
        self.watch.iter_mut().for_each(|watch| drop(watch.timeline.entries.pop()));
    }

    /// Something happens at a member.
    pub(super) fn tell_of(&mut self, member: MemberId, what: impl FnOnce() -> What) {
        if self.watch.is_some() {
            self.tell(self.place(member), what);
        }
    }

    /// The message of the event that is handled now comes from one place to another.
    pub(super) fn tell_arrival(&mut self, from: Place, place: Place, what: impl FnOnce() -> What) {
        let (time_us, link) = (self.now_us, Some(Link { from, sent_us: self.sent_us }));
        if let Some(watch) = &mut self.watch {
            watch.timeline.entries.push(Entry { time_us, place, link, what: what() });
        }
    }

    /// What a member's program did and what shows in its engine now.
    pub(super) fn look_at(&mut self, member: MemberId) {
        let Some(m) = self.members.get(&member).filter(|_| self.watch.is_some()) else { return };
        let engine = &m.executor.engine;
        let now = Seen {
            epoch: engine.epoch(),
            rank: engine.rank(),
            committed: engine.committed(),
            done: engine.op_ids().filter(|id| engine.op(*id).is_some_and(|o| o.done)).collect(),
        };
        let waits = |id: &OpId| engine.op(*id).filter(|o| !o.released).map(|o| (*id, o.plan.chunks.len()));
        let place = Place::Member(member, now.rank);
        let time_us = self.now_us;
        let Some(watch) = &mut self.watch else { return };
        let before = watch.seen.remove(&member).unwrap_or_default();
        let mut whats = Vec::new();
        if now.epoch != before.epoch && now.rank.is_some() {
            whats.push(What::Enters(now.epoch, now.rank.filter(|_| before.rank.is_none())));
        }
        whats.extend(self.checks.told.iter_mut().flat_map(|t| t.drain(..)));
        whats.extend(now.done.difference(&before.done).filter_map(waits).map(|(id, n)| What::Has(id, n)));
        if now.committed > before.committed && before.rank.is_some() {
            whats.push(What::Commits(now.committed));
        }
        let entries = whats.into_iter().map(|what| Entry { time_us, place, link: None, what });
        watch.timeline.entries.extend(entries);
        watch.seen.insert(member, now);
    }

    /// Runs to the end or to a panic, which is a violation like others: what led there is to be told.
    pub(super) fn run_caught(&mut self) {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| self.run())) {
            self.checks.report(panic_in_words(&*cause));
        }
    }

    /// The timeline, if one was written.
    pub(super) fn take_timeline(&mut self) -> Option<Timeline> {
        let violations: Vec<String> = self.checks.violations().to_vec();
        for text in violations {
            self.tell(Place::World, || What::Breaks(text));
        }
        let mut timeline = self.watch.take()?.timeline;
        timeline.data = self.net.borrow_mut().take_data();
        Some(timeline)
    }
}
