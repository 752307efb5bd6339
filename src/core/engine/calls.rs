//! What the caller asks for: collectives, steps, good-bye.

use super::{Action, CallShape, Comm, Engine, Op, Retention, WORLD};
use crate::error::CallError;
use crate::fnv::{fnv1a_words, fold32};
use crate::ids::{Attempt, CommId, OpId, OpSeq, Rank};
use crate::policy::Policy;
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use crate::wire::message::Upward;

impl Engine {
    /// Takes a collective into the common order of `comm`.
    ///
    /// # Errors
    /// When this member has no seat, took one and is in no step yet, or is out, when the communicator is unknown or
    /// broken, when the algorithm cannot do it.
    pub fn handle_post(
        &mut self,
        comm: CommId,
        spec: Spec,
        shape: CallShape,
        now_ms: u64,
    ) -> Result<OpId, CallError> {
        if self.phase == super::Phase::Halted {
            return Err(self.evicted_call());
        }
        let Some(rank) = self.rank else { return Err(CallError::NotSeated { member: self.me }) };
        if self.newcomer && self.is_spare() && !self.step.open {
            // What the others called outside of steps is over, and nobody keeps it: this call would be taken for one
            // of the step that they are in.
            let next = "make it inside a step, where it is replayed";
            let what = "a call of a newcomer before its first step";
            return Err(CallError::StepOrder { what, epoch: self.epoch, next });
        }
        let Some(c) = self.comms.get(&comm) else { return Err(CallError::UnknownComm { comm }) };
        let id = OpId { comm, seq: c.next };
        let recorded = c.ops.get(id.seq).map(|o| (o.spec, o.failed.is_some()));
        if recorded.is_none()
            && let Some(cause) = &c.broken
        {
            return Err(CallError::Broken { comm, cause: cause.clone() });
        }
        match recorded {
            Some((known, is_failed)) if known != spec && !is_failed => {
                return self.post_differs(id, spec, known, rank);
            }
            // Whatever is called where the others were given an error gets that error.
            Some(_) => self.claim(id, shape, now_ms),
            None => self.admit(id, spec, shape, now_ms)?,
        }
        let saves =
            self.rules.as_ref().is_some_and(|r| r.policy == Policy::Shrink || r.fallback == Policy::Shrink);
        if saves && shape.in_place && !crate::planted!(NoUndo) {
            self.actions.push_back(Action::Save { op: id });
        }
        if let Some(c) = self.comms.get_mut(&comm) {
            c.next = id.seq.next();
        }
        self.settle(id);
        Ok(id)
    }

    /// A call that differs from the recorded one: a newcomer's replay went astray, or another rank calls something
    /// else. The coordinator compares the ledgers and ends the op with the same error for all.
    fn post_differs(
        &mut self,
        id: OpId,
        called: Spec,
        recorded: Spec,
        rank: Rank,
    ) -> Result<OpId, CallError> {
        if self.newcomer {
            let error =
                crate::error::OpError::ReplayMismatch { rank, epoch: self.epoch, op: id, called, recorded };
            self.actions.push_back(Action::Complete { op: id, outcome: Err(error) });
        }
        if let Some(c) = self.comms.get_mut(&id.comm) {
            if let Some(op) = c.ops.get_mut(id.seq) {
                // The ledger must show what was called here.
                op.spec = called;
                op.signature = called.signature();
                op.posted = true;
                op.steps.clear();
                if self.newcomer {
                    // Its caller has its memory back.
                    op.done = true;
                    op.released = true;
                    op.retained = false;
                }
            }
            c.next = id.seq.next();
        }
        self.ask_again(id);
        Ok(id)
    }

    fn claim(&mut self, id: OpId, shape: CallShape, now_ms: u64) {
        let retained = self.retains(shape);
        if let Some(op) = self.op_mut(id) {
            op.posted = true;
            op.shape = shape;
            op.retained = retained;
            op.posted_ms = now_ms;
            if op.is_left_out {
                self.ask_again(id);
            }
        }
    }

    fn retains(&self, shape: CallShape) -> bool {
        let replace = self.rules.as_ref().is_some_and(|r| r.policy == Policy::Replace);
        replace && self.step.open && shape.retention != Retention::None
    }

