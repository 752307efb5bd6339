//! What one op asks for: kind, element type, reduction, size, root, algorithm.

use crate::fnv::{fnv1a_words, fold32};
use crate::ids::Rank;

/// Declares a field-less enum with a stable wire number and a lower-case name.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $n:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $n,)* }

        impl $name {
            /// Every value, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> u8 { self as u8 }

            /// The value of a wire number, if there is one.
            #[must_use]
            pub const fn from_wire(raw: u8) -> Option<Self> {
                match raw { $($n => Some(Self::$variant),)* _ => None }
            }

            /// The name as commands spell it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownName;
            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| UnknownName {
                    given: text.to_owned(),
                    known: Self::ALL.iter().map(|v| v.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

/// A name that a command or a variable does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not known here; use one of: {known}")]
pub struct UnknownName {
    /// What was given.
    pub given: String,
    /// What would have been accepted.
    pub known: String,
}

wire_enum! {
    /// The kinds of collective.
    Collective {
        /// Every rank ends with the reduction over all ranks' inputs.
        AllReduce = 0 "all_reduce",
        /// Every rank ends with the concatenation of all ranks' inputs.
        AllGather = 1 "all_gather",
        /// Rank `r` ends with the `r`-th part of the reduction.
        ReduceScatter = 2 "reduce_scatter",
        /// Every rank ends with the root's input.
        Broadcast = 3 "broadcast",
        /// The root ends with the reduction.
        Reduce = 4 "reduce",
        /// Nobody goes on before all have come.
        Barrier = 5 "barrier",
        /// The tiny op that ends a step.
        Commit = 6 "commit",
        /// Not a collective of the caller: a step's state, sent to newcomers.
        State = 7 "state",
    }
}

wire_enum! {
    /// Element types.
    Dtype {
        /// 32-bit float.
        F32 = 0 "f32",
        /// 64-bit float.
        F64 = 1 "f64",
        /// IEEE half precision; added in f32.
        F16 = 2 "f16",
        /// bfloat16; added in f32.
        BF16 = 3 "bf16",
        /// Signed byte, wrapping.
        I8 = 4 "i8",
        /// Unsigned byte, wrapping.
        U8 = 5 "u8",
        /// 32-bit signed, wrapping.
        I32 = 6 "i32",
        /// 32-bit unsigned, wrapping.
        U32 = 7 "u32",
        /// 64-bit signed, wrapping.
        I64 = 8 "i64",
        /// 64-bit unsigned, wrapping.
        U64 = 9 "u64",
    }
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Whether elements are floating point.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

wire_enum! {
    /// Reductions.
    ReduceOp {
        /// Sum; integers wrap.
        Sum = 0 "sum",
        /// Product; integers wrap.
        Prod = 1 "prod",
        /// IEEE 754-2019 `minimum`: NaN wins.
        Min = 2 "min",
        /// IEEE 754-2019 `maximum`: NaN wins.
        Max = 3 "max",
        /// Sum divided by the number of contributors, once, at the end; integers divide towards zero.
        Avg = 4 "avg",
    }
}

wire_enum! {
    /// Ways to run a collective.
    Algorithm {
        /// Reduce-scatter and all-gather around a ring; also the ring forms of those two.
        Ring = 0 "ring",
        /// Recursive halving, then recursive doubling (Rabenseifner).
        HalvingDoubling = 1 "halving_doubling",
        /// Binomial tree.
        Binomial = 2 "binomial",
        /// Balanced k-ary tree, pipelined.
        Kary = 3 "kary",
        /// Every owner takes all inputs of its chunks at once and sends the result to all.
        Direct = 4 "direct",
    }
}

/// One collective as all ranks must agree on it.
///
/// `count` is in elements: of the whole buffer for all-reduce, broadcast and reduce; of one rank's part for
/// all-gather (its input) and reduce-scatter (its output). Barrier and commit have no elements.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Spec {
    /// The kind.
    pub collective: Collective,
    /// Element type.
    pub dtype: Dtype,
    /// Reduction; `Sum` where nothing is reduced.
    pub reduction: ReduceOp,
    /// Elements, see above.
    pub count: u64,
    /// Root of a rooted collective; rank 0 elsewhere.
    pub root: Rank,
    /// How it runs.
    pub algorithm: Algorithm,
}

impl Spec {
    /// A 32-bit fingerprint carried by every data message: two ranks that disagree notice at once.
    #[must_use]
    pub fn signature(&self) -> u32 {
        let fields = [
            u64::from(self.collective.to_wire()),
            u64::from(self.dtype.to_wire()),
            u64::from(self.reduction.to_wire()),
            self.count,
            u64::from(self.root.0),
            u64::from(self.algorithm.to_wire()),
        ];
        fold32(fnv1a_words(fields))
    }

    /// The same op with the root counted in `group` (world ranks of the contributors) instead of `comm` (world ranks of
    /// the communicator). `None`: the root is not among them.
    #[must_use]
    pub fn over(&self, comm: &[Rank], group: &[Rank]) -> Option<Self> {
        if !matches!(self.collective, Collective::Broadcast | Collective::Reduce) {
            return Some(*self);
        }
        let root = comm.get(self.root.index())?;
        let place = group.iter().position(|rank| rank == root)?;
        Some(Self { root: Rank(place as u32), ..*self })
    }

    /// Whether the sizes of a rank's buffers depend on how many ranks take part.
    #[must_use]
    pub const fn shape_depends_on_ranks(&self) -> bool {
        matches!(self.collective, Collective::AllGather | Collective::ReduceScatter)
    }

    /// Whether values of several ranks are reduced.
    #[must_use]
    pub const fn reduces(&self) -> bool {
        matches!(self.collective, Collective::AllReduce | Collective::ReduceScatter | Collective::Reduce)
    }

    /// Elements of the global space the chunks divide: the larger of a rank's two buffers.
    #[must_use]
    pub fn elements(&self, world_size: u32) -> u64 {
        match self.collective {
            Collective::AllGather | Collective::ReduceScatter => self.count * u64::from(world_size),
            Collective::AllReduce | Collective::Broadcast | Collective::Reduce | Collective::State => {
                self.count
            }
            Collective::Barrier | Collective::Commit => 0,
        }
    }

    /// Where `rank`'s input starts in the global space, and its length in elements. Empty: it gives nothing.
    #[must_use]
    pub fn input_range(&self, rank: Rank, world_size: u32) -> (u64, u64) {
        match self.collective {
            Collective::AllReduce | Collective::Reduce => (0, self.count),
            Collective::ReduceScatter => (0, self.elements(world_size)),
            Collective::AllGather => (self.count * u64::from(rank.0), self.count),
            Collective::Broadcast => (0, if rank == self.root { self.count } else { 0 }),
            Collective::Barrier | Collective::Commit | Collective::State => (0, 0),
        }
    }

    /// Where `rank`'s output starts in the global space, and its length in elements. Empty: it gets nothing.
    #[must_use]
    pub fn output_range(&self, rank: Rank, world_size: u32) -> (u64, u64) {
        match self.collective {
            Collective::AllReduce | Collective::Broadcast | Collective::State => (0, self.count),
            Collective::AllGather => (0, self.elements(world_size)),
            Collective::ReduceScatter => (self.count * u64::from(rank.0), self.count),
            Collective::Reduce => (0, if rank == self.root { self.count } else { 0 }),
            Collective::Barrier | Collective::Commit => (0, 0),
        }
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({} x {}", self.collective, self.count, self.dtype)?;
        if self.reduces() {
            write!(f, ", {}", self.reduction)?;
        }
        if matches!(self.collective, Collective::Broadcast | Collective::Reduce) {
            write!(f, ", root {}", self.root)?;
        }
        write!(f, ", {})", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_wire_numbers_are_inverse() {
        for &d in Dtype::ALL {
            assert_eq!(Dtype::from_wire(d.to_wire()), Some(d));
            assert_eq!(d.name().parse::<Dtype>(), Ok(d));
        }
        let err = "f31".parse::<Dtype>().unwrap_err();
        assert!(err.to_string().contains("`f31` is not known here; use one of: f32, f64"), "{err}");
    }

    #[test]
    fn every_field_changes_the_signature() {
        let base = Spec {
            collective: Collective::AllReduce,
            dtype: Dtype::F32,
            reduction: ReduceOp::Sum,
            count: 10,
            root: Rank(0),
            algorithm: Algorithm::Ring,
        };
        let others = [
            Spec { collective: Collective::Reduce, ..base },
            Spec { dtype: Dtype::F64, ..base },
            Spec { reduction: ReduceOp::Max, ..base },
            Spec { count: 11, ..base },
            Spec { root: Rank(1), ..base },
            Spec { algorithm: Algorithm::Kary, ..base },
        ];
        for o in others {
            assert_ne!(o.signature(), base.signature(), "{o}");
        }
    }
}
