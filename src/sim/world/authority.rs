//! The coordinator of a run, its store, and what they say.

use std::collections::BTreeSet;

use phalanx_core::coordinator::{Coordinator, Record, WorldEvent};
use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::MemberId;
use phalanx_core::policy::Policy;

use super::clock::Clock;
use super::{CONTROL_DELAY_US_MAX, Event, World};
use crate::sim::coverage::Phase;
use crate::sim::scenario::Fault;
use crate::sim::timeline::{Place, What};

impl World {
    pub(super) fn run_coordinator(&mut self) {
        let Some(c) = &mut self.coordinator else { return };
        let mut out = Vec::new();
        let mut writes = Vec::new();
        let mut events = Vec::new();
        while let Some(message) = c.poll_message() {
            out.push(message);
        }
        while let Some(record) = c.poll_store() {
            writes.push(record);
        }
        while let Some(event) = c.poll_event() {
            events.push(event);
        }
        let due = c.poll_timeout().map_or(u64::MAX, |ms| self.coordinator_clock.at_us(ms));
        for (to, message) in out {
            let delay = 1 + self.random.below(CONTROL_DELAY_US_MAX);
            if let Some(m) = self.members.get_mut(&to) {
                m.down_us = m.down_us.max(self.now_us + delay);
                let (at, connection) = (m.down_us, m.connection);
                if !m.is_cut() {
                    self.at(at, Event::Down(to, connection, Box::new(message)));
                }
            }
        }
        let is_refused = writes.into_iter().any(|record| !self.write(record));
        for event in events {
            self.observe(&event);
        }
        if is_refused {
            self.spare_unwritten();
        }
        if !is_refused && due < self.coordinator_due {
            self.coordinator_due = due;
            self.at(due, Event::Coordinator);
        }
    }

