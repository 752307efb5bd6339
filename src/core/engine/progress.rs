//! The loop in the middle: which step comes next, and what follows when it is done.

use super::{Action, CommId, Engine, Op, Turn, WORLD};
use crate::ids::{ChunkId, MemberId, OpId, OpSeq};
use crate::spec::Collective;
use crate::wire::message::{Milestone, Upward};
use crate::wire::{Header, Kind};

impl Engine {
    /// The step that `comm` waits to do; nothing while the member is fenced, or its lease has lapsed. The state of a
    /// step goes before everything else, so that it is first on every link to a newcomer.
    #[must_use]
    pub fn next_step(&self, comm: CommId) -> Option<Turn> {
        if !self.phase.is_moving() || (self.lapsed && !crate::planted!(IgnoreLease)) {
            return None;
        }
        if let Some(transfer) = self.transfer.as_ref().filter(|t| t.op.can_step()) {
            return transfer.op.steps.current().map(|step| Turn { op: transfer.op.id, step });
        }
        let c = self.comms.get(&comm)?;
        let op = c.ops.get(c.cursor).filter(|o| o.can_step())?;
        if op.spec.collective == Collective::Commit && !self.may_commit(op.id) {
            return None;
        }
        op.steps.current().map(|step| Turn { op: op.id, step })
    }

    /// A rank joins the commit once all its ops of the step are complete here.
    fn may_commit(&self, commit: OpId) -> bool {
        let behind = |o: &Op| o.id.comm == commit.comm && o.id >= commit;
        self.comms.values().all(|c| c.unreleased().all(|o| behind(o) || !o.posted))
    }

    /// The header of a message of `op`.
    #[must_use]
    pub fn header(&self, op: &Op, kind: Kind, chunk: ChunkId, payload_bytes: usize) -> Header {
        Header {
            kind,
            op: op.id,
            attempt: op.attempt,
            epoch: self.epoch,
            chunk,
            signature: op.signature,
            payload_bytes: payload_bytes as u32,
            stable: op.stable,
            checksum: 0,
        }
    }

    /// The current step of `id` is done; `stable` is the lowest watermark of the messages it took.
    pub fn handle_step_done(&mut self, id: OpId, stable: Option<OpSeq>) {
        let Some(op) = self.op_mut(id) else { return };
        let Some(step) = op.steps.current() else { return };
        op.steps.advance();
        if let Some(stable) = stable {
            op.stable = op.stable.min(stable);
        }
        if let Some(chunk) = Op::finalises(step) {
            assert!(!op.held.has(chunk), "{id} {chunk} became Final twice on {}", op.place);
            op.held.insert(chunk);
        }
        if op.steps.is_over() {
            if id.comm == super::STATE_COMM {
                self.finish_transfer();
            } else {
                self.settle(id);
            }
        }
    }

    fn finish_transfer(&mut self) {
        let incoming = self.transfer.as_ref().is_some_and(|t| t.incoming);
        if incoming {
            self.settle_step();
        } else {
            self.transfer = None;
        }
    }

    /// Moves an op along after its steps are over: whole, confirmed, released; then the ops behind it.
    pub(super) fn settle(&mut self, id: OpId) {
        if !self.phase.is_moving() {
            return; // The ledger is told. The decision settles everything, in its own view.
        }
        let Some(op) = self.comms.get(&id.comm).and_then(|c| c.ops.get(id.seq)) else { return };
        if !op.posted || !op.steps.is_over() {
            return;
        }
        if let Some(cause) = op.failed.clone() {
            if !op.released {
                self.end_failed(id, cause);
            }
        } else if !op.done && op.is_whole() {
            self.finish(id);
        } else if op.done && !op.released {
            // Done before a fence, and now through with what it had left to send.
            self.try_release(id);
        }
        self.advance_cursor(id.comm);
    }

    fn end_failed(&mut self, id: OpId, cause: crate::wire::message::FailCause) {
        let Some(rank) = self.rank else { return };
        let epoch = self.epoch;
        if let Some(op) = self.op_mut(id) {
            op.done = true;
            op.released = true;
            op.retained = false;
            let error = crate::error::OpError::Failed { rank, epoch, op: id, spec: op.spec, cause };
            self.actions.push_back(Action::Complete { op: id, outcome: Err(error) });
        }
        self.pass_released(id.comm);
        self.after_done(id);
    }

    /// Every chunk due here is Final.
    fn finish(&mut self, id: OpId) {
        let Some(sets) = self.op(id).map(|op| self.release_sets(op)) else { return };
        let Some(op) = self.op_mut(id) else { return };
        op.done = true;
        op.awaits = sets.awaits;
        let now = op.attempt;
        for rank in self.take_early_confirms(id, now) {
            if let Some(op) = self.op_mut(id) {
                op.confirm(rank);
            }
        }
        self.confirm_to(id, &sets.due);
        self.try_release(id);
        self.after_done(id);
    }

