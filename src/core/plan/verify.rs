//! The proof of a plan over all ranks: every rank's steps are run on symbols instead of numbers.
//!
//! A value is its association tree over the ranks' inputs, stored once however often it occurs, so that equal trees
//! are equal numbers. Links are in order and have a fixed number of slots; a send into a full link waits. Such a system
//! is deterministic: which rank runs next changes neither the values nor whether it gets stuck, so one run proves all.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::bitmap::Bitmap;
use crate::ids::{ChunkId, Rank};
use crate::plan::leaves::fold_canonical;
use crate::plan::residual::{self, Paths, lowest_holder};
use crate::plan::{Chunk, Order, Place, Plan, Spread, Step, Target};
use crate::spec::{Collective, Spec};

/// Where every rank stands when the plans start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Initial {
    /// Chunks each rank holds as Final already.
    pub held: Vec<Bitmap>,
    /// Ranks with nobody in them: they have no steps, get nothing and give nothing.
    pub vacant: Vec<bool>,
    /// Ranks that were released with all they are due: they take nothing, and hand on only what they hold.
    pub satisfied: Vec<bool>,
}

impl Initial {
    /// A fresh op: nothing is Final, every rank lives.
    #[must_use]
    pub fn fresh(world_size: u32, chunks: u32) -> Self {
        let ranks = world_size as usize;
        let none = vec![false; ranks];
        Self { held: vec![Bitmap::empty(chunks); ranks], vacant: none.clone(), satisfied: none }
    }

    fn away(&self, chunk: ChunkId) -> Cow<'_, [bool]> {
        residual::away(chunk, &self.held, &self.satisfied, &self.vacant)
    }
}

/// What a plan was proven to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Longest chain of messages, each made of the one before, that a value taken by each rank hangs on.
    pub rounds: Vec<u32>,
    /// Messages each rank sends.
    pub messages: Vec<u64>,
    /// Payload bytes each rank sends.
    pub bytes: Vec<u64>,
    /// Chunks each rank keeps in scratch at once, at most.
    pub scratch_chunks: Vec<u32>,
    /// Whether every chunk that was reduced has the canonical association.
    pub canonical: bool,
}

impl Proof {
    /// The longest chain of any rank.
    #[must_use]
    pub fn rounds_max(&self) -> u32 {
        self.rounds.iter().copied().max().unwrap_or(0)
    }
}

/// A step of a rank, as faults name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// The rank.
    pub rank: Rank,
    /// Index of the step in its plan.
    pub step: usize,
    /// The chunk of the step.
    pub chunk: ChunkId,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} step {} ({})", self.rank, self.step, self.chunk)
    }
}