    fn observe(&mut self, event: &WorldEvent) {
        self.follow(event);
        let text = format!("{event:?}");
        self.trace = fnv1a(self.trace.to_le_bytes().into_iter().chain(text.bytes()));
        if !matches!(event, WorldEvent::Reached(..)) {
            self.tell(Place::Coordinator, || What::Tells(Box::new(event.clone())));
        }
        match event {
            WorldEvent::Lost(loss) => {
                self.losses += 1;
                self.declared.insert(loss.member);
                self.checks.lost(loss.member);
                let domain = self.members.get(&loss.member).map(|m| m.domain).unwrap_or_default();
                self.checks.domain_lost(domain, self.scenario.rules.domains_lost_max);
            }
            WorldEvent::Decided(decision) => {
                self.recoveries += u64::from(decision.view.epoch.0 > 1);
                self.checks.decided(decision);
            }
            WorldEvent::Unrecoverable(why) => {
                // No promise can hold for a view that lies in as few domains as may be lost.
                let seats = self.coordinator.iter().flat_map(|c| c.view().seats.iter().flatten());
                let domains: BTreeSet<_> =
                    seats.filter_map(|m| self.members.get(m)).map(|m| m.domain).collect();
                let is_promised = domains.len() > self.scenario.rules.domains_lost_max as usize;
                if self.scenario.is_swarm && self.scenario.odd.is_none() && is_promised {
                    self.checks.given_up(why);
                }
            }
            WorldEvent::SpareMissing(_) if self.random.chance(50) => {
                let at = self.now_us + self.random.below(3_000_000);
                self.at(at, Event::NewSpare);
            }
            WorldEvent::Formed
            | WorldEvent::Fenced(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::Finished
            | WorldEvent::SpareReady(_) => {}
        }
    }

    /// Gives a record to the store, one write after the other, as its owner makes them. False: the store refused it,
    /// and the coordinator is gone.
    fn write(&mut self, record: Record) -> bool {
        self.spring_aims_at_write();
        if let Some(is_made) = self.store_refuses.take() {
            let phase = self.phase();
            self.hit(Fault::RefusingStore(is_made), phase);
            if is_made {
                self.pending_writes.push_back(record);
                self.land_writes(self.pending_writes.len());
            }
            self.end_coordinator();
            return false;
        }
        let mut takes_us = self.random.below(500);
        if let Some(ms) = self.store_takes_ms.take() {
            let phase = self.phase();
            self.hit(Fault::SlowStore(ms), phase);
            takes_us = u64::from(ms) * 1_000;
        }
        self.stored_us = self.stored_us.max(self.now_us + takes_us);
        self.pending_writes.push_back(record.clone());
        self.at(self.stored_us, Event::Stored(self.coordinators, Box::new(record)));
        true
    }

    /// The first so many writes under way become durable.
    fn land_writes(&mut self, count: usize) {
        if let Some(record) = self.pending_writes.drain(..count).next_back() {
            self.store = Some(record);
        }
    }

    /// A write of the so manieth coordinator becomes durable.
    pub(super) fn stored(&mut self, coordinator: u64, record: &Record) {
        if coordinator != self.coordinators && self.scenario.is_swarm {
            return; // It died; which of its writes were made was drawn then.
        }
        self.pending_writes.pop_front();
        let decided = record.decision.as_ref().map(|d| d.view.epoch);
        self.tell_arrival(Place::Coordinator, Place::Store, || What::Stored(record.epoch, decided));
        self.store = Some(record.clone());
        if let Some(c) = &mut self.coordinator {
            c.handle_stored(record, self.coordinator_clock.ms(self.now_us));
        }
    }

    /// The coordinator dies. What it had under way to the store is made up to some write, and none after it.
    fn lose_coordinator(&mut self) -> bool {
        if self.coordinator.take().is_none() {
            return false;
        }
        self.tell(Place::Coordinator, || What::Dies);
        if self.scenario.is_swarm {
            let made = self.random.below(self.pending_writes.len() as u64 + 1) as usize;
            self.land_writes(made);
            self.pending_writes.clear();
            self.stored_us = self.now_us;
            self.spare_unwritten();
        }
        true
    }

    /// What was declared and not written does not bind: nobody but the dead coordinator knew of it.
    fn spare_unwritten(&mut self) {
        let declared = std::mem::take(&mut self.declared);
        let is_written = |m: &MemberId| self.store.as_ref().is_some_and(|record| record.former.contains(m));
        for member in declared.into_iter().filter(|m| !is_written(m)) {
            self.checks.not_lost(member);
        }
    }

    /// The coordinator dies, and another takes its place after a while. False: there is none.
    pub(super) fn end_coordinator(&mut self) -> bool {
        if !self.lose_coordinator() {
            return false;
        }
        let lease_us = self.scenario.rules.lease_ms * 1_000;
        let longest = if self.scenario.is_swarm {
            self.random.pick(&[1_000, 60_000, lease_us * 2, 3_000_000])
        } else {
            60_000
        };
        let at = self.now_us + self.random.between(100, longest);
        self.trouble_until(at);
        self.at(at, Event::CoordinatorBack);
        true
    }

    /// The coordinator dies for good. False: there is none.
    pub(super) fn end_coordinator_for_good(&mut self) -> bool {
        let is_hit = self.lose_coordinator();
        self.is_leaderless_for_good |= is_hit;
        is_hit
    }

    pub(super) fn restart_coordinator(&mut self) {
        if self.coordinator.is_some() || self.is_leaderless_for_good {
            return;
        }
        self.coordinator_clock = Clock::draw(self.scenario.drift_ppm_max, &mut self.random);
        self.coordinators += 1;
        self.tell(Place::Coordinator, || What::IsBack);
        // If nothing was written, the world forms afresh from whoever comes.
        let now = self.coordinator_clock.ms(self.now_us);
        self.coordinator = Some(Coordinator::new(self.scenario.rules.clone(), self.store.clone(), now));
        self.coordinator_due = u64::MAX;
        let alive: Vec<_> = self.members.iter().filter(|(_, m)| m.alive).map(|(id, _)| *id).collect();
        for member in alive {
            if let Some(m) = self.members.get_mut(&member) {
                m.executor.engine.handle_connected();
            }
            self.wake(member, self.now_us);
        }
    }

    /// Where the world stands.
    pub(super) fn phase(&self) -> Phase {
        use phalanx_core::coordinator::Phase as Of;
        let Some(c) = &self.coordinator else { return Phase::Leaderless };
        match c.phase() {
            Of::Forming => Phase::Forming,
            Of::Deciding if c.epoch().0 <= 1 => Phase::Forming,
            Of::Declaring | Of::Fencing => Phase::Fencing,
            Of::Vacant { .. } => Phase::Vacant,
            Of::Deciding => Phase::Deciding,
            Of::Steady | Of::Finished if !c.is_steady() && !c.is_finished() => Phase::Leaderless,
            Of::Steady | Of::Finished => self.phase_of_members(c),
        }
    }

    fn phase_of_members(&self, c: &Coordinator) -> Phase {
        let seated = || c.view().seats.iter().flatten().filter_map(|m| self.members.get(m));
        let mut is_repairing = false;
        let replaces = self.scenario.rules.policy == Policy::Replace;
        for (engine, is_alive) in seated().map(|m| (&m.executor.engine, m.alive)) {
            let is_seated_unheard = replaces && engine.rank().is_none();
            if c.epoch().0 > 1 && (engine.is_newcomer() || is_seated_unheard) {
                return Phase::Reseating;
            }
            is_repairing |=
                is_alive && c.epoch().0 > 1 && (engine.epoch() < c.epoch() || !engine.is_whole_again());
        }
        if is_repairing { Phase::Repairing } else { Phase::Steady }
    }
}
