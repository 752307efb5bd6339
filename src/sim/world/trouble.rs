//! The faults that leave everybody alive: links, connections and processes that work badly for a while.

use phalanx_core::ids::{MemberId, Rank};
use phalanx_core::view::View;

use super::{Event, World};
use crate::sim::scenario::Fault;
use crate::sim::timeline::What;

impl World {
    pub(super) fn stop(&mut self, member: MemberId) -> bool {
        let Some(m) = self.members.get_mut(&member) else { return false };
        m.stopped = true;
        let is_hit = m.alive;
        let at = self.now_us + 1000 * self.random.between(20, 400);
        self.trouble_until(at);
        self.at(at, Event::Wake(member));
        self.tell_of(member, || What::Stops);
        is_hit
    }

    pub(super) fn slow_down(&mut self, member: MemberId, ms: u32) -> bool {
        let until = self.now_us + u64::from(ms) * 1_000;
        self.trouble_until(until);
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive) else { return false };
        m.slow_until_us = until;
        true
    }

    /// The control connection breaks; it is open again after a while.
    pub(super) fn cut(&mut self, member: MemberId) -> bool {
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive && !m.is_cut()) else { return false };
        m.connection += 1;
        let at = self.now_us + 1000 * self.random.between(1, 400);
        self.trouble_until(at);
        self.at(at, Event::Reconnect(member));
        self.tell_of(member, || What::IsCut);
        true
    }

    /// What a member says to the coordinator, what it is told, or both stay under way for so long.
    pub(super) fn hold_control(&mut self, member: MemberId, ms: u32, (up, down): (bool, bool)) -> bool {
        let until = self.now_us + u64::from(ms) * 1_000;
        self.trouble_until(until);
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive) else { return false };
        m.up_us = m.up_us.max(if up { until } else { 0 });
        m.down_us = m.down_us.max(if down { until } else { 0 });
        true
    }

    /// The links break now and some times more.
    pub(super) fn flap(&mut self, view: &View, one: u32, two: u32) -> bool {
        if !self.net.borrow_mut().break_links(view, Rank(one), Rank(two)) {
            return false;
        }
        let mut at = self.now_us;
        for _ in 0..self.random.between(2, 6) {
            at += 1_000 * self.random.pick(&[1, 20, 300, 600]);
            self.at(at, Event::Fault(Fault::BreakLink(one, two)));
        }
        self.trouble_until(at);
        true
    }

    pub(super) fn disturb_link(&mut self, fault: Fault, view: &View) -> bool {
        let (one, two, ms) = match fault {
            Fault::LinkDown(one, two, ms) | Fault::OneWay(one, two, ms) => (one, two, ms),
            Fault::Suspect(one, two) => (one, two, 0),
            _ => return false,
        };
        let (Some(from), Some(to)) = (view.occupant(Rank(one)), view.occupant(Rank(two))) else {
            return false;
        };
        let is_live = |m| self.members.get(m).is_some_and(|m| m.alive);
        if from == to || !is_live(&from) || !is_live(&to) {
            return false;
        }
        let until = self.now_us + u64::from(ms) * 1_000;
        self.trouble_until(until);
        if matches!(fault, Fault::Suspect(..)) {
            self.net.borrow_mut().suspect(from, to);
        } else if matches!(fault, Fault::LinkDown(..)) {
            self.net.borrow_mut().take_down(from, to, until);
            self.net.borrow_mut().break_links(view, Rank(one), Rank(two));
        } else {
            self.net.borrow_mut().hold(from, to, until);
            if self.random.chance(50) {
                // The sender gives up: nobody acknowledges what it sends.
                self.at(until, Event::Fault(Fault::BreakLink(one, two)));
            }
        }
        true
    }

    /// Ranks in a row are split from all other members and from the coordinator.
    pub(super) fn split_off(&mut self, view: &View, (first, count): (u32, u32), ms: u32) -> bool {
        let n = self.scenario.rules.world_size;
        let far: Vec<MemberId> = (0..count).filter_map(|i| view.occupant(Rank((first + i) % n))).collect();
        let until = self.now_us + u64::from(ms) * 1_000;
        let near: Vec<MemberId> = self.members.keys().copied().filter(|m| !far.contains(m)).collect();
        for (one, other) in far.iter().flat_map(|f| near.iter().map(move |n| (*f, *n))) {
            self.net.borrow_mut().hold(one, other, until);
            self.net.borrow_mut().hold(other, one, until);
        }
        far.into_iter().filter(|member| self.hold_control(*member, ms, (true, true))).count() > 0
    }
}
