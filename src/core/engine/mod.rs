//! One member's engine: `handle_*` in, `poll_*` and `next_step` out. It owns phase, ledger and ops; nothing else
//! changes them. It never touches a byte of a buffer: it says which step comes next, the driver does it.
//!
//! Order of use: after any `handle_*`, drain `poll_action` (each action is done before the next is asked for), then
//! `poll_message`; then try [`Engine::next_step`] for each communicator until nothing moves. A spurious
//! `handle_timeout` changes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::bitmap::Bitmap;
use crate::error::{CallError, OpError};
use crate::ids::{Attempt, CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use crate::plan::{Plan, Step};
use crate::policy::Rules;
use crate::spec::Spec;
use crate::view::{MemberInfo, View};
use crate::window::Window;
use crate::wire::Header;
use crate::wire::message::{FailCause, Loss, Upward};

mod calls;
mod fence;
mod lease;
mod notes;
pub mod op;
pub mod phase;
mod progress;
mod release;
mod resume;
#[cfg(test)]
mod tests;

pub use op::{CallShape, Op, Retention};
pub use phase::{Phase, Trigger};

/// The communicator under which a step's state travels to newcomers.
pub const STATE_COMM: CommId = CommId(u32::MAX);
/// The world's communicator.
pub const WORLD: CommId = CommId(0);

/// Something the driver must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Shut these members out of every transport, then call [`Engine::handle_revoked`].
    Revoke {
        /// The members.
        dead: Vec<MemberId>,
    },
    /// Open the epoch on every transport.
    Open {
        /// The epoch.
        epoch: Epoch,
        /// Everybody else in a seat.
        peers: Vec<MemberInfo>,
    },
    /// Save the op's input: an undo may be needed (policy shrink, in place).
    Save {
        /// The op.
        op: OpId,
    },
    /// Put the saved input back; keep the copy.
    Restore {
        /// The op.
        op: OpId,
    },
    /// Copy what may be asked for again out of the caller's memory into the retention log.
    Log {
        /// The op.
        op: OpId,
    },
    /// The op is over: hand the outcome to the caller. Unless the op is retained by reference, its memory is the
    /// caller's again.
    Complete {
        /// The op.
        op: OpId,
        /// World ranks that contributed, or the error.
        outcome: Result<Vec<Rank>, OpError>,
    },
    /// Forget the op: its memory and its part of the retention log.
    Free {
        /// The op.
        op: OpId,
    },
    /// `begin_step` returns.
    StepBegun {
        /// Steps committed before this one.
        committed: u64,
    },
    /// The run is over, a spare is no longer needed.
    RunOver,
    /// The member is out; every later call ends with this.
    Halt {
        /// Why.
        error: OpError,
    },
}

/// One step that may run now.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// The op.
    pub op: OpId,
    /// The step.
    pub step: Step,
}

/// A communicator on this rank.
#[derive(Debug)]
struct Comm {
    group: Vec<Rank>,
    /// What the caller calls next.
    next: OpSeq,
    /// The first op whose steps are not over.
    cursor: OpSeq,
    /// Every op below this is complete here.
    done_below: OpSeq,
    /// Every op below this is complete everywhere.
    stable: OpSeq,
    step_first: OpSeq,
    /// First op of the open step.
    begins: OpSeq,
    /// Every op below this is released here.
    released_below: OpSeq,
    ops: Window<Op>,
    broken: Option<FailCause>,
}

impl Comm {
    fn new(group: Vec<Rank>, first: OpSeq) -> Self {
        Self {
            group,
            next: first,
            cursor: first,
            done_below: first,
            stable: first,
            step_first: first,
            begins: first,
            released_below: first,
            ops: Window::default(),
            broken: None,
        }
    }

    /// Goes past ops that are released; what was called and is not there any more was released before.
    fn pass_released(&mut self) {
        let over = |c: &Self| c.ops.get(c.released_below).is_none_or(|o| o.released);
        while self.released_below < self.next && over(self) {
            self.released_below = self.released_below.next();
        }
    }

    /// Called and not released yet, or called by others only.
    fn unreleased(&self) -> impl Iterator<Item = &Op> {
        self.ops.range(self.released_below..).filter(|o| !o.released)
    }
}

/// Where this rank stands in the sequence of steps.
#[derive(Debug, Default)]
struct StepState {
    committed: u64,
    open: bool,
    /// `begin_step` was called and has not returned.
    asked: bool,
    /// The open step's regions were taken back: the caller gave the step up.
    state_gone: bool,
    state_bytes: u64,
}

/// State on its way from or to this rank.
#[derive(Debug)]
struct Transfer {
    op: Op,
    /// Steps committed before the one the state belongs to.
    committed: u64,
    incoming: bool,
}

