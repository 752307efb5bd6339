//! What goes wrong in a run: faults at a time, after what a member did, at a moment of a recovery.

use std::collections::BTreeSet;

use phalanx_core::coordinator::Phase::Forming;
use phalanx_core::coordinator::WorldEvent;
use phalanx_core::engine::{Engine, Op};
use phalanx_core::ids::{MemberId, Rank};
use phalanx_core::spec::Collective;
use phalanx_core::view::View;
use phalanx_core::wire::message::{Downward, Milestone};

use super::{Event, World};
use crate::sim::coverage::{Cell, Phase};
use crate::sim::scenario::{Fault, Moment, Trap, When};
use crate::sim::timeline::{Place, What};

/// How long it takes until a rank that is lost before the world formed is started again.
pub(super) const REFILL_US: u64 = 20_000;

impl World {
    /// Traps that what `member` did in its turn springs.
    pub(super) fn spring_traps(&mut self, member: MemberId) {
        if self.scenario.traps.is_empty() {
            return;
        }
        let Some(m) = self.members.get(&member) else { return };
        let engine = &m.executor.engine;
        let Some(rank) = engine.rank() else { return };
        let midway = |o: &Op| o.posted && !o.done && o.held.count() > 0;
        let is_midway = engine.op_ids().filter_map(|id| engine.op(id)).any(midway);
        let (epoch, completed) = (engine.epoch().0, m.caller.completed);
        let has_result = completed > m.completed_before;
        let is_ahead = has_result && self.is_ahead(member, engine);
        let sprung = |t: &Trap| {
            epoch >= t.epoch_min
                && match t.when {
                    When::Result(results) => has_result && completed >= results,
                    When::Ahead => has_result && is_ahead,
                    When::Midway => is_midway,
                }
        };
        let due: Vec<Trap> = self.scenario.traps.extract_if(.., |t| sprung(t)).collect();
        if let Some(m) = self.members.get_mut(&member) {
            m.completed_before = completed;
        }
        for trap in due {
            self.tell_of(member, || What::Springs(trap));
            let fault = self.scenario.counted_from(trap.fault, rank);
            self.at(self.now_us + trap.after_us, Event::Fault(fault));
        }
    }

    fn is_ahead(&self, member: MemberId, engine: &Engine) -> bool {
        let others = || self.members.iter().filter(|(id, m)| **id != member && m.alive);
        let given_back = |o: &&Op| o.released && !o.retained && !o.logged && o.failed.is_none();
        let mut ops = engine.op_ids().filter_map(|id| engine.op(id)).filter(given_back);
        ops.any(|op| others().any(|(_, m)| m.executor.engine.op(op.id).is_some_and(|o| !o.done)))
    }

    /// The second death of the scenario, once the recovery has got so far.
    pub(super) fn follow(&mut self, event: &WorldEvent) {
        let Some((moment, rank)) = self.scenario.follow else { return };
        let now = match event {
            WorldEvent::Lost(_) => moment == Moment::Declared,
            WorldEvent::Fenced(_) => moment == Moment::Fenced,
            WorldEvent::Decided(d) => moment == Moment::Decided && d.view.epoch.0 > 1,
            WorldEvent::Reached(_, _, Milestone::StateHeld {}) => moment == Moment::StateHeld,
            WorldEvent::Reached(_, _, Milestone::Replayed {}) => moment == Moment::Replayed,
            WorldEvent::Formed
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::Finished
            | WorldEvent::Unrecoverable(_)
            | WorldEvent::SpareReady(_) => false,
        };
        if now {
            self.scenario.follow = None;
            let at = self.now_us + self.random.below(400);
            self.at(at, Event::Fault(Fault::KillRank(rank)));
        }
    }

    /// False: there was nothing for it to strike, or it waits for the next write.
    pub(super) fn strike(&mut self, fault: Fault) -> bool {
        let phase = self.phase();
        let ops = self.ops_in_flight();
        self.tell(Place::World, || What::Strikes(fault));
        let is_hit = self.is_hit_by(fault);
        if !is_hit && self.scenario.is_swarm && !fault.is_of_store() {
            self.untell();
        }
        if is_hit {
            self.count_strike(fault, phase, &ops);
            self.trouble_until(self.now_us);
            if phase == Phase::Forming && self.scenario.is_swarm {
                self.at(self.now_us + REFILL_US, Event::Refill);
            }
        }
        is_hit
    }

