//! One run: members, coordinator, store and faults on one virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use phalanx_core::bitmap::Bitmap;
use phalanx_core::coordinator::{Coordinator, Record, WorldEvent};
use phalanx_core::engine::{Engine, Op};
use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::{ChunkId, DomainId, MemberId, OpId, Rank};
use phalanx_core::plan::Spread;
use phalanx_core::policy::Policy;
use phalanx_core::view::MemberInfo;
use phalanx_core::wire::Wire;
use phalanx_core::wire::message::{Downward, Upward};

use super::caller::Caller;
use super::checkers::{Checkers, Part, orphan};
use super::net::{Net, SharedNet, SimTransport};
use super::random::Random;
use super::scenario::{Fault, Scenario};
use super::timeline::{Place, Timeline, What};
use crate::driver::Executor;

mod faults;
mod watch;

#[derive(Debug)]
enum Event {
    Turn(MemberId),
    /// From or to a member, on its so manieth control connection.
    Up(MemberId, u32, Box<Upward>),
    Down(MemberId, u32, Box<Downward>),
    Stored(Box<Record>),
    Coordinator,
    Exit(MemberId),
    Fault(Fault),
    Wake(MemberId),
    CoordinatorBack,
    Reconnect(MemberId),
    NewSpare,
}

struct Member {
    executor: Executor<SimTransport>,
    caller: Caller,
    domain: DomainId,
    alive: bool,
    stopped: bool,
    /// Earliest turn that is queued.
    turn_us: u64,
    up_us: u64,
    down_us: u64,
    /// The number of its control connection; odd: it was cut. What was under way on an older one is lost.
    connection: u32,
    /// Its program computes until then and calls nothing.
    busy_until_us: u64,
    /// Results it had before this turn.
    completed_before: u32,
    /// What came while it was stopped.
    unread: Vec<Downward>,
}

impl Member {
    fn is_cut(&self) -> bool {
        self.connection % 2 == 1
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What broke a property; empty in a good run.
    pub violations: Vec<String>,
    /// Ops that ended with a result, over all members.
    pub completed: u64,
    /// Ops that ended with an error.
    pub failed: u64,
    /// Members declared dead.
    pub losses: u64,
    /// Decisions after the first.
    pub recoveries: u64,
    /// Hash of all that happened: the same for the same seed.
    pub trace: u64,
    /// What happened, if asked for.
    pub timeline: Timeline,
    /// Some op completed over fewer ranks than its communicator has.
    pub shrunk: bool,
    /// Hash of the result of each op at each rank.
    pub results: BTreeMap<(phalanx_core::ids::OpId, Rank), u64>,
}

/// Virtual time after which a run that has not ended hangs (I8).
const DEADLINE_US: u64 = 60_000_000;
/// Events at one instant after which nothing but the same will come (I8).
const STILL_MAX: u64 = 100_000;
const CONTROL_DELAY_US_MAX: u64 = 300;

struct World {
    scenario: Scenario,
    net: SharedNet,
    random: Random,
    coordinator: Option<Coordinator>,
    store: Option<Record>,
    stored_us: u64,
    members: BTreeMap<MemberId, Member>,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Event>>,
    /// When each event was queued, by slot; of the one that is handled now.
    queued_us: Vec<u64>,
    sent_us: u64,
    now_us: u64,
    /// Events at this instant.
    still: u64,
    count: u64,
    checks: Checkers,
    trace: u64,
    watch: Option<Box<watch::Watch>>,
    losses: u64,
    recoveries: u64,
    next_member: u64,
    coordinator_due: u64,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario, explain: bool) -> Outcome {
    let mut world = World::new(scenario.clone(), explain);
    if explain {
        world.run_caught();
    } else {
        world.run();
    }
    let timeline = world.take_timeline().unwrap_or_default();
    Outcome {
        violations: world.checks.violations().to_vec(),
        completed: world.checks.ended.0,
        failed: world.checks.ended.1,
        losses: world.losses,
        recoveries: world.recoveries,
        trace: world.trace,
        timeline,
        shrunk: world.checks.shrunk,
        results: world.checks.results().clone(),
    }
}

impl World {
    fn new(scenario: Scenario, explain: bool) -> Self {
        let net = Net::new(scenario.seed ^ 0xfeed, scenario.delay_us_max, scenario.slow_links);
        let mut world = Self {
            random: Random::new(scenario.seed ^ 0xc0de),
            coordinator: Some(Coordinator::new(scenario.rules.clone(), None, 0)),
            store: None,
            stored_us: 0,
            net,
            members: BTreeMap::new(),
            events: BinaryHeap::new(),
            slots: Vec::new(),
            queued_us: Vec::new(),
            sent_us: 0,
            now_us: 0,
            still: 0,
            count: 0,
            checks: Checkers::default(),
            trace: scenario.seed,
            watch: explain.then(Box::default),
            losses: 0,
            recoveries: 0,
            next_member: 1,
            coordinator_due: u64::MAX,
            scenario,
        };
        if let Some(watch) = &mut world.watch {
            watch.timeline.title = world.scenario.in_words();
            world.checks.told = Some(Vec::new());
            world.net.borrow_mut().watch();
        }
        for rank in 0..world.scenario.rules.world_size {
            world.add_member(Some(Rank(rank)));
        }
        for _ in 0..world.scenario.spares {
            world.add_member(None);
        }
        for (at, fault) in world.scenario.faults.clone() {
            world.at(at, Event::Fault(fault));
        }
        world
    }