    fn admit(&mut self, id: OpId, spec: Spec, shape: CallShape, now_ms: u64) -> Result<(), CallError> {
        let group = self.live_group(id.comm);
        let place = self.place_in(&group);
        let op = self.new_op(id, spec, Attempt(0), group, place, shape)?;
        let op = Op { posted: true, posted_ms: now_ms, ..op };
        if let Some(c) = self.comms.get_mut(&id.comm) {
            c.ops.insert(id.seq, op);
        }
        Ok(())
    }

    pub(super) fn live_group(&self, comm: CommId) -> Vec<Rank> {
        let group = self.comms.get(&comm).map_or(&[][..], |c| &c.group);
        group.iter().copied().filter(|r| self.view.occupant(*r).is_some()).collect()
    }

    pub(super) fn place_in(&self, group: &[Rank]) -> Rank {
        let here = group.iter().position(|r| Some(*r) == self.rank);
        Rank(here.unwrap_or(0) as u32)
    }

    /// A fresh op over `group`, nothing done yet.
    pub(super) fn new_op(
        &mut self,
        id: OpId,
        spec: Spec,
        attempt: Attempt,
        group: Vec<Rank>,
        place: Rank,
        shape: CallShape,
    ) -> Result<Op, CallError> {
        let full: &[Rank] = self.comms.get(&id.comm).map_or(&[], |c| &c.group);
        if spec.root.index() >= full.len() {
            let world_size = full.len() as u32;
            return Err(CallError::NoSuchRoot { root: spec.root, comm: id.comm, world_size });
        }
        let fits = group.len() == full.len() || !spec.shape_depends_on_ranks();
        let Some(dense) = spec.over(full, &group).filter(|_| fits) else {
            return Err(CallError::Vacant { comm: id.comm, spec });
        };
        let plan = self.plan(&dense, group.len() as u32, place)?;
        let retained = self.retains(shape);
        let stable = self.comms.get(&id.comm).map_or(OpSeq(0), |c| c.done_below);
        let op = Op { retained, stable, ..Op::new(id, spec, attempt, group, plan, shape) };
        self.confirming |= Self::confirms(&op, self.retain_bytes());
        Ok(op)
    }

    /// Up to this size a copy of the result stands in for the release wait.
    pub(super) fn retain_bytes(&self) -> u64 {
        self.rules.as_ref().map_or(crate::units::RETAIN_BYTES as u64, |r| u64::from(r.retain_bytes))
    }

    /// Whether ranks wait for each other's confirmation before they release this op (rule R2). Every rank must come
    /// to the same answer, so it depends on the call alone.
    pub(super) fn confirms(op: &Op, retain_bytes: u64) -> bool {
        let single = matches!(op.spec.collective, Collective::ReduceScatter | Collective::Reduce);
        // What only its owner gets cannot be served by others: though the inputs are retained, they end with their
        // ranks. So even a retained one waits until every owner has its part; else the op could end in an error at
        // one rank after another was released from it.
        single || !op.retained && op.bytes() > retain_bytes && op.spec.collective != Collective::State
    }

    /// Begins a step whose state regions hold `state_bytes` bytes. [`Action::StepBegun`] follows: at once for a rank
    /// that goes on, after the seat and the state for a spare.
    ///
    /// # Errors
    /// When a step is open, when the size differs from that of the steps before, when the member is out.
    pub fn handle_begin(&mut self, state_bytes: u64) -> Result<(), CallError> {
        if self.phase == super::Phase::Halted {
            return Err(self.evicted_call());
        }
        if self.step.open || self.step.asked {
            let next = "commit the open step first";
            return Err(CallError::StepOrder { what: "begin_step inside a step", epoch: self.epoch, next });
        }
        if self.step.state_bytes != 0 && self.step.state_bytes != state_bytes {
            return Err(CallError::StateSize { here: state_bytes, there: self.step.state_bytes });
        }
        self.step.asked = true;
        self.step.state_gone = false;
        self.step.state_bytes = state_bytes;
        // Whoever takes or serves the state of this step has promised its size.
        if let Some(transfer) = &self.transfer
            && (transfer.incoming || transfer.committed == self.step.committed)
        {
            let there = transfer.op.spec.count;
            if there != state_bytes {
                self.step.asked = false;
                self.step.state_bytes = 0;
                return Err(CallError::StateSize { here: state_bytes, there });
            }
        }
        self.settle_step();
        Ok(())
    }

