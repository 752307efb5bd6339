//! Planted faults: bugs on purpose, one at a time, that the checkers must catch. Compiled in only with the feature
//! `mutants`; without it every `planted!` is `false`.

/// A bug that can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mutant {
    /// `wait()` returns after local completion, whatever the successors hold (rule R2).
    ReleaseLocal,
    /// `wait()` needs one hop less than rule R2 asks.
    ReleaseEarly,
    /// A slot's epoch is not compared.
    IgnoreEpoch,
    /// *lost* is ignored by the decision (rule R3).
    IgnoreLost,
    /// An op somebody was released from is shrunk.
    ShrinkReleased,
    /// The undo log is used up by the first restore.
    UndoOnce,
    /// The undo log of a chunk is dropped when the chunk is Final.
    UndoByChunk,
    /// No undo log at all.
    NoUndo,
    /// The retained result is freed at release.
    ForgetRetained,
    /// A buffer that is retained by reference is given back at release, so the caller overwrites it.
    OverwriteRetained,
    /// A newcomer's contribution is added to a chunk that has its seat's already.
    CountTwice,
    /// The commit is repaired like an op: it counts only where every survivor has returned from it.
    CommitAsOp,
    /// The answer to an earlier fence is used again.
    StaleLedger,
    /// A declared-dead member is let in again under its old id.
    OldMember,
    /// A rank goes on after its lease.
    IgnoreLease,
    /// The top ranks of a tree do not wait for one another (rule R2).
    NoTopRule,
    /// Ranks are counted where rule R2 counts failure domains.
    CountRanks,
    /// A repair serves every lacking rank from one holder, out of path order.
    OutOfOrder,
    /// Calls that differ in their count are taken for the same.
    IgnoreCount,
    /// A spare that died while it stood by still gets a seat.
    SeatDeadSpare,
    /// A rank serves the state to a newcomer before it has begun the step itself.
    StateEarly,
    /// One spare is given every vacant seat.
    SeatTwice,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: &'static [Self] = &[
        Self::ReleaseLocal,
        Self::ReleaseEarly,
        Self::IgnoreEpoch,
        Self::IgnoreLost,
        Self::ShrinkReleased,
        Self::UndoOnce,
        Self::UndoByChunk,
        Self::NoUndo,
        Self::ForgetRetained,
        Self::OverwriteRetained,
        Self::CountTwice,
        Self::CommitAsOp,
        Self::StaleLedger,
        Self::OldMember,
        Self::IgnoreLease,
        Self::NoTopRule,
        Self::CountRanks,
        Self::OutOfOrder,
        Self::IgnoreCount,
        Self::SeatDeadSpare,
        Self::StateEarly,
        Self::SeatTwice,
    ];
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;

    thread_local! {
        static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
    }

    /// Whether `mutant` is planted on this thread.
    #[must_use]
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.with(|a| a.get() == Some(mutant))
    }

    /// Plants `mutant` on this thread, or none.
    pub fn plant(mutant: Option<Mutant>) {
        ACTIVE.with(|a| a.set(mutant));
    }
}

#[cfg(feature = "mutants")]
pub use switch::{is_active, plant};

/// True where the named mutant is planted; constant `false` without the feature `mutants`.
#[macro_export]
macro_rules! planted {
    ($mutant:ident) => {{
        #[cfg(feature = "mutants")]
        let planted = $crate::mutants::is_active($crate::mutants::Mutant::$mutant);
        #[cfg(not(feature = "mutants"))]
        let planted = false;
        planted
    }};
}