    fn at(&mut self, time_us: u64, event: Event) {
        self.count += 1;
        let slot = self.slots.len();
        self.slots.push(Some(event));
        self.queued_us.push(self.now_us);
        self.events.push(Reverse((time_us.max(self.now_us), self.count, slot)));
    }

    fn add_member(&mut self, wants: Option<Rank>) {
        let member = MemberId(self.next_member);
        self.next_member += 1;
        let host = wants.map_or(1000 + member.0, |r| u64::from(r.0 / self.scenario.ranks_per_host));
        let domain = DomainId(host);
        let info = MemberInfo { member, host, domain, tcp: None, shm: None, pid: member.0 as u32, wants };
        let engine = Engine::new(info, self.now_us / 1000);
        let transport = SimTransport::new(member, self.net.clone());
        let mut executor = Executor::new(engine, transport);
        if let Some(messages) = self.scenario.pause_at {
            executor.set_pause_at(messages);
        }
        let caller = Caller::new(member, &self.scenario);
        let member_state = Member {
            executor,
            caller,
            domain,
            alive: true,
            stopped: false,
            turn_us: u64::MAX,
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

    fn wake(&mut self, member: MemberId, time_us: u64) {
        let time_us = time_us.max(self.now_us);
        if let Some(m) = self.members.get_mut(&member)
            && m.alive
            && time_us < m.turn_us
        {
            m.turn_us = time_us;
            self.at(time_us, Event::Turn(member));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((time_us, _, slot))) = self.events.pop() {
            self.still = if time_us == self.now_us { self.still + 1 } else { 0 };
            self.now_us = time_us;
            self.sent_us = self.queued_us[slot];
            self.net.borrow_mut().set_now(time_us);
            if let Some(event) = self.slots[slot].take() {
                self.handle(event);
            }
            let wakes = self.net.borrow_mut().take_wakes();
            for (at, member) in wakes {
                self.wake(member, at);
            }
            self.run_coordinator();
            self.renew_budget();
            self.check_holders();
            if self.is_over() || !self.checks.violations().is_empty() {
                break;
            }
            if self.still > STILL_MAX {
                self.checks.report(format!("I8 liveness: time stands still: {:?}", self.coordinator));
                break;
            }
            if self.now_us > DEADLINE_US {
                let stuck: Vec<String> = self
                    .members
                    .values()
                    .filter(|m| m.alive && !m.caller.gone)
                    .map(|m| m.executor.engine.waits_for())
                    .collect();
                let untaken = self.net.borrow().untaken();
                self.checks.report(format!(
                    "I8 liveness: no end after {DEADLINE_US} us: {stuck:?} {untaken:?} {:?}",
                    self.coordinator
                ));
                break;
            }
        }
        for v in self.net.borrow_mut().take_violations() {
            self.checks.report(v);
        }
        if self.checks.violations().is_empty() {
            self.check_rest();
        }
    }

    /// The promise counts losses from the first one until every op that was in flight is complete everywhere again.
    fn renew_budget(&mut self) {
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
    fn check_rest(&mut self) {
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
    fn check_holders(&mut self) {
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

    fn is_over(&self) -> bool {
        self.coordinator.as_ref().is_some_and(Coordinator::is_finished)
            && self.members.values().all(|m| !m.alive || m.stopped || m.caller.gone)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn(member) => self.turn(member),
            Event::Up(from, connection, message) => {
                if self.members.get(&from).is_some_and(|m| m.connection != connection) {
                    self.tell_arrival(self.place(from), Place::Coordinator, || What::Lost);
                    return;
                }
                if self.coordinator.is_some() {
                    self.trace = fnv1a(self.trace.to_le_bytes().into_iter().chain(message.to_frame()));
                    if !matches!(*message, Upward::Beat { .. }) {
                        self.tell_arrival(self.place(from), Place::Coordinator, || What::Up(message.clone()));
                    }
                    if let Some(c) = self.coordinator.as_mut() {
                        c.handle_message(from, *message, self.now_us / 1000);
                    }
                } else {
                    self.requeue_up(from, connection, message);
                }
            }
            Event::Down(to, connection, message) => self.deliver(to, connection, *message),
            Event::Stored(record) => {
                let decided = record.decision.as_ref().map(|d| d.view.epoch);
                self.tell_arrival(Place::Coordinator, Place::Store, || What::Stored(record.epoch, decided));
                self.store = Some((*record).clone());
                if let Some(c) = &mut self.coordinator {
                    c.handle_stored(&record, self.now_us / 1000);
                }
            }
            Event::Coordinator => {
                self.coordinator_due = u64::MAX;
                if let Some(c) = &mut self.coordinator {
                    c.handle_timeout(self.now_us / 1000);
                }
            }
            Event::Exit(member) => {
                if let Some(c) = &mut self.coordinator {
                    c.handle_lost(member, "exit seen", self.now_us / 1000);
                } else {
                    self.at(self.now_us + 500, Event::Exit(member));
                }
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Wake(member) => self.go_on(member),
            Event::CoordinatorBack => self.restart_coordinator(),
            Event::Reconnect(member) => self.reconnect(member),
            Event::NewSpare => self.add_member(None),
        }
    }

    /// A message of the coordinator arrives; a stopped process reads it when it goes on.
    fn deliver(&mut self, to: MemberId, connection: u32, message: Downward) {
        let (now, is_lost) = (self.now_us / 1000, |m: &Member| m.connection != connection);
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
            m.executor.engine.handle_message(message, now);
        }
        self.look_at(to);
        self.wake(to, self.now_us);
    }

    /// A message to a coordinator that is away waits in the sender's connection attempt.
    fn requeue_up(&mut self, from: MemberId, connection: u32, message: Box<Upward>) {
        if !matches!(*message, Upward::Beat { .. }) {
            self.at(self.now_us + 500, Event::Up(from, connection, message));
            // It is under way since it was sent first.
            self.queued_us.pop();
            self.queued_us.push(self.sent_us);
        }
    }

    fn turn(&mut self, member: MemberId) {
        let now_us = self.now_us;
        let Some(m) = self.members.get_mut(&member) else { return };
        if m.turn_us > now_us || !m.alive {
            return;
        }
        m.turn_us = u64::MAX;
        if m.stopped {
            return;
        }
        let now = now_us / 1000;
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
        let mut up = Vec::new();
        while let Some(message) = m.executor.engine.poll_message() {
            m.up_us = m.up_us.max(now_us + 1 + self.random.below(CONTROL_DELAY_US_MAX));
            if !m.is_cut() {
                up.push((m.up_us, message));
            }
        }
        let (connection, busy_until_us) = (m.connection, m.busy_until_us);
        let next = m.executor.engine.poll_timeout();
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
        if let Some(ms) = next.filter(|_| !over) {
            self.wake(member, (ms * 1000).max(now_us + 1000));
        }
    }

    fn run_coordinator(&mut self) {
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
        let due = c.poll_timeout().map_or(u64::MAX, |ms| ms * 1000);
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
        for record in writes {
            // One write after the other, as the owner of the store makes them.
            self.stored_us = self.stored_us.max(self.now_us + self.random.below(500));
            self.at(self.stored_us, Event::Stored(Box::new(record)));
        }
        for event in events {
            self.observe(&event);
        }
        if due < self.coordinator_due {
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
                self.checks.lost(loss.member);
                let domain = self.members.get(&loss.member).map(|m| m.domain).unwrap_or_default();
                self.checks.domain_lost(domain, self.scenario.rules.domains_lost_max);
            }
            WorldEvent::Decided(decision) => {
                self.recoveries += u64::from(decision.view.epoch.0 > 1);
                self.checks.decided(decision);
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
            | WorldEvent::Unrecoverable(_)
            | WorldEvent::SpareReady(_) => {}
        }
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
