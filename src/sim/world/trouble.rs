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

    /// The first takes its link with the second for broken.
    pub(super) fn suspect(&mut self, view: &View, one: u32, two: u32) -> bool {
        let Some((at, other)) = self.two_live(view, one, two) else { return false };
        self.net.borrow_mut().suspect(at, other);
        true
    }

    /// The links break, and new ones too for so long.
    pub(super) fn take_link_down(&mut self, view: &View, (one, two): (u32, u32), ms: u32) -> bool {
        let Some((from, to)) = self.two_live(view, one, two) else { return false };
        let until = self.now_us + u64::from(ms) * 1_000;
        self.trouble_until(until);
        self.net.borrow_mut().take_down(from, to, until);
        self.net.borrow_mut().break_links(view, Rank(one), Rank(two));
        true
    }

    /// What the first sends to the second stays under way for so long; then it arrives, or the sender has given up.
    pub(super) fn hold_one_way(&mut self, view: &View, (one, two): (u32, u32), ms: u32) -> bool {
        let Some((from, to)) = self.two_live(view, one, two) else { return false };
        let until = self.now_us + u64::from(ms) * 1_000;
        self.trouble_until(until);
        self.net.borrow_mut().hold(from, to, until);
        if self.random.chance(50) {
            self.at(until, Event::Fault(Fault::BreakLink(one, two)));
        }
        true
    }

    /// The live occupants of two ranks.
    fn two_live(&self, view: &View, one: u32, two: u32) -> Option<(MemberId, MemberId)> {
        let (one, two) = (view.occupant(Rank(one))?, view.occupant(Rank(two))?);
        let is_live = |m| self.members.get(m).is_some_and(|m| m.alive);
        (one != two && is_live(&one) && is_live(&two)).then_some((one, two))
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
