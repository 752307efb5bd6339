//! The life of one collective on one rank: what is left to do, what is Final, who still has to confirm.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::bitmap::Bitmap;
use crate::ids::{Attempt, ChunkId, OpId, OpSeq, Rank};
use crate::plan::{Place, Plan, Step, Target};
use crate::spec::{Collective, Spec};
use crate::wire::message::{FailCause, Holding, OpReport};

/// How long a result stays servable after `wait()` has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Retention {
    /// The caller promises that the buffers are neither freed nor written before the commit of the step.
    ByReference,
    /// The runtime copies what may be asked for again.
    Copy,
    /// Nothing beyond what the release rule asks.
    None,
}

/// What the caller gave with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallShape {
    /// Input and output are the same memory.
    pub in_place: bool,
    /// How the result is kept.
    pub retention: Retention,
}

/// One op of this rank.
#[derive(Debug)]
pub struct Op {
    /// Its id.
    pub id: OpId,
    /// What the caller asked for: a root counts in the communicator's ranks. The plan's own spec counts in `group`.
    pub spec: Spec,
    /// The contributor set it runs under.
    pub attempt: Attempt,
    /// World ranks of that set; a plan's rank `i` is `group[i]`.
    pub group: Vec<Rank>,
    /// This rank's place in `group`.
    pub place: Rank,
    /// The plan it began with (chunks, spread tree).
    pub plan: Arc<Plan>,
    /// What is left to do: the plan's steps, or the residual ones after a fence.
    pub steps: Steps,
    /// Chunks that are Final here.
    pub held: Bitmap,
    /// Whether the caller has called it.
    pub posted: bool,
    /// What the caller gave.
    pub shape: CallShape,
    /// Kept until the commit of the step.
    pub retained: bool,
    /// Every chunk due here is, or was, Final.
    pub done: bool,
    /// The caller may overwrite its buffer, unless `retained`.
    pub released: bool,
    /// The verdict of the coordinator, if it ended the op.
    pub failed: Option<FailCause>,
    /// Places in `group` that must confirm before release (rule R2).
    pub awaits: Vec<Rank>,
    /// Those that have.
    pub confirmed: BTreeSet<Rank>,
    /// Places in `group` to which a repair makes this rank hand on chunks.
    pub serves: Vec<Rank>,
    /// Places from which a repair makes it take chunks.
    pub served_by: Vec<Rank>,
    /// Every op below this is complete at all ranks whose part has come in.
    pub stable: OpSeq,
    /// When it was called.
    pub posted_ms: u64,
    /// The coordinator has been told that it is overdue, in this epoch.
    pub overdue: bool,
    /// Others have it, and the last decision serves this rank nothing of it.
    pub is_left_out: bool,
    /// Results are in the retention log, apart from the caller's memory.
    pub logged: bool,
    /// Signature for the header, computed once.
    pub signature: u32,
}

/// Steps and how many are done.
#[derive(Debug, Clone)]
pub struct Steps {
    /// The list; a whole plan's is shared with the plan cache.
    list: Arc<Plan>,
    next: usize,
}

impl Steps {
    /// All steps of `plan`.
    #[must_use]
    pub fn new(plan: Arc<Plan>) -> Self {
        Self { list: plan, next: 0 }
    }

    /// The step to do next.
    #[must_use]
    pub fn current(&self) -> Option<Step> {
        self.list.steps.get(self.next).copied()
    }

    /// One is done.
    pub fn advance(&mut self) {
        self.next += 1;
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.next >= self.list.steps.len()
    }

    /// Drops what is left.
    pub fn clear(&mut self) {
        self.next = self.list.steps.len();
    }

    /// Number of steps done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.next
    }
}

impl Op {
    /// A fresh op over `plan`, nothing done yet. `spec` is the caller's, `plan`'s counts in `group`.
    #[must_use]
    pub fn new(
        id: OpId,
        spec: Spec,
        attempt: Attempt,
        group: Vec<Rank>,
        plan: Arc<Plan>,
        shape: CallShape,
    ) -> Self {
        Self {
            id,
            spec,
            attempt,
            group,
            place: plan.rank,
            steps: Steps::new(Arc::clone(&plan)),
            held: Bitmap::empty(plan.chunks.len() as u32),
            plan,
            posted: false,
            shape,
            retained: false,
            done: false,
            released: false,
            failed: None,
            awaits: Vec::new(),
            confirmed: BTreeSet::new(),
            serves: Vec::new(),
            served_by: Vec::new(),
            stable: OpSeq(0),
            posted_ms: 0,
            overdue: false,
            is_left_out: false,
            logged: false,
            signature: spec.signature(),
        }
    }

    /// Whether every chunk that is due here is Final.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.held.is_full() || !self.plan.lacks(self.place, &self.held)
    }

    /// The occupant of a world rank has all of the op; a rank that has no part in it confirms nothing.
    pub fn confirm(&mut self, rank: Rank) {
        if let Some(place) = self.group.iter().position(|r| *r == rank) {
            self.confirmed.insert(Rank(place as u32));
        }
    }

    /// Places that rule R2 still waits for.
    pub fn unconfirmed(&self) -> impl Iterator<Item = Rank> + '_ {
        self.awaits.iter().copied().filter(|place| !self.confirmed.contains(place))
    }

    /// Bytes of the op's global space.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.plan.spec.elements(self.plan.world_size) * self.spec.dtype.size() as u64
    }

    /// The chunk a step makes Final here, if it does.
    #[must_use]
    pub fn finalises(step: Step) -> Option<ChunkId> {
        match step {
            Step::Take { chunk, into: Place::Output, .. }
            | Step::Fold { chunk, into: Target::Output, .. }
            | Step::FoldAll { chunk }
            | Step::Settle { chunk, .. } => Some(chunk),
            Step::Take { into: Place::Input | Place::Scratch, .. }
            | Step::Fold { into: Target::Link(_) | Target::Scratch, .. }
            | Step::Send { .. } => None,
        }
    }

    /// Whether its own contribution can be sent: nothing is left to wait for at this rank.
    #[must_use]
    pub fn can_step(&self) -> bool {
        self.posted && self.failed.is_none() && !self.steps.is_over()
    }

    /// Whether it proves that every rank's earlier ops are complete: every rank's part is in every result.
    #[must_use]
    pub fn spreads_watermark(&self) -> bool {
        matches!(self.spec.collective, Collective::AllReduce | Collective::Barrier | Collective::Commit)
    }

    /// Its row of the ledger.
    #[must_use]
    pub fn report(&self) -> OpReport {
        let servable = !self.released || self.retained || self.logged;
        let lost = if servable && !self.shape.in_place {
            Holding::Nothing {}
        } else if servable {
            Holding::of(&self.held)
        } else {
            Holding::Everything {}
        };
        OpReport {
            seq: self.id.seq,
            spec: self.spec,
            attempt: self.attempt,
            group: self.group.clone(),
            held: if servable { Holding::of(&self.held) } else { Holding::Nothing {} },
            lost,
            released: self.released && self.failed.is_none(),
            done: self.done && self.failed.is_none(),
            failed: self.failed.clone(),
        }
    }
}
