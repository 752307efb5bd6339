//! One process of a run: its engine, its program, its clock.

use std::collections::BTreeSet;

use phalanx_core::engine::Engine;
use phalanx_core::ids::{DomainId, MemberId, Rank};
use phalanx_core::policy::Policy;
use phalanx_core::view::MemberInfo;
use phalanx_core::wire::message::{Downward, Upward};

use super::clock::Clock;
use super::{CONTROL_DELAY_US_MAX, Event, World};
use crate::driver::Executor;
use crate::sim::caller::Caller;
use crate::sim::net::SimTransport;
use crate::sim::scenario::Fault;
use crate::sim::timeline::{Place, What};

/// Every turn of a slow process comes so much late.
const SLOW_US: u64 = 3_000;

pub(super) struct Member {
    pub(super) executor: Executor<SimTransport>,
    pub(super) caller: Caller,
    pub(super) clock: Clock,
    /// The seat it was started for.
    pub(super) wants: Option<Rank>,
    pub(super) host: u64,
    pub(super) domain: DomainId,
    pub(super) alive: bool,
    pub(super) stopped: bool,
    /// Its turns come late until then.
    pub(super) slow_until_us: u64,
    /// Earliest turn that is queued.
    pub(super) turn_us: u64,
    /// Turns that are queued, in the swarm. In the earlier draws a member forgets a turn that is behind another one,
    /// and sleeps until its next beat: kept, because seeds are kept that depend on it.
    pub(super) turns: BTreeSet<u64>,
    pub(super) up_us: u64,
    pub(super) down_us: u64,
    /// The number of its control connection; odd: it was cut. What was under way on an older one is lost.
    pub(super) connection: u32,
    /// Its program computes until then and calls nothing.
    pub(super) busy_until_us: u64,
    /// Results it had before this turn.
    pub(super) completed_before: u32,
    /// What came while it was stopped.
    pub(super) unread: Vec<Downward>,
}

impl Member {
    pub(super) fn is_cut(&self) -> bool {
        self.connection % 2 == 1
    }
}

impl World {
    pub(super) fn add_member(&mut self, wants: Option<Rank>) {
        let member = MemberId(self.next_member);
        self.next_member += 1;
        let of_rank = |rank: u64| rank / u64::from(self.scenario.ranks_per_host);
        let host = match wants {
            Some(rank) => of_rank(u64::from(rank.0)),
            None if self.scenario.shares_hosts => {
                of_rank(member.0 % u64::from(self.scenario.rules.world_size))
            }
            None => 1000 + member.0,
        };
        let clock = Clock::draw(self.scenario.drift_ppm_max, &mut self.random);
        let domain = DomainId(host);
        let info = MemberInfo { member, host, domain, tcp: None, shm: None, pid: member.0 as u32, wants };
        let engine = Engine::new(info, clock.ms(self.now_us));
        let transport = SimTransport::new(member, self.net.clone());
        let mut executor = Executor::new(engine, transport);
        if let Some(messages) = self.scenario.pause_at {
            executor.set_pause_at(messages);
        }
        let caller = Caller::new(member, &self.scenario);
        let member_state = Member {
            executor,
            caller,
            clock,
            wants,
            host,
            domain,
            alive: true,
            stopped: false,
            slow_until_us: 0,
            turn_us: u64::MAX,
            turns: BTreeSet::new(),
            up_us: 0,
            down_us: 0,
            connection: 0,
            busy_until_us: 0,
            completed_before: 0,
            unread: Vec::new(),
        };
        self.members.insert(member, member_state);
        self.tell_of(member, || What::Starts(wants));
        self.wake(member, self.now_us);
    }

    pub(super) fn wake(&mut self, member: MemberId, time_us: u64) {
        let time_us = time_us.max(self.now_us);
        let Some(m) = self.members.get_mut(&member).filter(|m| m.alive) else { return };
        let time_us = time_us + if time_us < m.slow_until_us { SLOW_US } else { 0 };
        let is_new = if self.scenario.is_swarm { m.turns.insert(time_us) } else { time_us < m.turn_us };
        if is_new {
            m.turn_us = m.turn_us.min(time_us);
            self.at(time_us, Event::Turn(member));
        }
    }

