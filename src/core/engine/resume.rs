//! Acts on a decision: opens the epoch, ends what must end, gives every op what is left of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::op::Steps;
use super::{Action, CallShape, Comm, Engine, Op, Retention, STATE_COMM, Transfer, Trigger, WORLD};
use crate::bitmap::Bitmap;
use crate::ids::{Attempt, ChunkId, OpId, OpSeq, Rank};
use crate::plan::{Chunk, Place, Plan, Spread, Step, residual};
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use crate::wire::message::{Decision, FailCause, Holding, OpDecision, StateDecision, Upward, Verdict};

impl Engine {
    pub(super) fn handle_decision(&mut self, decision: Decision, now_ms: u64) {
        let view = &decision.view;
        if view.epoch <= self.epoch || view.epoch < self.fence {
            return; // Heard before, or told once more to one that has answered a later fence: nothing may change now.
        }
        let Some(rank) = view.rank_of(self.me) else {
            return; // Still a spare.
        };
        let invited = decision.newcomers.contains(&rank);
        let first_seat = self.rank.is_none();
        if !self.go(if invited { Trigger::Invited } else { Trigger::Seated }) {
            return;
        }
        self.epoch = view.epoch;
        self.fence = self.fence.max(view.epoch);
        self.rank = Some(rank);
        self.view = view.clone();
        self.faults.clear();
        self.mismatched = false;
        self.newcomer |= invited && first_seat;
        let peers = view.members.iter().filter(|m| m.member != self.me && view.rank_of(m.member).is_some());
        self.actions.push_back(Action::Open { epoch: self.epoch, peers: peers.cloned().collect() });
        self.install_comms(&decision, rank, first_seat);
        self.pass_commit(&decision);
        self.plan_transfer(decision.state.as_ref(), rank);
        self.resuming.clear();
        self.replaying.clear();
        for op in &decision.ops {
            self.apply(op, &decision, rank, now_ms);
        }
        self.refresh_later_ops(&decision, now_ms);
        self.settle_all();
        self.settle_step();
        self.check_caught_up();
    }

    /// A spare begins where the others' step began; a rank that has missed the first decision, where all did.
    fn install_comms(&mut self, decision: &Decision, rank: Rank, first_seat: bool) {
        for c in decision.comms.iter().filter(|c| c.group.contains(&rank)) {
            let first = if self.is_spare() { c.begins } else { c.step_first };
            let known = self.comms.entry(c.comm).or_insert_with(|| Comm::new(c.group.clone(), first));
            known.broken.clone_from(&c.broken);
            if first_seat {
                known.step_first = first;
            }
        }
        if first_seat {
            self.step.committed = decision.committed;
        }
    }

    /// The step is committed, whatever this rank's own commit says.
    fn pass_commit(&mut self, decision: &Decision) {
        if decision.committed <= self.step.committed {
            return;
        }
        let commit = self.comms.get(&WORLD).and_then(|c| {
            c.ops.values().find(|o| o.spec.collective == Collective::Commit && !o.released).map(|o| o.id)
        });
        if let Some(id) = commit {
            if let Some(op) = self.op_mut(id) {
                op.steps.clear();
                op.held = Bitmap::full(op.plan.chunks.len() as u32);
                op.awaits.clear();
            }
            self.settle(id);
        }
    }