    /// Makes the fault happen. False: there was nothing for it to strike, or it waits for the next write.
    fn is_hit_by(&mut self, fault: Fault) -> bool {
        let view = self.seats_now();
        let seat = |rank: u32| view.occupant(Rank(rank));
        match fault {
            Fault::KillRank(rank) => seat(rank).is_some_and(|member| self.kill(member)),
            Fault::KillHolder => self.lowest_holder(&view).is_some_and(|member| self.kill(member)),
            Fault::KillNewcomer => self.lowest_newcomer(&view).is_some_and(|member| self.kill(member)),
            Fault::KillRun(first, count) => {
                let n = self.scenario.rules.world_size;
                let run: Vec<_> = (0..count.min(n)).filter_map(|i| seat((first + i) % n)).collect();
                run.into_iter().filter(|member| self.kill(*member)).count() > 0
            }
            Fault::KillSpare(index) => {
                let known = self.coordinator.as_ref().map(|c| c.spares().to_vec());
                let unknown = || if self.scenario.is_swarm { self.unseated() } else { Vec::new() };
                let spares = known.unwrap_or_else(unknown);
                spares.get(index as usize).copied().is_some_and(|member| self.kill(member))
            }
            Fault::KillHost(host) => {
                let lost = self.members_of(u64::from(host), &view);
                lost.into_iter().filter(|member| self.kill(*member)).count() > 0
            }
            Fault::Stop(rank) => seat(rank).is_some_and(|member| self.stop(member)),
            Fault::Slow(rank, ms) => seat(rank).is_some_and(|member| self.slow_down(member, ms)),
            Fault::Cut(rank) => seat(rank).is_some_and(|member| self.cut(member)),
            Fault::Mute(rank, ms) => {
                seat(rank).is_some_and(|member| self.hold_control(member, ms, (true, false)))
            }
            Fault::Deaf(rank, ms) => {
                seat(rank).is_some_and(|member| self.hold_control(member, ms, (false, true)))
            }
            Fault::BreakLink(one, two) => self.net.borrow_mut().break_links(&view, Rank(one), Rank(two)),
            Fault::Flap(one, two) => self.flap(&view, one, two),
            Fault::LinkDown(one, two, ms) => self.take_link_down(&view, (one, two), ms),
            Fault::OneWay(one, two, ms) => self.hold_one_way(&view, (one, two), ms),
            Fault::Suspect(one, two) => self.suspect(&view, one, two),
            Fault::Partition(first, count, ms) => self.split_off(&view, (first, count), ms),
            Fault::RestartCoordinator => self.end_coordinator(),
            Fault::LoseCoordinator => self.end_coordinator_for_good(),
            Fault::SlowStore(ms) => {
                self.store_takes_ms = Some(ms);
                false
            }
            Fault::RefusingStore(is_made) => {
                self.store_refuses = Some(is_made);
                false
            }
        }
    }

    /// Counts a strike that was made at a write.
    pub(super) fn hit(&mut self, fault: Fault, phase: Phase) {
        let ops = self.ops_in_flight();
        self.count_strike(fault, phase, &ops);
        self.trouble_until(self.now_us);
        if phase == Phase::Forming {
            self.at(self.now_us + REFILL_US, Event::Refill);
        }
    }

    fn count_strike(&mut self, fault: Fault, phase: Phase, ops: &BTreeSet<Collective>) {
        let (policy, fault) = (self.scenario.rules.policy, fault.kind());
        self.strikes += 1;
        if ops.is_empty() {
            self.coverage.push(Cell { policy, phase, fault, op: None });
        }
        self.coverage.extend(ops.iter().map(|op| Cell { policy, phase, fault, op: Some(*op) }));
    }

    /// Kinds of op that some live rank knows of and has not got.
    fn ops_in_flight(&self) -> BTreeSet<Collective> {
        let engines = || self.members.values().filter(|m| m.alive).map(|m| &m.executor.engine);
        let open = engines().flat_map(|e| e.op_ids().filter_map(|id| e.op(id)).chain(e.state_op()));
        open.filter(|o| !o.done && o.failed.is_none()).map(|o| o.spec.collective).collect()
    }

    /// Faults meant for where the world stands now. One that finds nothing to strike waits for the next chance.
    pub(super) fn spring_aims(&mut self) {
        let Some(fault) = self.aim_met().filter(|fault| !fault.is_of_store()) else { return };
        if self.strike(fault) {
            self.scenario.aims.remove(0);
        }
    }

    /// The fault of the next aim, if the world stands where it is meant to strike and has done so often enough.
    fn aim_met(&mut self) -> Option<Fault> {
        let aim = self.scenario.aims.first().copied()?;
        if self.phase() != aim.phase {
            return None;
        }
        let ops = self.ops_in_flight();
        if !aim.op.map_or(ops.is_empty(), |op| ops.contains(&op)) {
            return None;
        }
        if let Some(aim) = self.scenario.aims.first_mut().filter(|aim| aim.skip > 0) {
            aim.skip -= 1;
            return None;
        }
        Some(aim.fault)
    }

    /// Faults meant for a write of this kind.
    pub(super) fn spring_aims_at_write(&mut self) {
        if !self.scenario.aims.first().is_some_and(|aim| aim.fault.is_of_store()) {
            return;
        }
        if let Some(fault) = self.aim_met() {
            self.scenario.aims.remove(0);
            self.strike(fault);
        }
    }