/// The engine of one member.
#[derive(Debug)]
pub struct Engine {
    me: MemberId,
    info: MemberInfo,
    rules: Option<Rules>,
    phase: Phase,
    epoch: Epoch,
    /// The fence that is being answered.
    fence: Epoch,
    view: View,
    rank: Option<Rank>,
    comms: BTreeMap<CommId, Comm>,
    step: StepState,
    transfer: Option<Transfer>,
    plans: Vec<(Spec, u32, Rank, Arc<Plan>)>,
    actions: VecDeque<Action>,
    messages: VecDeque<Upward>,
    /// Notes to post, on each link in their order.
    notes: VecDeque<(MemberId, Header)>,
    /// Who asked to be sent nothing more of a communicator for now.
    paused: BTreeSet<(MemberId, CommId)>,
    losses: Vec<Loss>,
    /// Ops that were in flight at the last fence and are not complete here yet.
    resuming: BTreeSet<OpId>,
    /// Ops that a newcomer's seat had behind it at the loss.
    replaying: BTreeSet<OpId>,
    newcomer: bool,
    beats: VecDeque<u64>,
    beat_due_ms: u64,
    leased_from_ms: u64,
    lapsed: bool,
    /// When time was looked at last, and since when without a gap of a lease: a process that was stopped heard nothing.
    looked_ms: u64,
    awake_from_ms: u64,
    /// It has given the coordinator up, and does not come back.
    is_orphan: bool,
    faults: BTreeMap<MemberId, String>,
    /// A mismatch was reported in this epoch.
    mismatched: bool,
    /// Confirmations of ops that are not called here yet, by their sender.
    early_confirms: BTreeMap<Rank, BTreeSet<(OpId, Attempt)>>,
    /// Some op so far had to be confirmed, here or elsewhere: links may carry confirmations.
    confirming: bool,
    /// The caller has said good-bye.
    leaving: bool,
}

impl Engine {
    /// The engine of the member `info` describes; it first asks to join.
    #[must_use]
    pub fn new(info: MemberInfo, now_ms: u64) -> Self {
        let mut engine = Self {
            me: info.member,
            info,
            rules: None,
            phase: Phase::Forming,
            epoch: Epoch(0),
            fence: Epoch(0),
            view: View::default(),
            rank: None,
            comms: BTreeMap::new(),
            step: StepState::default(),
            transfer: None,
            plans: Vec::new(),
            actions: VecDeque::new(),
            messages: VecDeque::new(),
            notes: VecDeque::new(),
            paused: BTreeSet::new(),
            losses: Vec::new(),
            resuming: BTreeSet::new(),
            replaying: BTreeSet::new(),
            newcomer: false,
            beats: VecDeque::new(),
            beat_due_ms: now_ms,
            leased_from_ms: now_ms,
            lapsed: false,
            looked_ms: now_ms,
            awake_from_ms: now_ms,
            is_orphan: false,
            faults: BTreeMap::new(),
            mismatched: false,
            early_confirms: BTreeMap::new(),
            confirming: false,
            leaving: false,
        };
        engine.handle_connected();
        engine
    }

    /// The control connection is up (again): the engine introduces itself.
    pub fn handle_connected(&mut self) {
        if self.is_orphan {
            return;
        }
        let version = crate::wire::message::VERSION;
        self.messages.push_front(Upward::Join { version, info: self.info.clone(), epoch: self.epoch });
        // What is told once may have been lost with the old connection.
        self.mismatched = false;
        for (&member, cause) in &self.faults {
            self.messages.push_back(Upward::Suspect { member, epoch: self.epoch, cause: cause.clone() });
        }
        for op in self.comms.values_mut().flat_map(|c| c.ops.values_mut()) {
            op.overdue = false;
        }
        if self.rank.is_some() && !self.newcomer {
            let what = crate::wire::message::Milestone::Replayed {};
            self.messages.push_back(Upward::Milestone { epoch: self.epoch, what });
        }
        if self.leaving {
            self.messages.push_back(Upward::Leave {});
        }
        self.beats.clear();
    }