    /// One op of the decision.
    fn apply(&mut self, d: &OpDecision, decision: &Decision, rank: Rank, now_ms: u64) {
        if !d.group.contains(&rank)
            || decision.comms.iter().any(|c| c.comm == d.id.comm && d.id.seq < c.step_first)
        {
            return;
        }
        let known = self.op(d.id).is_some();
        if !known && self.comms.get(&d.id.comm).is_some_and(|c| c.next > d.id.seq) {
            return; // Complete everywhere and forgotten here.
        }
        let place = self.place_in(&d.group);
        // An error is everybody's, whoever was to be served.
        if !matches!(d.verdict, Verdict::Fail { .. })
            && matches!(d.held.get(place.index()), Some(Holding::Satisfied {}))
            && self.op(d.id).is_none_or(|o| !o.done)
        {
            self.leave_out(d);
            return;
        }
        if !known {
            let shape = CallShape { in_place: true, retention: Retention::None };
            let full = self.comms.get(&d.id.comm).map(|c| c.group.clone()).unwrap_or_default();
            // An op that only fails needs no plan over those who are left.
            let failing = matches!(d.verdict, Verdict::Fail { .. });
            let group = if failing { full } else { d.group.clone() };
            let own = self.place_in(&group);
            let Ok(op) = self.new_op(d.id, d.spec, d.attempt, group, own, shape) else { return };
            if let Some(c) = self.comms.get_mut(&d.id.comm) {
                c.ops.insert(d.id.seq, op);
            }
        }
        if self.op(d.id).is_some_and(|o| o.spec != d.spec) && !matches!(d.verdict, Verdict::Fail { .. }) {
            // Called here after the ledger was told, and not what the others called: the next ledger shows it.
            if let Some(op) = self.op_mut(d.id) {
                op.steps.clear();
            }
            self.ask_again(d.id);
            return;
        }
        self.note_progress(d, decision, place);
        match &d.verdict {
            Verdict::Keep {} => {
                if let Some(op) = self.op_mut(d.id) {
                    op.steps.clear();
                    op.confirmed = (0..op.group.len() as u32).map(Rank).collect();
                    if !op.done && op.posted && op.is_whole() {
                        op.done = true;
                        self.after_done(d.id);
                    }
                }
            }
            Verdict::Repair {} => self.repair(d, decision, place, now_ms),
            Verdict::Shrink {} => self.run_again(d, place, now_ms),
            Verdict::Fail { cause } => {
                if let Some(op) = self.op_mut(d.id) {
                    op.failed = Some(cause.clone());
                    op.steps.clear();
                }
            }
        }
    }

    /// Others have the op, and this rank is served nothing of it: when the ledger was told it had not called the op,
    /// and was not going to. If it has called it since, or does so later, it asks for another decision.
    fn leave_out(&mut self, d: &OpDecision) {
        let Some(op) = self.op_mut(d.id) else { return };
        op.is_left_out = true;
        op.steps.clear();
        if op.posted {
            self.ask_again(d.id);
        }
    }

    pub(super) fn ask_again(&mut self, op: OpId) {
        if let Some(peer) = self.rank {
            self.messages.push_back(Upward::Mismatch { op, peer, epoch: self.epoch });
        }
    }

    /// Which ops are replay for the newcomers and which were cut short by the loss. An op that is complete here waits
    /// for nothing.
    fn note_progress(&mut self, d: &OpDecision, decision: &Decision, place: Rank) {
        let ends = matches!(d.verdict, Verdict::Fail { .. });
        let again = matches!(d.verdict, Verdict::Shrink {});
        if ends || self.op(d.id).is_some_and(|o| o.done) && !again {
            return;
        }
        let Some(plan) = self.plan_over(d, place) else { return };
        let old = (0..d.group.len()).filter(|i| !decision.newcomers.contains(&d.group[*i]));
        let cut = old.into_iter().any(|i| lacks(&plan, &d.held[i], Rank(i as u32)));
        if cut || again {
            self.resuming.insert(d.id);
        } else if self.newcomer {
            self.replaying.insert(d.id);
        }
    }

