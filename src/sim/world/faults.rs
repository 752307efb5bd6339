//! What goes wrong in a run: faults at a time, after what a member did, at a moment of a recovery.

use phalanx_core::coordinator::{Coordinator, WorldEvent};
use phalanx_core::engine::{Engine, Op};
use phalanx_core::ids::{MemberId, Rank};
use phalanx_core::view::View;
use phalanx_core::wire::message::{Downward, Milestone};

use super::{Event, World};
use crate::sim::scenario::{Fault, Moment, Trap, When};
use crate::sim::timeline::{Place, What};

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

    pub(super) fn strike(&mut self, fault: Fault) {
        self.tell(Place::World, || What::Strikes(fault));
        let view = self.seats_now();
        match fault {
            Fault::KillRank(rank) => {
                if let Some(member) = view.occupant(Rank(rank)) {
                    self.kill(member);
                }
            }
            Fault::KillHolder => {
                if let Some(member) = self.lowest_holder(&view) {
                    self.kill(member);
                }
            }
            Fault::KillRun(first, count) => {
                let n = self.scenario.rules.world_size;
                let run = (0..count.min(n)).filter_map(|i| view.occupant(Rank((first + i) % n)));
                for member in run.collect::<Vec<_>>() {
                    self.kill(member);
                }
            }
            Fault::KillSpare(index) => {
                let spare = self.coordinator.as_ref().and_then(|c| c.spares().get(index as usize).copied());
                if let Some(member) = spare {
                    self.kill(member);
                }
            }
            Fault::KillHost(host) => {
                let lost: Vec<MemberId> = view
                    .members
                    .iter()
                    .filter(|i| i.host == u64::from(host) && view.rank_of(i.member).is_some())
                    .map(|i| i.member)
                    .collect();
                for member in lost {
                    self.kill(member);
                }
            }
            Fault::Stop(rank) => {
                if let Some(member) = view.occupant(Rank(rank)) {
                    if let Some(m) = self.members.get_mut(&member) {
                        m.stopped = true;
                    }
                    self.tell_of(member, || What::Stops);
                    let at = self.now_us + 1000 * self.random.between(20, 400);
                    self.at(at, Event::Wake(member));
                }
            }
            Fault::Cut(rank) => {
                let Some(member) = view.occupant(Rank(rank)) else { return };
                if let Some(m) = self.members.get_mut(&member).filter(|m| m.alive && !m.is_cut()) {
                    m.connection += 1;
                    let at = self.now_us + 1000 * self.random.between(1, 400);
                    self.at(at, Event::Reconnect(member));
                    self.tell_of(member, || What::IsCut);
                }
            }
            Fault::BreakLink(one, two) => self.net.borrow_mut().break_links(&view, Rank(one), Rank(two)),
            Fault::RestartCoordinator => {
                if self.coordinator.take().is_some() {
                    let at = self.now_us + self.random.between(100, 60_000);
                    self.at(at, Event::CoordinatorBack);
                    self.tell(Place::Coordinator, || What::Dies);
                }
            }
        }
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
            live().filter_map(of).any(|o| !o.done && !o.held.has(chunk) && o.plan.is_due(chunk, o.place))
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
        let now = self.now_us / 1000;
        let Some(m) = self.members.get_mut(&member) else { return };
        m.stopped = false;
        for message in std::mem::take(&mut m.unread) {
            if !matches!(message, Downward::BeatSeen { .. }) {
                self.tell_of(member, || What::Down(Box::new(message.clone())));
            }
            if let Some(m) = self.members.get_mut(&member) {
                m.executor.engine.handle_message(message, now);
            }
        }
        self.wake(member, self.now_us);
    }

    fn kill(&mut self, member: MemberId) {
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive) else { return };
        m.alive = false;
        self.net.borrow_mut().kill(member);
        let at = self.now_us + self.random.below(2_000);
        self.at(at, Event::Exit(member));
        self.tell_of(member, || What::Dies);
    }

    pub(super) fn restart_coordinator(&mut self) {
        let now = self.now_us / 1000;
        self.tell(Place::Coordinator, || What::IsBack);
        if self.store.is_none() {
            // It had written nothing: the world forms afresh from whoever comes.
            self.coordinator = Some(Coordinator::new(self.scenario.rules.clone(), None, now));
        } else {
            self.coordinator = Some(Coordinator::new(self.scenario.rules.clone(), self.store.clone(), now));
        }
        self.coordinator_due = u64::MAX;
        let alive: Vec<MemberId> = self.members.iter().filter(|(_, m)| m.alive).map(|(id, _)| *id).collect();
        for member in alive {
            if let Some(m) = self.members.get_mut(&member) {
                m.executor.engine.handle_connected();
            }
            self.wake(member, self.now_us);
        }
    }
}
