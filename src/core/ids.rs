//! Identities as types: a rank is not a member, an epoch is not an op number.

/// Declares an id: a transparent integer with a short `Display` form and no arithmetic.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// Wraps a raw number.
            pub const fn new(raw: $int) -> Self {
                Self(raw)
            }

            /// The raw number.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(/// A seat in the view: dense, `0..world_size`; survives the replacement of its occupant.
    Rank(u32), "r");
id!(/// One process that occupies a rank or waits as a spare. Never used twice.
    MemberId(u64), "m");
id!(/// Number of a view. Only grows; 0 is the forming epoch.
    Epoch(u64), "e");
id!(/// Position of a collective in the common order of its communicator, from 0.
    OpSeq(u64), "op");
id!(/// A communicator; 0 is the world.
    CommId(u32), "c");
id!(/// Index of a chunk inside an op: the unit of plan and recovery.
    ChunkId(u32), "k");
id!(/// Number of a contributor set an op has run under; `Shrink` begins a new one.
    Attempt(u32), "a");
id!(/// What dies together: a host, a rack, or a single member.
    DomainId(u64), "d");
id!(/// Number of a step: a transaction of the training run, counted by the caller.
    StepId(u64), "s");

impl Rank {
    /// The rank as an index into per-rank tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl ChunkId {
    /// The chunk as an index into per-chunk tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Epoch {
    /// The following epoch. Epochs only grow; wrapping would revive dead writers.
    ///
    /// # Panics
    /// After 2^64 views.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("epoch counter exhausted: 2^64 views"))
    }
}

impl OpSeq {
    /// The following op of the same communicator.
    ///
    /// # Panics
    /// After 2^64 ops.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("op counter exhausted: 2^64 ops"))
    }
}

impl Attempt {
    /// The following attempt of the same op.
    ///
    /// # Panics
    /// After 2^32 attempts.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("attempt counter exhausted: 2^32 attempts"))
    }
}

/// An op of a communicator, as errors and messages name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct OpId {
    /// The communicator.
    pub comm: CommId,
    /// Its position there.
    pub seq: OpSeq,
}

impl std::fmt::Display for OpId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.comm, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_short_and_never_wrap() {
        assert_eq!(
            format!("{} {:?} {}", Rank(3), Epoch(7), OpId { comm: CommId(1), seq: OpSeq(9) }),
            "r3 e7 c1.op9"
        );
        assert_eq!(Epoch(1).next(), Epoch(2));
        assert!(std::panic::catch_unwind(|| Epoch(u64::MAX).next()).is_err());
    }
}