    fn repair(&mut self, d: &OpDecision, decision: &Decision, place: Rank, now_ms: u64) {
        let Some(plan) = self.plan_over(d, place) else { return };
        let chunks = plan.chunks.len() as u32;
        let vacant: Vec<bool> = d.group.iter().map(|r| self.view.occupant(*r).is_none()).collect();
        let mut held: Vec<Bitmap> = d.held.iter().map(|h| h.expand(chunks)).collect();
        let twice = crate::planted!(CountTwice) && !decision.newcomers.is_empty();
        if twice {
            held.fill(Bitmap::empty(chunks));
        }
        let satisfied: Vec<bool> = d.held.iter().map(|h| matches!(h, Holding::Satisfied {})).collect();
        let left = residual::residual(&plan, &held, &satisfied, &vacant);
        let confirmed: BTreeSet<Rank> = (0..d.group.len())
            .filter(|i| vacant[*i] || !lacks(&plan, &d.held[*i], Rank(*i as u32)))
            .map(|i| Rank(i as u32))
            .collect();
        let Some(op) = self.op_mut(d.id) else { return };
        if twice {
            op.held = Bitmap::empty(chunks);
        }
        // It has missed the decision that began this attempt: what it has is of another one.
        let is_stale = op.attempt != d.attempt;
        let is_spoiled = is_stale && op.posted && op.shape.in_place;
        if is_stale {
            op.held = Bitmap::empty(chunks);
            op.done = false;
        }
        op.is_left_out = false;
        op.plan = Arc::clone(&plan);
        op.attempt = d.attempt;
        op.group.clone_from(&d.group);
        op.place = place;
        op.stable = OpSeq(0);
        op.confirmed = confirmed;
        // The deadline runs anew: told again at once, an op that is repaired after it would be fenced for ever.
        op.overdue = false;
        op.posted_ms = now_ms;
        match left {
            Ok(left) => {
                op.note_hand_on(&left.steps);
                op.steps = Steps::new(Arc::new(left));
            }
            // The coordinator judged with the same rules; a plan it could not make is a verdict it would not give.
            Err(error) => panic!("{} on {}: the verdict is repair, but {error}", d.id, op.place),
        }
        if is_spoiled {
            self.actions.push_back(Action::Restore { op: d.id });
        }
        let Some(op) = self.op_mut(d.id) else { return };
        let (done, reopened) = (op.done, op.done && !op.is_whole());
        assert!(!reopened || op.released, "{}: done, not whole and not released", d.id);
        if done {
            // The view is another one, and there is more to hand on.
            let sets = self.op(d.id).map(|op| self.release_sets(op));
            if let (Some(op), Some(sets)) = (self.op_mut(d.id), sets) {
                op.awaits = sets.awaits;
            }
        }
    }

    /// The whole plan of an op over the decision's contributor set.
    fn plan_over(&mut self, d: &OpDecision, place: Rank) -> Option<Arc<Plan>> {
        let comm = self.comms.get(&d.id.comm).map(|c| c.group.clone())?;
        let spec = d.spec.over(&comm, &d.group)?;
        self.plan(&spec, d.group.len() as u32, place).ok()
    }

    /// A new attempt over the survivors, from the saved inputs.
    fn run_again(&mut self, d: &OpDecision, place: Rank, now_ms: u64) {
        let Some(plan) = self.plan_over(d, place) else { return };
        let Some(op) = self.op_mut(d.id) else { return };
        let spoiled = op.posted && op.shape.in_place;
        op.attempt = d.attempt;
        op.group.clone_from(&d.group);
        op.place = place;
        op.held = super::nothing_held(&plan);
        op.steps = Steps::new(Arc::clone(&plan));
        op.plan = plan;
        op.done = false;
        op.stable = OpSeq(0);
        op.awaits.clear();
        op.confirmed.clear();
        op.note_hand_on(&[]);
        // The deadline runs anew: told again at once, an op that is repaired after it would be fenced for ever.
        op.overdue = false;
        op.posted_ms = now_ms;
        if spoiled {
            self.actions.push_back(Action::Restore { op: d.id });
        }
    }

    /// Ops called here that the decision does not know (called after the ledger was told): they begin in the new view.
    fn refresh_later_ops(&mut self, decision: &Decision, now_ms: u64) {
        let known: BTreeSet<OpId> = decision.ops.iter().map(|o| o.id).collect();
        let later: Vec<(OpId, Spec, CallShape, bool)> = self
            .comms
            .values()
            .flat_map(|c| c.ops.values())
            .filter(|o| !known.contains(&o.id) && !o.done && o.failed.is_none())
            .map(|o| (o.id, o.spec, o.shape, o.posted))
            .collect();
        for (id, spec, shape, posted) in later {
            let group = self.live_group(id.comm);
            let place = self.place_in(&group);
            let broken = self.comms.get(&id.comm).and_then(|c| c.broken.clone());
            let fresh = self.new_op(id, spec, Attempt(0), group, place, shape);
            let Ok(mut op) = fresh else {
                // It cannot go without the vacant seats.
                let losses = self.losses.clone();
                if let Some(op) = self.op_mut(id) {
                    op.failed = Some(FailCause::ShapeChanged { losses });
                    op.steps.clear();
                }
                continue;
            };
            op.posted = posted;
            op.posted_ms = now_ms;
            op.failed = broken;
            if op.failed.is_some() {
                op.steps.clear();
            }
            if let Some(c) = self.comms.get_mut(&id.comm) {
                c.ops.insert(id.seq, op);
            }
        }
    }