    /// A message of the coordinator arrives; a stopped process reads it when it goes on.
    pub(super) fn deliver(&mut self, to: MemberId, connection: u32, message: Downward) {
        let (now_us, is_lost) = (self.now_us, |m: &Member| m.connection != connection);
        if self.members.get(&to).is_some_and(is_lost) {
            self.tell_arrival(Place::Coordinator, self.place(to), || What::Lost);
            return;
        }
        let reads = |m: &Member| m.alive && !m.stopped && !matches!(message, Downward::BeatSeen { .. });
        if self.members.get(&to).is_some_and(reads) {
            self.tell_arrival(Place::Coordinator, self.place(to), || What::Down(Box::new(message.clone())));
        }
        if let Some(m) = self.members.get_mut(&to).filter(|m| m.alive) {
            if m.stopped {
                m.unread.push(message);
                return;
            }
            m.executor.engine.handle_message(message, m.clock.ms(now_us));
        }
        self.look_at(to);
        self.wake(to, self.now_us);
    }

    /// A message to a coordinator that is away waits in the sender's connection attempt.
    pub(super) fn requeue_up(&mut self, from: MemberId, connection: u32, message: Box<Upward>) {
        if !matches!(*message, Upward::Beat { .. }) && !self.is_leaderless_for_good {
            self.at(self.now_us + 500, Event::Up(from, connection, message));
            // It is under way since it was sent first.
            self.queued_us.pop();
            self.queued_us.push(self.sent_us);
        }
    }

    pub(super) fn turn(&mut self, member: MemberId) {
        let now_us = self.now_us;
        let Some(m) = self.members.get_mut(&member) else { return };
        if m.turn_us > now_us || !m.alive {
            return;
        }
        m.turns.remove(&now_us);
        m.turn_us = m.turns.first().copied().unwrap_or(u64::MAX);
        if m.stopped {
            return;
        }
        self.run_program(member);
        let Some(m) = self.members.get_mut(&member) else { return };
        let mut up = Vec::new();
        while let Some(message) = m.executor.engine.poll_message() {
            m.up_us = m.up_us.max(now_us + 1 + self.random.below(CONTROL_DELAY_US_MAX));
            if !m.is_cut() {
                up.push((m.up_us, message));
            }
        }
        let (connection, busy_until_us) = (m.connection, m.busy_until_us);
        let next = m.executor.engine.poll_timeout().map(|ms| m.clock.at_us(ms));
        let over = m.caller.gone;
        let spoiled = if m.executor.engine.phase().is_moving() {
            m.caller.spoiled_input(&m.executor.engine)
        } else {
            None
        };
        // A step has at most four ops and a commit; without steps they are kept until the watermark of a beat.
        let ops_max = 5 * if self.scenario.rules.policy == Policy::Replace { 2 } else { 3 };
        self.checks.kept(member, m.executor.engine.ops_kept(), m.executor.logged_bytes(), ops_max);
        let (rank_now, completed) = (m.executor.engine.rank(), m.caller.completed);
        let is_due = |r: &(u32, u32, u32)| rank_now == Some(Rank(r.0)) && completed >= r.1;
        let due = self.scenario.after_release.filter(is_due);
        self.look_at(member);
        if let Some((rank, _, count)) = due {
            self.scenario.after_release = None;
            self.strike(Fault::KillRun(rank, count));
        }
        if let Some(text) = spoiled {
            self.checks.report(text);
        }
        for (at, message) in up {
            self.at(at, Event::Up(member, connection, Box::new(message)));
        }
        self.spring_traps(member);
        if busy_until_us > now_us {
            self.wake(member, busy_until_us);
        }
        if let Some(at) = next.filter(|_| !over) {
            self.wake(member, at.max(now_us + 1000));
        }
    }

    /// Executor and program in turn, until neither has anything to do.
    fn run_program(&mut self, member: MemberId) {
        let now_us = self.now_us;
        let Some(m) = self.members.get_mut(&member) else { return };
        let now = m.clock.ms(now_us);
        m.executor.engine.handle_timeout(now);
        loop {
            let mut moved = m.executor.turn();
            while let Some(notice) = m.executor.poll_notice() {
                moved = true;
                m.caller.handle(notice, &mut m.executor, &self.scenario, &mut self.checks);
            }
            if now_us >= m.busy_until_us
                && m.caller.act(&mut m.executor, &self.scenario, &mut self.checks, now)
            {
                moved = true;
                if self.scenario.think_us_max > 0 {
                    m.busy_until_us = now_us + self.random.below(self.scenario.think_us_max);
                }
            }
            if !moved {
                break;
            }
        }
    }
}
