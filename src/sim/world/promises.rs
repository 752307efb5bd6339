//! What is looked at over all members: holders, the budget of losses, rest, the end.

use std::collections::BTreeSet;

use phalanx_core::bitmap::Bitmap;
use phalanx_core::coordinator::Coordinator;
use phalanx_core::engine::{Engine, Op};
use phalanx_core::ids::{ChunkId, DomainId, MemberId, OpId};
use phalanx_core::plan::Spread;
use phalanx_core::policy::Policy;

use super::World;
use super::member::Member;
use crate::sim::checkers::{Part, deadline_us, hang, orphan};
use crate::sim::timeline::{Place, What};

impl World {
    /// The promise counts losses from the first one until every op that was in flight is complete everywhere again.
    pub(super) fn renew_budget(&mut self) {
        let Some(c) = self.coordinator.as_ref().filter(|c| c.is_steady()) else { return };
        let whole = |m: &MemberId| {
            self.members.get(m).is_some_and(|m| {
                // What it has heard it has also acted on.
                let is_up_to_date = m.alive && !m.stopped && m.turn_us > self.now_us;
                is_up_to_date && m.executor.engine.epoch() == c.epoch() && m.executor.engine.is_whole_again()
            })
        };
        let is_whole = self.losses > 0 && c.view().seats.iter().flatten().all(whole);
        if is_whole && self.checks.whole_again() {
            self.tell(Place::World, || What::IsWhole);
        }
    }

    /// I9: at rest nothing is kept. Under policies without steps the last ops wait for the watermark of a beat.
    pub(super) fn check_rest(&mut self) {
        let replace = self.scenario.rules.policy == Policy::Replace;
        if !replace || self.losses > 0 || self.checks.ended.1 > 0 || self.scenario.odd.is_some() {
            return;
        }
        for m in self.members.values().filter(|m| m.alive && m.caller.error.is_none()) {
            let x = &m.executor;
            self.checks.kept_at_rest(x.engine.me(), x.engine.ops_kept(), x.logged_bytes());
        }
    }

    /// I4, now and then, while no fence is open and no more is lost than promised.
    pub(super) fn check_holders(&mut self) {
        let s = &self.scenario;
        let calm = self.coordinator.as_ref().filter(|c| c.is_steady());
        let (Some(c), true) =
            (calm, self.count.is_multiple_of(s.holders_every) && !s.unretained && s.odd.is_none())
        else {
            return;
        };
        let seated = || c.view().seats.iter().flatten().filter_map(|m| self.members.get(m));
        let dead: BTreeSet<DomainId> = seated().filter(|m| !m.alive).map(|m| m.domain).collect();
        let live: Vec<&Engine> = seated().filter(|m| m.alive).map(|m| &m.executor.engine).collect();
        let ready = live.iter().all(|e| e.epoch() == c.view().epoch && e.phase().is_moving());
        if !ready || !self.checks.is_within(&dead, s.rules.domains_lost_max) {
            return;
        }
        let ids: BTreeSet<OpId> = live.iter().flat_map(|e| e.op_ids()).collect();
        let bad = ids.into_iter().find_map(|id| {
            let ops: Vec<&Op> = live.iter().filter_map(|e| e.op(id)).collect();
            let skip = |o: &&Op| o.failed.is_some() || o.plan.spread == Spread::Single;
            let first = ops.first()?;
            let differ = ops.iter().any(|o| o.attempt != first.attempt || o.group != first.group);
            if differ || ops.iter().any(skip) {
                return None;
            }
            let parts: Vec<Part> = ops.iter().filter(|o| o.posted).map(|o| part(o)).collect();
            orphan(id, &parts)
        });
        if let Some(text) = bad {
            self.checks.report(text);
        }
    }

    /// Says that the run hangs, if it does.
    pub(super) fn check_liveness(&mut self) {
        let trouble_us = self.scenario.is_swarm.then_some(self.trouble_us);
        let deadline_us = deadline_us(&self.scenario.rules, trouble_us);
        let Some(text) = hang(self.now_us, deadline_us, self.still) else { return };
        let stuck = self.members.values().filter(|m| m.alive && !m.caller.gone);
        let stuck: Vec<String> = stuck.map(|m| m.executor.engine.waits_for()).collect();
        let (untaken, coordinator) = (self.net.borrow().untaken(), &self.coordinator);
        let text = format!("{text}: {stuck:?} {untaken:?} {coordinator:?}");
        self.checks.report(text);
    }

    pub(super) fn is_over(&self) -> bool {
        let ended = |m: &Member| {
            let never_joined = m.executor.engine.rules().is_none();
            !m.alive || m.stopped || m.caller.gone || self.is_leaderless_for_good && never_joined
        };
        let is_led_to_the_end = self.coordinator.as_ref().is_some_and(Coordinator::is_finished);
        (is_led_to_the_end || self.is_leaderless_for_good) && self.members.values().all(ended)
    }
}

fn part(op: &Op) -> Part {
    let row = op.report();
    let chunks = op.plan.chunks.len() as u32;
    let mut due = Bitmap::empty(chunks);
    (0..chunks).map(ChunkId).filter(|c| op.plan.is_due(*c, op.place)).for_each(|c| due.insert(c));
    let rank = op.group.get(op.place.index()).copied().unwrap_or_default();
    Part { rank, due, held: row.held.expand(chunks), lost: row.lost.expand(chunks), done: row.done }
}
