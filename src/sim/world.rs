//! One run: members, coordinator, store and faults on one virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use phalanx_core::coordinator::{Coordinator, Record};
use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::{MemberId, OpId, Rank};
use phalanx_core::wire::Wire;
use phalanx_core::wire::message::{Downward, Upward};

use super::checkers::Checkers;
use super::coverage::Cell;
use super::net::{Net, SharedNet};
use super::random::Random;
use super::scenario::{Fault, Scenario};
use super::timeline::{Place, Timeline, What};
use clock::Clock;
use member::Member;

mod authority;
mod clock;
mod faults;
mod member;
mod promises;
mod trouble;
mod watch;

#[derive(Debug)]
enum Event {
    Turn(MemberId),
    /// From or to a member, on its so manieth control connection.
    Up(MemberId, u32, Box<Upward>),
    Down(MemberId, u32, Box<Downward>),
    /// A write of the so manieth coordinator is durable.
    Stored(u64, Box<Record>),
    Coordinator,
    Exit(MemberId),
    Fault(Fault),
    Wake(MemberId),
    CoordinatorBack,
    Reconnect(MemberId),
    NewSpare,
    Refill,
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
    pub results: BTreeMap<(OpId, Rank), u64>,
    /// Faults that struck something.
    pub strikes: u64,
    /// What they struck.
    pub cells: Vec<Cell>,
}

const CONTROL_DELAY_US_MAX: u64 = 300;

struct World {
    scenario: Scenario,
    net: SharedNet,
    random: Random,
    coordinator: Option<Coordinator>,
    coordinator_clock: Clock,
    /// Coordinators so far.
    coordinators: u64,
    is_leaderless_for_good: bool,
    store: Option<Record>,
    stored_us: u64,
    pending_writes: VecDeque<Record>,
    /// The next write is refused; whether it is made all the same.
    store_refuses: Option<bool>,
    /// The next write takes so long.
    store_takes_ms: Option<u32>,
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
    /// Until then something goes wrong, as far as is known.
    trouble_us: u64,
    /// Whom this coordinator declared dead.
    declared: BTreeSet<MemberId>,
    strikes: u64,
    coverage: Vec<Cell>,
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
        strikes: world.strikes,
        cells: world.coverage,
    }
}

impl World {
    fn new(scenario: Scenario, explain: bool) -> Self {
        let net = Net::new(scenario.seed ^ 0xfeed, &scenario);
        let mut random = Random::new(scenario.seed ^ 0xc0de);
        let coordinator_clock = Clock::draw(scenario.drift_ppm_max, &mut random);
        let now_ms = coordinator_clock.ms(0);
        let mut world = Self {
            random,
            coordinator: Some(Coordinator::new(scenario.rules.clone(), None, now_ms)),
            coordinator_clock,
            coordinators: 1,
            is_leaderless_for_good: false,
            store: None,
            stored_us: 0,
            pending_writes: VecDeque::new(),
            store_refuses: None,
            store_takes_ms: None,
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
            trouble_us: 0,
            declared: BTreeSet::new(),
            strikes: 0,
            coverage: Vec::new(),
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
            self.spring_aims();
            self.renew_budget();
            self.check_holders();
            if !self.is_over() {
                self.check_liveness();
            }
            if self.is_over() || !self.checks.violations().is_empty() {
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
                        c.handle_message(from, *message, self.coordinator_clock.ms(self.now_us));
                    }
                } else {
                    self.requeue_up(from, connection, message);
                }
            }
            Event::Down(to, connection, message) => self.deliver(to, connection, *message),
            Event::Stored(coordinator, record) => self.stored(coordinator, &record),
            Event::Coordinator => {
                self.coordinator_due = u64::MAX;
                if let Some(c) = &mut self.coordinator {
                    c.handle_timeout(self.coordinator_clock.ms(self.now_us));
                }
            }
            Event::Exit(member) => {
                if let Some(c) = &mut self.coordinator {
                    c.handle_lost(member, "exit seen", self.coordinator_clock.ms(self.now_us));
                } else if !self.is_leaderless_for_good {
                    self.at(self.now_us + 500, Event::Exit(member));
                }
            }
            Event::Fault(fault) => {
                self.strike(fault);
            }
            Event::Wake(member) => self.go_on(member),
            Event::CoordinatorBack => self.restart_coordinator(),
            Event::Reconnect(member) => self.reconnect(member),
            Event::NewSpare => self.add_member(None),
            Event::Refill => self.refill(),
        }
    }
}
