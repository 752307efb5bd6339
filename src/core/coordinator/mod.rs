//! Decides views from evidence. Sans-IO like the engine: `handle_*` in, `poll_*` out.
//!
//! ```text
//! Forming ──all seated──▶ Steady ──loss, expiry, mismatch──▶ Fencing ──all answered──▶ Deciding ──stored──▶ Steady
//!                                                              ▲  └─────another loss────┘   │
//!                                                              └────────────────────────────┘
//! ```
//!
//! An epoch is written to the store before anybody is told of it, and a decision before anybody acts on it, so a
//! coordinator that restarts never contradicts itself: it fences again, in a later epoch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use crate::policy::Rules;
use crate::recovery::{self, Evidence};
use crate::view::{MemberInfo, View};
use crate::wire::codec::wire;
use crate::wire::message::{CommDecision, Decision, Downward, Loss, Milestone, Report, Upward, VERSION};

mod fencing;
mod links;
#[cfg(test)]
mod tests;

/// What the store keeps: enough for a restarted coordinator to go on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The highest epoch anybody was told of.
    pub epoch: Epoch,
    /// The last decision written.
    pub decision: Option<Decision>,
    /// Losses since that decision.
    pub losses: Vec<Loss>,
    /// Members that ever lost a seat: none of them sits again, however late it asks.
    pub former: Vec<MemberId>,
}
wire!(struct Record { epoch, decision, losses, former });

/// Something a watcher of the world wants to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WorldEvent {
    /// Every seat is taken for the first time.
    Formed,
    /// A member was declared dead.
    Lost(Loss),
    /// All survivors have answered the fence.
    Fenced(Epoch),
    /// The next view is written.
    Decided(Box<Decision>),
    /// A member reports a milestone.
    Reached(Rank, Epoch, Milestone),
    /// A vacant seat waits for a spare.
    SpareMissing(u32),
    /// All seated ranks have left.
    Finished,
    /// Nobody is left who could go on: more was lost than promised. Why, and what to do.
    Unrecoverable(String),
    /// A spare stands by.
    SpareReady(MemberId),
}

/// The longest name that a Unix socket can have.
const SHM_NAME_BYTES_MAX: usize = 108;

/// Why a member is out whose loss only an earlier coordinator saw.
const BEFORE_THE_RESTART: &str = "lost its seat before the coordinator was started again";

/// Where a coordinator stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Seats are being taken for the first time.
    Forming,
    /// No fence is open.
    Steady,
    /// The fence is being written to the store.
    Declaring,
    /// Survivors have been told and answer.
    Fencing,
    /// All have answered, but a seat has no taker yet.
    Vacant {
        /// Since when.
        since_ms: u64,
    },
    /// The decision is being written.
    Deciding,
    /// The run is over.
    Finished,
}

struct Known {
    info: MemberInfo,
    heard_ms: u64,
    left: bool,
    /// It has joined this coordinator, not only an earlier one.
    is_back: bool,
    epoch: Epoch,
    done_below: BTreeMap<CommId, OpSeq>,
}

/// The coordinator of one world.
pub struct Coordinator {
    rules: Rules,
    phase: Phase,
    epoch: Epoch,
    view: View,
    known: BTreeMap<MemberId, Known>,
    /// Spares in the order they joined.
    spares: Vec<MemberId>,
    out: BTreeMap<MemberId, String>,
    losses: Vec<Loss>,
    former: BTreeSet<MemberId>,
    reports: BTreeMap<Rank, Report>,
    last: Option<Decision>,
    pending: Option<Decision>,
    expired: BTreeSet<OpId>,
    /// Newcomers that have not replayed yet: nobody waits for them once all others are done.
    catching_up: BTreeSet<MemberId>,
    link_faults: links::LinkFaults,
    messages: VecDeque<(MemberId, Downward)>,
    writes: VecDeque<Record>,
    events: VecDeque<WorldEvent>,
    /// Why the run ended before its ranks were done.
    given_up: Option<String>,
    /// A restarted coordinator fences once everybody known is back or overdue.
    rejoining: bool,
}

