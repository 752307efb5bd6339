//! A collective as data: what one rank sends, receives, folds and copies, chunk by chunk, in which order.
//!
//! A [`Plan`] is one rank's part. Its steps run strictly in order; the transport's slots let a send finish before
//! its receiver takes it, and that is all the overlap there is, so a plan can be proven free of deadlock
//! ([`verify`]). A partial sum lives in a slot or in scratch, never in the caller's buffer (rule R1 of the
//! protocol): a chunk of the caller's buffer changes once, from Input to Final.

use crate::bitmap::Bitmap;
use crate::ids::{ChunkId, Rank};
use crate::spec::{Algorithm, Spec};

pub mod leaves;
pub mod residual;
pub mod spread;
mod table;
pub mod verify;

pub use spread::Spread;
pub use table::table;

/// A contiguous element range of the op's global space, at most one slot long: reduced, forwarded and repaired whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// First element.
    pub start: u64,
    /// Elements; may be zero (barrier, more chunks than elements).
    pub len: u64,
    /// The rank at which the chunk first becomes Final; the head of its path.
    pub owner: Rank,
}

/// Where a rank keeps a value of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// The caller's untouched contribution.
    Input,
    /// Runtime-owned scratch: a partial sum that outlives a slot.
    Scratch,
    /// The caller's result; whatever is written here is Final.
    Output,
}

/// Which operand of a reduction stands on the left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// `arrival + own`.
    ArrivalFirst,
    /// `own + arrival`.
    OwnFirst,
}

/// Where the value of a step goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Into a slot of the link to this rank, as a partial (or as Final, when it comes from `Output`).
    Link(Rank),
    /// Into this rank's scratch.
    Scratch,
    /// Into the caller's output: the chunk is Final here. `avg` divides at this point, and only here.
    Output,
}

/// One step of one rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Put the chunk's value at `from` into a slot of the link to `to`. From `Output` it travels as Final, else as a
    /// partial. A partial in scratch is used up by any step that reads it.
    Send {
        /// The chunk.
        chunk: ChunkId,
        /// Where the value lies here.
        from: Place,
        /// The receiver.
        to: Rank,
    },
    /// Take the partial that comes next from `from`, reduce it with the own value, put the sum to `into`.
    Fold {
        /// The chunk.
        chunk: ChunkId,
        /// The sender.
        from: Rank,
        /// The own operand: `Input` or `Scratch`.
        with: Place,
        /// Which operand is the left one.
        order: Order,
        /// Where the sum goes.
        into: Target,
    },
    /// Take what comes next from `from` as it is: a Final into `Output`, or a partial into `Scratch`.
    Take {
        /// The chunk.
        chunk: ChunkId,
        /// The sender.
        from: Rank,
        /// `Output` or `Scratch`.
        into: Place,
    },
    /// Reduce the partials that come next from each of `from` with the own input, in the canonical tree order over
    /// ranks, into `Output`. Every rank but this one is a sender; used by the direct algorithm.
    FoldAll {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The own value becomes Final as it is: input (or scratch) to output.
    Settle {
        /// The chunk.
        chunk: ChunkId,
        /// `Input` or `Scratch`.
        from: Place,
    },
}

impl Step {
    /// The chunk the step is about.
    #[must_use]
    pub fn chunk(&self) -> ChunkId {
        match *self {
            Self::Send { chunk, .. }
            | Self::Fold { chunk, .. }
            | Self::Take { chunk, .. }
            | Self::FoldAll { chunk }
            | Self::Settle { chunk, .. } => chunk,
        }
    }
}

/// One rank's part of a collective.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What it computes.
    pub spec: Spec,
    /// Ranks taking part.
    pub world_size: u32,
    /// Whose part this is.
    pub rank: Rank,
    /// The chunks, the same at every rank, in ascending element order.
    pub chunks: Vec<Chunk>,
    /// The tree by which each chunk's Final spreads from its owner.
    pub spread: Spread,
    /// The steps of this rank, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether `rank` ends with a result of `chunk`.
    ///
    /// # Panics
    /// When the plan has no such chunk.
    #[must_use]
    pub fn is_due(&self, chunk: ChunkId, rank: Rank) -> bool {
        self.spread.receives(self.chunks[chunk.index()].owner, rank, self.world_size)
    }

    /// Whether `rank`, which holds these chunks as Final, is due another one.
    ///
    /// # Panics
    /// When `held` is not of this plan's chunks.
    #[must_use]
    pub fn lacks(&self, rank: Rank, held: &Bitmap) -> bool {
        assert_eq!(held.len() as usize, self.chunks.len(), "a ledger of another op");
        let mut open = (0..held.len()).map(ChunkId).filter(|chunk| !held.has(*chunk));
        open.any(|chunk| self.is_due(chunk, rank))
    }
}

/// Builds the plan of `rank`; see [`crate::algorithms`].
///
/// # Errors
/// When the algorithm cannot run the collective; the message names those that can.
pub fn build(spec: &Spec, world_size: u32, rank: Rank, chunk_bytes_max: usize) -> Result<Plan, PlanError> {
    crate::algorithms::build(spec, world_size, rank, chunk_bytes_max)
}

/// Chunks of an op at most: 512 GiB in chunks of the default size. The table of them is made at every rank, and at the
/// coordinator from what a rank says.
pub const CHUNKS_MAX: u64 = 1 << 21;

/// Why no plan can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The algorithm does not know the collective.
    #[error("algorithm {algorithm} cannot run {collective}; use one of: {able}")]
    NotAble {
        /// The algorithm asked for.
        algorithm: Algorithm,
        /// The collective asked for.
        collective: crate::spec::Collective,
        /// Algorithms that can.
        able: String,
    },
    /// The root is not a rank.
    #[error("root {root} is outside a communicator of {world_size} ranks; choose a root below {world_size}")]
    NoSuchRoot {
        /// The root asked for.
        root: Rank,
        /// The communicator's size.
        world_size: u32,
    },
    /// More than one op can move.
    #[error("{count} elements of {dtype} a rank are more than one op can move; use several")]
    TooLarge {
        /// Elements asked for.
        count: u64,
        /// Their type.
        dtype: crate::spec::Dtype,
    },
}