    pub(super) fn try_release(&mut self, id: OpId) {
        let moving = self.phase.is_moving() && (!self.lapsed || crate::planted!(IgnoreLease));
        let retain_bytes = self.retain_bytes();
        let Some(op) = self.op_mut(id) else { return };
        if op.released || !op.done || !moving || op.failed.is_some() {
            return;
        }
        let confirmed = op.unconfirmed().next().is_none();
        if !confirmed && !crate::planted!(ReleaseLocal) {
            return;
        }
        let small = !op.retained && op.bytes() <= retain_bytes && op.bytes() > 0;
        if !op.retained && !small && !op.steps.is_over() {
            return; // What is left to send is sent from the caller's memory.
        }
        op.released = true;
        let by_copy = op.retained && op.shape.retention == super::Retention::Copy;
        if (by_copy || small) && op.posted {
            op.logged = true;
            if !crate::planted!(ForgetRetained) {
                self.actions.push_back(Action::Log { op: id });
            }
        } else if op.bytes() == 0 {
            op.logged = true;
        }
        let Some(op) = self.op_mut(id) else { return };
        let outcome = Ok(op.group.clone());
        let commit = op.spec.collective == Collective::Commit;
        self.actions.push_back(Action::Complete { op: id, outcome });
        self.pass_released(id.comm);
        if commit {
            self.close_step(id.seq.next());
        }
    }

    fn pass_released(&mut self, comm: CommId) {
        if let Some(c) = self.comms.get_mut(&comm) {
            c.pass_released();
        }
    }

    /// The commit is passed: nothing of the step is asked for again.
    pub(super) fn close_step(&mut self, next_first: OpSeq) {
        self.step.committed += 1;
        self.step.open = false;
        let world = self.comms.get_mut(&WORLD);
        if let Some(c) = world {
            c.step_first = next_first;
        }
        for (id, c) in &mut self.comms {
            if *id != WORLD {
                c.step_first = c.next;
            }
        }
        let ids: Vec<CommId> = self.comms.keys().copied().collect();
        for comm in ids {
            let below = self.comms.get(&comm).map_or(OpSeq(0), |c| c.step_first);
            self.forget(comm, below);
        }
    }

    /// Drops every op of `comm` below `below` whose steps are over.
    pub(super) fn forget(&mut self, comm: CommId, below: OpSeq) {
        let Some(c) = self.comms.get_mut(&comm) else { return };
        let is_old = |o: &&Op| o.released && o.steps.is_over();
        let old: Vec<OpSeq> = c.ops.range(..below).filter(is_old).map(|o| o.id.seq).collect();
        for seq in old {
            c.ops.remove(seq);
            self.actions.push_back(Action::Free { op: OpId { comm, seq } });
        }
    }

    pub(super) fn after_done(&mut self, id: OpId) {
        let Some(c) = self.comms.get_mut(&id.comm) else { return };
        while c.ops.get(c.done_below).is_some_and(|o| o.done) || (c.done_below < c.step_first) {
            c.done_below = c.done_below.next();
        }
        if let Some(op) = c.ops.get(id.seq)
            && op.spreads_watermark()
            && op.failed.is_none()
        {
            c.stable = c.stable.max(op.stable);
        }
        let (stable, retained) = (c.stable, c.ops.get(id.seq).is_some_and(|o| o.retained));
        if self.resuming.remove(&id) && self.resuming.is_empty() {
            self.messages.push_back(Upward::Milestone { epoch: self.epoch, what: Milestone::Resumed {} });
        }
        self.replaying.remove(&id);
        self.check_caught_up();
        if !retained {
            self.forget_stable(id.comm, stable);
        }
    }

    /// Drops ops that every rank has, unless the open step retains them.
    pub(super) fn forget_stable(&mut self, comm: CommId, stable: OpSeq) {
        if self.step.open {
            return; // Inside a step the ledger lists every op of it: a newcomer asks for each.
        }
        let Some(c) = self.comms.get(&comm) else { return };
        let first_retained = c.ops.values().find(|o| o.retained).map_or(stable, |o| o.id.seq.min(stable));
        self.forget(comm, first_retained);
    }

    pub(super) fn check_caught_up(&mut self) {
        if self.newcomer && self.replaying.is_empty() && self.transfer.is_none() && self.step.open {
            self.newcomer = false;
            self.go(super::Trigger::Caught);
            self.messages.push_back(Upward::Milestone { epoch: self.epoch, what: Milestone::Replayed {} });
        }
    }

    /// Goes past ops whose steps are over; an op that is not called yet stops the line only if it has steps left.
    pub(super) fn advance_cursor(&mut self, comm: CommId) {
        let Some(c) = self.comms.get_mut(&comm) else { return };
        while c.cursor < c.next || c.ops.has(c.cursor) {
            if c.ops.get(c.cursor).is_some_and(|o| !o.steps.is_over()) {
                break;
            }
            c.cursor = c.cursor.next();
        }
    }

    /// A message that no call here expects.
    pub fn handle_mismatch(&mut self, op: OpId, from: MemberId) {
        if self.mismatched {
            return; // Told already; the fence is on its way.
        }
        if let Some(peer) = self.view.rank_of(from) {
            self.mismatched = true;
            self.messages.push_back(Upward::Mismatch { op, peer, epoch: self.epoch });
        }
    }
}