impl Coordinator {
    /// A coordinator of a world that has not formed yet, or, with a record, of one that goes on.
    #[must_use]
    pub fn new(rules: Rules, record: Option<Record>, now_ms: u64) -> Self {
        let record = record.unwrap_or_default();
        let world_size = rules.world_size as usize;
        let view = record
            .decision
            .as_ref()
            .map_or_else(|| View { seats: vec![None; world_size], ..View::default() }, |d| d.view.clone());
        let lost = |m: MemberId| record.losses.iter().any(|l| l.member == m);
        let known = view
            .members
            .iter()
            .filter(|info| !lost(info.member))
            .map(|info| (info.member, Known::new(info.clone(), Epoch(0), now_ms)))
            .collect();
        let formed = record.decision.is_some();
        let earlier = record.former.iter().map(|m| (*m, BEFORE_THE_RESTART.to_owned()));
        let since = record.losses.iter().map(|l| (l.member, l.cause.clone()));
        Self {
            rules,
            phase: if formed { Phase::Steady } else { Phase::Forming },
            epoch: record.epoch,
            spares: view.spares().map(|i| i.member).collect(),
            view,
            known,
            out: earlier.chain(since).collect(),
            losses: record.losses,
            former: record.former.into_iter().collect(),
            reports: BTreeMap::new(),
            last: record.decision,
            pending: None,
            expired: BTreeSet::new(),
            catching_up: BTreeSet::new(),
            link_faults: links::LinkFaults::new(),
            messages: VecDeque::new(),
            writes: VecDeque::new(),
            events: VecDeque::new(),
            given_up: None,
            rejoining: formed,
        }
    }