    /// From here on nothing is known to go wrong.
    pub(super) fn trouble_until(&mut self, time_us: u64) {
        self.trouble_us = self.trouble_us.max(time_us);
    }

    /// A rank that was lost before the world formed is started again, as whoever starts ranks does.
    pub(super) fn refill(&mut self) {
        let forms = self.coordinator.as_ref().is_none_or(|c| c.phase() == Forming);
        if !forms || self.is_leaderless_for_good {
            return;
        }
        let ranks = (0..self.scenario.rules.world_size).map(Rank);
        let waits =
            |rank: &Rank| self.members.values().any(|m| m.alive && !m.caller.gone && m.wants == Some(*rank));
        for rank in ranks.filter(|rank| !waits(rank)).collect::<Vec<_>>() {
            self.add_member(Some(rank));
        }
        self.at(self.now_us + REFILL_US, Event::Refill);
    }

    /// All who sit on a host; in the swarm its spares too.
    fn members_of(&self, host: u64, view: &View) -> Vec<MemberId> {
        if self.scenario.is_swarm {
            let on = self.members.iter().filter(|(_, m)| m.alive && m.host == host);
            return on.map(|(member, _)| *member).collect();
        }
        let on = view.members.iter().filter(|i| i.host == host && view.rank_of(i.member).is_some());
        on.map(|i| i.member).collect()
    }

    /// Who lives and has no seat: the spares of a world without a coordinator.
    fn unseated(&self) -> Vec<MemberId> {
        let spares = self.members.iter().filter(|(_, m)| m.alive && m.executor.engine.rank().is_none());
        spares.map(|(member, _)| *member).collect()
    }

    fn lowest_newcomer(&self, view: &View) -> Option<MemberId> {
        let is_new = |m: &MemberId| {
            self.members.get(m).is_some_and(|m| {
                let engine = &m.executor.engine;
                m.alive && (engine.is_newcomer() || engine.rank().is_none())
            })
        };
        view.seats.iter().flatten().copied().filter(|_| view.epoch.0 > 1).find(is_new)
    }

    /// The live occupant of the lowest rank that has a chunk of an op which another live one wants and has not.
    fn lowest_holder(&self, view: &View) -> Option<MemberId> {
        let live = || view.seats.iter().flatten().filter(|m| self.members.get(m).is_some_and(|m| m.alive));
        let ops_of = |m: &MemberId| {
            let engine = self.members.get(m).map(|m| &m.executor.engine);
            engine.into_iter().flat_map(|e| e.op_ids().filter_map(|id| e.op(id)))
        };
        let wants = |op: &Op, chunk| {
            let of = |m: &MemberId| self.members.get(m).and_then(|m| m.executor.engine.op(op.id));
            let waits = |o: &Op| !(o.done || self.scenario.is_swarm && o.failed.is_some());
            live().filter_map(of).any(|o| waits(o) && !o.held.has(chunk) && o.plan.is_due(chunk, o.place))
        };
        live().copied().find(|m| ops_of(m).any(|op| op.held.iter().any(|chunk| wants(op, chunk))))
    }

    /// Who sits where; while the coordinator is away, what it wrote last.
    fn seats_now(&self) -> View {
        let written = || self.store.as_ref().and_then(|r| r.decision.as_ref()).map(|d| d.view.clone());
        match &self.coordinator {
            Some(c) => c.view().clone(),
            None if self.scenario.is_wide() => written().unwrap_or_default(),
            None => View::default(),
        }
    }

    /// A control connection that was cut is open again.
    pub(super) fn reconnect(&mut self, member: MemberId) {
        self.tell_of(member, || What::IsConnected);
        if let Some(m) = self.members.get_mut(&member).filter(|m| m.is_cut()) {
            m.connection += 1;
            m.unread.clear();
            m.executor.engine.handle_connected();
        }
        self.wake(member, self.now_us);
    }

    /// A stopped process goes on, and reads what came meanwhile.
    pub(super) fn go_on(&mut self, member: MemberId) {
        self.tell_of(member, || What::GoesOn);
        let now_us = self.now_us;
        let Some(m) = self.members.get_mut(&member) else { return };
        m.stopped = false;
        for message in std::mem::take(&mut m.unread) {
            if !matches!(message, Downward::BeatSeen { .. }) {
                self.tell_of(member, || What::Down(Box::new(message.clone())));
            }
            if let Some(m) = self.members.get_mut(&member) {
                m.executor.engine.handle_message(message, m.clock.ms(now_us));
            }
        }
        self.wake(member, self.now_us);
    }

    /// False: it was dead already.
    fn kill(&mut self, member: MemberId) -> bool {
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive) else { return false };
        m.alive = false;
        self.net.borrow_mut().kill(member);
        let at = self.now_us + self.random.below(2_000);
        self.at(at, Event::Exit(member));
        self.tell_of(member, || What::Dies);
        true
    }
}