    fn settle_all(&mut self) {
        for c in self.comms.values_mut() {
            let open = c.ops.values().find(|o| !o.steps.is_over()).map(|o| o.id.seq);
            c.cursor = open.unwrap_or(c.next);
        }
        let ids: Vec<OpId> = self.comms.values().flat_map(|c| c.ops.values().map(|o| o.id)).collect();
        for id in ids {
            self.settle(id);
            self.try_release(id);
        }
    }

    /// Who sends the step's state to whom: chunk `i` of it comes from provider `i mod providers`.
    fn plan_transfer(&mut self, state: Option<&StateDecision>, rank: Rank) {
        self.transfer = None;
        let Some(state) = state else { return };
        let mine = state.newcomers.iter().find(|(r, _)| *r == rank);
        let provides = state.providers.contains(&rank);
        if mine.is_none() && !provides {
            return;
        }
        let chunk_bytes =
            self.rules.as_ref().map_or(crate::units::SLOT_BYTES as u64, |r| u64::from(r.chunk_bytes_max));
        let plan = state_plan(state, rank, self.view.world_size(), chunk_bytes);
        let id = OpId { comm: STATE_COMM, seq: OpSeq(state.committed) };
        let held = mine.map_or_else(
            || Bitmap::full(plan.chunks.len() as u32),
            |(_, h)| h.expand(plan.chunks.len() as u32),
        );
        let posted = if mine.is_some() {
            self.step.asked && self.step.state_bytes == state.bytes
        } else {
            let is_in_step = self.step.open && self.step.committed == state.committed;
            (is_in_step || crate::planted!(StateEarly)) && !self.step.state_gone
        };
        let shape = CallShape { in_place: true, retention: Retention::None };
        let group = (0..self.view.world_size()).map(Rank).collect();
        let op = Op { held, posted, ..Op::new(id, plan.spec, Attempt(0), group, Arc::new(plan), shape) };
        if mine.is_some() && self.step.asked && !posted {
            let (here, there) = (self.step.state_bytes, state.bytes);
            self.halt(&format!("its state regions hold {here} bytes, the survivors' {there}"));
            return;
        }
        let over = op.steps.is_over();
        if mine.is_some() || !over {
            self.transfer = Some(Transfer { op, committed: state.committed, incoming: mine.is_some() });
        }
    }
}

/// Whether the rank at `place` with these holdings lacks something it is due.
fn lacks(plan: &Plan, held: &Holding, place: Rank) -> bool {
    !matches!(held, Holding::Satisfied {}) && plan.lacks(place, &held.expand(plan.chunks.len() as u32))
}

fn state_plan(state: &StateDecision, rank: Rank, world_size: u32, chunk_bytes: u64) -> Plan {
    let count = state.bytes.div_ceil(chunk_bytes) as u32;
    let chunks: Vec<Chunk> = (0..count)
        .map(|i| {
            let start = u64::from(i) * chunk_bytes;
            let owner = state.providers[i as usize % state.providers.len()];
            Chunk { start, len: chunk_bytes.min(state.bytes - start), owner }
        })
        .collect();
    let lacks: Vec<(Rank, Bitmap)> = state.newcomers.iter().map(|(r, h)| (*r, h.expand(count))).collect();
    let mut steps = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let id = ChunkId(index as u32);
        for (newcomer, held) in &lacks {
            if held.has(id) {
                continue;
            }
            if *newcomer == rank {
                steps.push(Step::Take { chunk: id, from: chunk.owner, into: Place::Output });
            } else if chunk.owner == rank {
                steps.push(Step::Send { chunk: id, from: Place::Output, to: *newcomer });
            }
        }
    }
    let spec = Spec {
        collective: Collective::State,
        dtype: Dtype::U8,
        reduction: ReduceOp::Sum,
        count: state.bytes,
        root: Rank(0),
        algorithm: Algorithm::Direct,
    };
    Plan { spec, world_size, rank, chunks, spread: Spread::Star, steps }
}