    /// What everybody agreed on.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The last decided view.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The epoch in force or being decided.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether every op has gone on since the last loss: no fence is open.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.phase == Phase::Steady && !self.rejoining
    }

    /// Spares that stand by.
    #[must_use]
    pub fn spares(&self) -> &[MemberId] {
        &self.spares
    }

    /// Takes a message from a proven member.
    pub fn handle_message(&mut self, from: MemberId, message: Upward, now_ms: u64) {
        if let Upward::Join { version, info, epoch } = message {
            self.handle_join(from, version, info, epoch, now_ms);
            return;
        }
        if let Some(cause) = self.out.get(&from) {
            self.messages.push_back((from, Downward::Evicted { epoch: self.epoch, cause: cause.clone() }));
            return;
        }
        let Some(known) = self.known.get_mut(&from) else { return };
        known.heard_ms = known.heard_ms.max(now_ms);
        match message {
            Upward::Join { .. } => {}
            Upward::Beat { epoch, done_below } => {
                known.epoch = epoch;
                // A beat names every communicator of its sender: what it no longer names is no more.
                known.done_below = done_below.into_iter().collect();
                let stable = self.stable();
                self.messages.push_back((from, Downward::BeatSeen { epoch: self.epoch, stable }));
            }
            Upward::Suspect { member, epoch, cause } => {
                self.handle_suspect((from, member), epoch, cause, now_ms);
            }
            Upward::Ledger { report } => self.handle_report(from, report, now_ms),
            Upward::Expired { op, epoch } => {
                if epoch == self.view.epoch && self.phase == Phase::Steady && self.expired.insert(op) {
                    self.begin_fence();
                }
            }
            Upward::Mismatch { epoch, .. } => {
                if epoch == self.view.epoch && self.phase == Phase::Steady {
                    self.begin_fence();
                }
            }
            Upward::Milestone { epoch, what } => {
                if what == (Milestone::Replayed {}) {
                    self.catching_up.remove(&from);
                }
                if let Some(rank) = self.view.rank_of(from) {
                    self.events.push_back(WorldEvent::Reached(rank, epoch, what));
                }
            }
            Upward::Leave {} => self.handle_leave(from, now_ms),
        }
    }

    fn handle_join(&mut self, from: MemberId, version: u16, info: MemberInfo, epoch: Epoch, now_ms: u64) {
        let refuse = |reason: String| (from, Downward::Refused { reason });
        if version != VERSION {
            let reason =
                format!("it speaks version {version} of the control messages, the coordinator {VERSION}");
            self.messages.push_back(refuse(reason + "; run the same release everywhere"));
            return;
        }
        if info.shm.as_ref().is_some_and(|name| name.len() > SHM_NAME_BYTES_MAX) {
            // It would go to every rank with every decision, and a frame has an end.
            self.messages
                .push_back(refuse("its shared memory has a name that no socket can have".to_owned()));
            return;
        }
        if let Some(cause) = self.out.get(&from).filter(|_| !crate::planted!(OldMember)) {
            self.messages.push_back((from, Downward::Evicted { epoch: self.epoch, cause: cause.clone() }));
            return;
        }
        if self.phase == Phase::Finished {
            let evicted = |cause: &String| Downward::Evicted { epoch: self.epoch, cause: cause.clone() };
            let end = self.given_up.as_ref().map_or(Downward::Finished {}, evicted);
            self.messages.push_back((from, end));
            return;
        }
        self.messages.push_back((from, Downward::Welcome { version: VERSION, rules: self.rules.clone() }));
        if let Some(known) = self.known.get_mut(&from) {
            // Its connection broke, or this coordinator is a new one: the member is the same.
            known.heard_ms = known.heard_ms.max(now_ms);
            known.epoch = epoch;
            known.is_back = true;
            self.resend(from, epoch);
            self.fence_if_all_are_back();
            return;
        }
        if epoch > Epoch(0) && !crate::planted!(OldMember) {
            // It knows a view and is in none: declared dead while its coordinator was another process.
            let cause = BEFORE_THE_RESTART.to_owned();
            self.messages.push_back((from, Downward::Evicted { epoch: self.epoch, cause }));
            return;
        }
        let wants = info.wants.filter(|_| self.phase == Phase::Forming);
        if let Some(rank) = wants {
            match self.view.seats.get_mut(rank.index()) {
                Some(seat @ None) => *seat = Some(from),
                Some(Some(holder)) => {
                    let reason = format!("{rank} is taken by {holder}; start every rank once");
                    self.messages.push_back(refuse(reason));
                    return;
                }
                None => {
                    let reason = format!("{rank} is outside a world of {} ranks", self.rules.world_size);
                    self.messages.push_back(refuse(reason));
                    return;
                }
            }
        } else {
            self.spares.push(from);
            self.events.push_back(WorldEvent::SpareReady(from));
        }
        self.known.insert(from, Known { is_back: true, ..Known::new(info, epoch, now_ms) });
        if self.phase == Phase::Forming && self.view.seats.iter().all(Option::is_some) {
            self.form();
        } else if matches!(self.phase, Phase::Vacant { .. }) {
            self.try_decide(now_ms);
        }
    }

    /// A member that comes back gets what it may have missed.
    fn resend(&mut self, member: MemberId, epoch: Epoch) {
        match self.phase {
            Phase::Fencing | Phase::Vacant { .. }
                if epoch < self.epoch && self.view.rank_of(member).is_some() =>
            {
                // The fence asks for what came of the last decision.
                if let Some(decision) = self.last.clone().filter(|d| epoch < d.view.epoch) {
                    self.messages.push_back((member, Downward::Decide { decision }));
                }
                let fence = Downward::Fence { epoch: self.epoch, losses: self.losses.clone() };
                self.messages.push_back((member, fence));
            }
            Phase::Steady if epoch < self.view.epoch && self.view.rank_of(member).is_some() => {
                if let Some(decision) = self.last.clone() {
                    self.messages.push_back((member, Downward::Decide { decision }));
                }
            }
            Phase::Forming
            | Phase::Steady
            | Phase::Declaring
            | Phase::Fencing
            | Phase::Vacant { .. }
            | Phase::Deciding
            | Phase::Finished => {}
        }
    }

    fn form(&mut self) {
        let members = self.known.values().map(|k| k.info.clone()).collect();
        self.epoch = self.epoch.next();
        let view = View { epoch: self.epoch, seats: self.view.seats.clone(), members };
        let group = (0..self.rules.world_size).map(Rank).collect();
        let world =
            CommDecision { comm: CommId(0), group, step_first: OpSeq(0), begins: OpSeq(0), broken: None };
        let decision = Decision {
            view,
            losses: Vec::new(),
            newcomers: Vec::new(),
            comms: vec![world],
            ops: Vec::new(),
            committed: 0,
            state: None,
        };
        self.events.push_back(WorldEvent::Formed);
        self.write_decision(decision);
    }

    /// A rank that is done stays until all are: peers may still need what it holds, and it answers fences.
    fn handle_leave(&mut self, from: MemberId, now_ms: u64) {
        let about_to_sit = self.pending.as_ref().is_some_and(|d| d.view.rank_of(from).is_some());
        if about_to_sit && self.view.rank_of(from).is_none() {
            self.declare_lost(from, "left before it took its seat", now_ms);
            return;
        }
        if self.view.rank_of(from).is_none() || self.phase == Phase::Forming {
            self.forget_spare(from);
            self.known.remove(&from);
            // It waits for an answer; for it the run is over.
            self.messages.push_back((from, Downward::Finished {}));
            return;
        }
        if let Some(known) = self.known.get_mut(&from) {
            known.left = true;
        }
        self.finish_if_done();
    }

    pub(super) fn finish_if_done(&mut self) {
        if self.phase == Phase::Steady && self.is_everybody_done() {
            self.finish();
        }
    }

    /// Every live seated rank has said good-bye, but for newcomers that would only replay what all others have. Where
    /// all are dead nobody has.
    pub(super) fn is_everybody_done(&self) -> bool {
        let mut seated = self.view.seats.iter().flatten();
        let anybody = seated.clone().any(|m| self.known.get(m).is_some_and(|k| k.left));
        anybody && seated.all(|m| self.catching_up.contains(m) || self.known.get(m).is_none_or(|k| k.left))
    }

    pub(super) fn finish(&mut self) {
        self.phase = Phase::Finished;
        self.events.push_back(WorldEvent::Finished);
        for &member in self.known.keys() {
            self.messages.push_back((member, Downward::Finished {}));
        }
    }

    fn forget_spare(&mut self, member: MemberId) {
        self.spares.retain(|s| *s != member);
        if self.phase == Phase::Forming {
            for seat in self.view.seats.iter_mut().filter(|s| **s == Some(member)) {
                *seat = None;
            }
        }
    }

    /// Every op below this is complete at every seated rank, per communicator.
    fn stable(&self) -> Vec<(CommId, OpSeq)> {
        let mut stable: BTreeMap<CommId, OpSeq> = BTreeMap::new();
        let comms = self.last.iter().flat_map(|d| &d.comms);
        for c in comms {
            let of = |rank: &Rank| self.view.occupant(*rank).and_then(|m| self.known.get(&m));
            let seats = c.group.iter().filter(|r| self.view.occupant(**r).is_some());
            let lowest = seats
                .map(|r| of(r).and_then(|k| k.done_below.get(&c.comm).copied()).unwrap_or_default())
                .min();
            stable.insert(c.comm, lowest.unwrap_or_default());
        }
        stable.into_iter().collect()
    }

    /// Whether every seated rank has said good-bye.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// A process ended, or its host is known to be gone: certain knowledge, not a suspicion.
    pub fn handle_lost(&mut self, member: MemberId, cause: &str, now_ms: u64) {
        self.declare_lost(member, cause, now_ms);
    }

    /// The process was seen running (or runnable) on its host: slow, but not dead.
    pub fn handle_running(&mut self, member: MemberId, now_ms: u64) {
        if let Some(known) = self.known.get_mut(&member) {
            known.heard_ms = known.heard_ms.max(now_ms);
        }
    }

    /// Silence this long means dead: longer than the lease, so a member stops by itself first.
    fn evict_after_ms(&self) -> u64 {
        self.rules.lease_ms + self.rules.lease_ms / 4
    }

    /// Checks leases and waits. Spurious calls change nothing.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        if matches!(self.phase, Phase::Finished) {
            return;
        }
        let limit = self.evict_after_ms();
        let silent: Vec<MemberId> = self
            .known
            .iter()
            .filter(|(_, k)| now_ms.saturating_sub(k.heard_ms) >= limit)
            .map(|(member, _)| *member)
            .collect();
        for member in silent {
            self.declare_lost(member, &format!("silent for {limit} ms, longer than its lease"), now_ms);
        }
        self.fence_if_all_are_back();
        if let Phase::Vacant { since_ms } = self.phase
            && now_ms.saturating_sub(since_ms) >= self.rules.replace_within_ms
        {
            self.try_decide(now_ms);
        }
        self.repair_links(now_ms);
    }

    /// What an earlier coordinator was told, and lost, shows in the ledgers.
    fn fence_if_all_are_back(&mut self) {
        if self.rejoining && self.known.values().all(|k| k.is_back || !self.is_seated(k)) {
            self.rejoining = false;
            self.begin_fence();
        }
    }

    fn is_seated(&self, known: &Known) -> bool {
        self.view.rank_of(known.info.member).is_some()
    }

    /// When `handle_timeout` has something to do at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.phase == Phase::Finished {
            return None;
        }
        let lease = self.known.values().map(|k| k.heard_ms + self.evict_after_ms()).min();
        let vacant = match self.phase {
            Phase::Vacant { since_ms } => Some(since_ms + self.rules.replace_within_ms),
            Phase::Forming
            | Phase::Steady
            | Phase::Declaring
            | Phase::Fencing
            | Phase::Deciding
            | Phase::Finished => None,
        };
        lease.into_iter().chain(vacant).chain(self.link_due()).min()
    }

    /// The next message to send.
    #[must_use]
    pub fn poll_message(&mut self) -> Option<(MemberId, Downward)> {
        self.messages.pop_front()
    }

    /// The next record to write; answer with `handle_stored` when it is durable.
    #[must_use]
    pub fn poll_store(&mut self) -> Option<Record> {
        self.writes.pop_front()
    }

    /// The next event for watchers.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<WorldEvent> {
        self.events.pop_front()
    }
}

impl Known {
    fn new(info: MemberInfo, epoch: Epoch, now_ms: u64) -> Self {
        Self { info, heard_ms: now_ms, left: false, is_back: false, epoch, done_below: BTreeMap::new() }
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("phase", &self.phase)
            .field("epoch", &self.epoch)
            .field("seats", &self.view.seats)
            .field("spares", &self.spares)
            .finish_non_exhaustive()
    }
}