    /// This member.
    #[must_use]
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// The seat it has.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        self.rank
    }

    /// The epoch it is in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The view it acts in.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What everybody agreed on, once welcomed.
    #[must_use]
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// Steps committed here.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.step.committed
    }

    /// Whether this member took a dead one's seat and has not caught up yet.
    #[must_use]
    pub fn is_newcomer(&self) -> bool {
        self.newcomer
    }

    /// The occupant of plan rank `place` of `op`.
    #[must_use]
    pub fn member_at(&self, op: &Op, place: Rank) -> Option<MemberId> {
        op.group.get(place.index()).and_then(|rank| self.view.occupant(*rank))
    }

    /// The op with this id, the state transfer included.
    #[must_use]
    pub fn op(&self, id: OpId) -> Option<&Op> {
        if id.comm == STATE_COMM {
            return self.transfer.as_ref().map(|t| &t.op).filter(|o| o.id == id);
        }
        self.comms.get(&id.comm)?.ops.get(id.seq)
    }

    /// Whether it joined to take whatever seat is vacated.
    fn is_spare(&self) -> bool {
        self.info.wants.is_none()
    }

    /// Communicators of this rank.
    pub fn comm_ids(&self) -> impl Iterator<Item = CommId> + '_ {
        self.comms.keys().copied()
    }

    /// World ranks of a communicator, in rank order.
    #[must_use]
    pub fn group(&self, comm: CommId) -> Option<&[Rank]> {
        self.comms.get(&comm).map(|c| c.group.as_slice())
    }

    /// Whether everything that a loss cut short is complete here again, and this rank is no longer new.
    #[must_use]
    pub fn is_whole_again(&self) -> bool {
        self.phase == Phase::Steady && self.resuming.is_empty() && self.replaying.is_empty() && !self.newcomer
    }

    /// Ids of the ops not forgotten yet.
    pub fn op_ids(&self) -> impl Iterator<Item = OpId> + '_ {
        self.comms.values().flat_map(|c| c.ops.values().map(|o| o.id))
    }

    /// The transfer of a step's state to newcomers, where this member takes part in one.
    #[must_use]
    pub fn state_op(&self) -> Option<&Op> {
        self.transfer.as_ref().map(|t| &t.op)
    }

    /// Ops not forgotten yet, over all communicators: what I9 watches.
    #[must_use]
    pub fn ops_kept(&self) -> usize {
        self.comms.values().map(|c| c.ops.values().count()).sum()
    }

    /// One line on what each communicator waits for, for error messages and hung runs.
    #[must_use]
    pub fn waits_for(&self) -> String {
        let of = |(id, c): (&CommId, &Comm)| {
            let op = c.ops.get(c.cursor);
            let what = op.map_or_else(
                || "a call".to_owned(),
                |o| {
                    format!(
                        "{:?} of {} ({}) {} {:?} posted {}",
                        o.steps.current(),
                        o.id,
                        o.spec,
                        o.attempt,
                        o.group,
                        o.posted
                    )
                },
            );
            format!("{id} at {} waits for {what}", c.cursor)
        };
        let pending: Vec<String> = self
            .comms
            .values()
            .flat_map(|c| c.ops.values())
            .filter(|o| o.posted && !o.released)
            .map(|o| {
                let open: Vec<_> = o.unconfirmed().collect();
                format!("{} {} {} done {} awaits {open:?}", o.id, o.spec, o.attempt, o.done)
            })
            .collect();
        let comms = self.comms.iter().map(of).collect::<Vec<_>>().join("; ");
        format!(
            "{:?} {:?} {} lapsed {}: {comms}; state {:?}; open {pending:?}",
            self.rank,
            self.phase,
            self.epoch,
            self.lapsed,
            self.transfer.as_ref().map(|t| (t.incoming, t.op.posted, t.op.steps.current()))
        )
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next message to the coordinator.
    #[must_use]
    pub fn poll_message(&mut self) -> Option<Upward> {
        self.messages.pop_front()
    }

    fn go(&mut self, trigger: Trigger) -> bool {
        match self.phase.after(trigger) {
            Some(next) => {
                self.phase = next;
                true
            }
            None => false,
        }
    }

    fn halt(&mut self, cause: &str) {
        if self.go(Trigger::Halt) {
            let error = self.end_all(cause);
            self.actions.push_back(Action::Halt { error });
        }
    }

    /// Ends every op that is not over: nobody is left who would move it.
    fn end_all(&mut self, cause: &str) -> OpError {
        let error = OpError::Evicted { member: self.me, epoch: self.epoch, cause: cause.to_owned() };
        let open: Vec<OpId> = self
            .comms
            .values()
            .flat_map(|c| c.ops.values().filter(|o| o.posted && !o.released).map(|o| o.id))
            .collect();
        for op in open {
            self.actions.push_back(Action::Complete { op, outcome: Err(error.clone()) });
            self.actions.push_back(Action::Free { op });
        }
        for comm in self.comms.values_mut() {
            comm.ops.clear();
        }
        self.transfer = None;
        error
    }

    fn plan(&mut self, spec: &Spec, world_size: u32, place: Rank) -> Result<Arc<Plan>, CallError> {
        const PLANS_KEPT: usize = 64;
        if let Some((.., plan)) =
            self.plans.iter().find(|(s, n, r, _)| s == spec && *n == world_size && *r == place)
        {
            return Ok(Arc::clone(plan));
        }
        let chunk = self.rules.as_ref().map_or(crate::units::SLOT_BYTES, |r| r.chunk_bytes_max as usize);
        let plan = Arc::new(crate::plan::build(spec, world_size, place, chunk)?);
        if self.plans.len() >= PLANS_KEPT {
            self.plans.remove(0);
        }
        self.plans.push((*spec, world_size, place, Arc::clone(&plan)));
        Ok(plan)
    }

    fn op_mut(&mut self, id: OpId) -> Option<&mut Op> {
        if id.comm == STATE_COMM {
            return self.transfer.as_mut().map(|t| &mut t.op).filter(|o| o.id == id);
        }
        self.comms.get_mut(&id.comm)?.ops.get_mut(id.seq)
    }

    fn evicted_call(&self) -> CallError {
        CallError::Evicted { member: self.me, epoch: self.epoch, cause: "see the halt event".to_owned() }
    }
}

fn nothing_held(plan: &Plan) -> Bitmap {
    Bitmap::empty(plan.chunks.len() as u32)
}