    /// Answers an open `begin_step` if it can be answered.
    pub(super) fn settle_step(&mut self) {
        if !self.step.asked || self.rank.is_none() || self.phase == super::Phase::Halted {
            return;
        }
        if let Some(transfer) = self.transfer.as_mut().filter(|t| t.incoming) {
            transfer.op.posted = true;
            if !transfer.op.steps.is_over() {
                return;
            }
            self.transfer = None;
            self.messages.push_back(Upward::Milestone {
                epoch: self.epoch,
                what: crate::wire::message::Milestone::StateHeld {},
            });
        }
        self.step.asked = false;
        self.step.open = true;
        for c in self.comms.values_mut() {
            c.begins = c.next;
        }
        if let Some(transfer) =
            self.transfer.as_mut().filter(|t| !t.incoming && t.committed == self.step.committed)
        {
            transfer.op.posted = true;
        }
        self.actions.push_back(Action::StepBegun { committed: self.step.committed });
        self.check_caught_up();
    }

    /// Ends the open step: a tiny op over the world, joined once every other op of the step is complete here.
    ///
    /// # Errors
    /// When no step is open, and as [`Engine::handle_post`].
    pub fn handle_commit(&mut self, now_ms: u64) -> Result<OpId, CallError> {
        if !self.step.open {
            let next = "begin a step first";
            return Err(CallError::StepOrder { what: "commit_step outside a step", epoch: self.epoch, next });
        }
        let shape = CallShape { in_place: false, retention: Retention::None };
        self.handle_post(WORLD, Self::empty_spec(Collective::Commit, self.rules_world_size()), shape, now_ms)
    }

    fn rules_world_size(&self) -> u32 {
        self.rules.as_ref().map_or(1, |r| r.world_size)
    }

    /// The spec of an op without elements.
    #[must_use]
    pub fn empty_spec(collective: Collective, world_size: u32) -> Spec {
        let algorithm = if world_size <= 8 { Algorithm::Direct } else { Algorithm::Binomial };
        Spec { collective, dtype: Dtype::U8, reduction: ReduceOp::Sum, count: 0, root: Rank(0), algorithm }
    }

    /// The caller took its state regions back: after a commit nothing else happens; in an open step that the caller
    /// gave up nothing of them is served any more. True: the coordinator has to hear of it.
    pub fn handle_state_gone(&mut self) -> bool {
        self.step.state_gone = self.step.open;
        let Some(transfer) = &mut self.transfer else { return false };
        transfer.op.posted = false;
        let (op, serves) = (transfer.op.id, !transfer.incoming);
        if self.step.open && serves {
            // A newcomer waits for the rest of it: the next decision takes it from others.
            self.ask_again(op);
        }
        !self.messages.is_empty()
    }

    /// Makes a communicator of these world ranks known here; every rank of it does so with the same id.
    ///
    /// # Errors
    /// When this member has no seat, when the id is that of other ranks.
    pub fn handle_split(&mut self, comm: CommId, group: Vec<Rank>) -> Result<(), CallError> {
        if self.rank.is_none() {
            return Err(CallError::NotSeated { member: self.me });
        }
        let known = self.comms.entry(comm).or_insert_with(|| Comm::new(group.clone(), OpSeq(0)));
        if known.group == group { Ok(()) } else { Err(CallError::SplitClash { comm }) }
    }

    /// The id of the `index`-th communicator that a split makes: from what every rank agrees on and a replay repeats,
    /// the parent and the split's place in the parent's order.
    #[must_use]
    pub fn split_id(parent: CommId, at: OpSeq, index: u32) -> CommId {
        let parts = [u64::from(parent.0), at.0, u64::from(index)];
        // The world's id and that of the state are no one else's.
        CommId((fold32(fnv1a_words(parts)) >> 1).max(1))
    }

    /// What the caller calls next on `comm`.
    #[must_use]
    pub fn next_op(&self, comm: CommId) -> Option<OpSeq> {
        self.comms.get(&comm).map(|c| c.next)
    }

    /// The member goes by itself.
    pub fn handle_leave(&mut self) {
        self.leaving = true;
        self.messages.push_back(Upward::Leave {});
    }
}