/// Why plans are wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The plans are not parts of one op.
    #[error("plan of {rank}: {what}")]
    Shape {
        /// Whose plan.
        rank: Rank,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A chunk lies wrong in the op's elements.
    #[error("{chunk}: {what}")]
    Cut {
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The step names a rank or a chunk that does not exist, or a place it cannot use.
    #[error("{at}: {what}")]
    Step {
        /// Where.
        at: At,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No rank can go on.
    #[error("deadlock: {at} waits for ever, it {waits_for}")]
    Deadlock {
        /// The first rank that is stuck.
        at: At,
        /// What it waits for.
        waits_for: String,
    },
    /// The next message is not the one the step takes.
    #[error("{at}: {from} sent {got} where {wanted} was expected")]
    WrongMessage {
        /// Where.
        at: At,
        /// The sender.
        from: Rank,
        /// What came.
        got: String,
        /// What the step takes.
        wanted: String,
    },
    /// The place is empty.
    #[error("{at}: there is no value in {place}")]
    NoValue {
        /// Where.
        at: At,
        /// The place.
        place: Place,
    },
    /// The caller's input is read where an in-place op has overwritten it already (rule R1).
    #[error("{at}: input is read after output was written")]
    InputGone {
        /// Where.
        at: At,
    },
    /// A chunk becomes Final twice.
    #[error("{at}: output is written a second time")]
    Rewritten {
        /// Where.
        at: At,
    },
    /// A rank's contribution enters twice.
    #[error("{at}: a contribution enters twice")]
    CountedTwice {
        /// Where.
        at: At,
    },
    /// A Final lacks contributions, or has one too many.
    #[error("{at}: Final holds {has} contributions, not the {wanted} of the op")]
    Incomplete {
        /// Where.
        at: At,
        /// How many it holds.
        has: u32,
        /// How many the op has.
        wanted: u32,
    },
    /// Two ranks hold different values of a chunk.
    #[error("{at}: another rank holds this chunk with another association")]
    Differs {
        /// Where.
        at: At,
    },
    /// A Final comes from a rank that is not above the receiver on the path.
    #[error("{at}: Final comes from {from}, the path says {wanted:?}")]
    OffPath {
        /// Where.
        at: At,
        /// The sender.
        from: Rank,
        /// The path's rank above; none if the chunk becomes Final here.
        wanted: Option<Rank>,
    },
    /// A rank lacks a chunk that it should end with.
    #[error("{rank} ends without {chunk}")]
    NotFinal {
        /// The rank.
        rank: Rank,
        /// The chunk.
        chunk: ChunkId,
    },
    /// A message is never taken.
    #[error("{chunk} from {from} to {to} is never taken")]
    LeftInLink {
        /// Sender.
        from: Rank,
        /// Receiver.
        to: Rank,
        /// The chunk.
        chunk: ChunkId,
    },
    /// A partial sum is never used.
    #[error("{rank} never uses the partial of {chunk} in its scratch")]
    LeftInScratch {
        /// The rank.
        rank: Rank,
        /// The chunk.
        chunk: ChunkId,
    },
}

mod run;
mod terms;

/// Proves the plans of all ranks (`plans[r]` is rank `r`'s) over links of `slots` slots, from where `initial` says.
///
/// Proven: no deadlock; every message taken is of the chunk and kind its taker expects; every chunk a rank should end
/// with becomes Final there exactly once; each contribution enters exactly once; all ranks hold the same association
/// of a chunk; a Final reaches a rank from the live rank above it on its path (or, a head, from the lowest holder);
/// input is not read after output of the chunk was written; nothing is left in links or scratch.
///
/// # Errors
/// The first fault found.
pub fn verify(plans: &[Plan], slots: usize, initial: &Initial) -> Result<Proof, Fault> {
    let Some(first) = plans.first() else {
        return Err(Fault::Shape { rank: Rank(0), what: "there is no plan at all" });
    };
    shape(plans, first, initial)?;
    cuts(first)?;
    run::World::new(plans, slots, initial).run()
}

fn shape(plans: &[Plan], first: &Plan, initial: &Initial) -> Result<(), Fault> {
    let ranks = plans.len();
    for (i, plan) in plans.iter().enumerate() {
        let fault = |what| Err(Fault::Shape { rank: Rank(i as u32), what });
        if plan.world_size as usize != ranks {
            return fault("the world size is not the number of plans");
        }
        if plan.rank.index() != i {
            return fault("it is the plan of another rank");
        }
        if plan.spec != first.spec || plan.chunks != first.chunks || plan.spread != first.spread {
            return fault("spec, chunks or spread differ from rank 0's");
        }
        let known = initial.held.get(i).map(Bitmap::len) == Some(plan.chunks.len() as u32);
        if !known || initial.vacant.len() != ranks || initial.satisfied.len() != ranks {
            return fault("the initial state is not of this op");
        }
        if initial.vacant[i] && !plan.steps.is_empty() {
            return fault("a vacant rank has steps");
        }
    }
    Ok(())
}

/// Chunks tile the elements in ascending order, each inside what its owner gives or gets.
fn cuts(plan: &Plan) -> Result<(), Fault> {
    let mut at = 0;
    for (i, chunk) in plan.chunks.iter().enumerate() {
        let fault = |what| Err(Fault::Cut { chunk: ChunkId(i as u32), what });
        if chunk.owner.0 >= plan.world_size {
            return fault("the owner is not a rank");
        }
        // Empty chunks may lie anywhere: they carry order, not elements.
        if chunk.len > 0 && chunk.start != at {
            return fault("it does not begin where the one before it ends");
        }
        at += chunk.len;
        let inside =
            |(start, len): (u64, u64)| start <= chunk.start && chunk.start + chunk.len <= start + len;
        if chunk.len > 0 && !inside(plan.spec.output_range(chunk.owner, plan.world_size)) {
            return fault("it is not part of its owner's output");
        }
        let given = contributors(&plan.spec, chunk, plan.world_size);
        if chunk.len > 0 && given.map(Rank).any(|r| !inside(plan.spec.input_range(r, plan.world_size))) {
            return fault("it is not part of a contributor's input");
        }
    }
    if at == plan.spec.elements(plan.world_size) && !plan.chunks.is_empty() {
        return Ok(());
    }
    Err(Fault::Cut { chunk: ChunkId(plan.chunks.len() as u32), what: "the chunks do not cover the op" })
}

/// The ranks whose input makes up the chunk.
fn contributors(spec: &Spec, chunk: &Chunk, world_size: u32) -> Range<u32> {
    match spec.collective {
        Collective::AllReduce
        | Collective::ReduceScatter
        | Collective::Reduce
        | Collective::Barrier
        | Collective::Commit => 0..world_size,
        Collective::AllGather | Collective::Broadcast | Collective::State => chunk.owner.0..chunk.owner.0 + 1,
    }
}

#[cfg(test)]
mod tests;
