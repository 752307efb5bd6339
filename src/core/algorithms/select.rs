//! Which algorithm runs an op: size, number of ranks, and whether the bits must be the canonical ones.
//!
//! Source: thresholds are first estimates from round and byte counts (the headers of the algorithms); benches replace
//!         them.
//! Cost:   O(1).
//!
//! | collective | choice |
//! |---|---|
//! | all_reduce, up to 8 ranks | direct |
//! | all_reduce, up to 256 KiB | up to 64 ranks: direct; else binomial |
//! | all_reduce, the rest | ring; halving_doubling where the order must be canonical |
//! | all_gather | up to 8 ranks or 256 KiB: direct; else ring |
//! | reduce_scatter | as all_gather; always direct where the order must be canonical |
//! | broadcast | up to 256 KiB: binomial; else kary |
//! | reduce | as broadcast; always binomial where the order must be canonical |
//! | barrier, commit | up to 8 ranks: direct; else binomial |

use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

/// Up to so many ranks every rank talks to every rank.
const DIRECT_RANKS_MAX: u32 = 8;
/// So many messages a rank still costs less than the rounds of a tree, for small ops.
const SMALL_DIRECT_RANKS_MAX: u32 = 64;
/// Up to this size an op costs by its rounds, above by its bytes.
const SMALL_BYTES_MAX: u64 = 256 * 1024;

/// Which sums are promised to have the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reproducibility {
    /// One association order for all algorithms, sizes and layouts: the canonical tree.
    #[default]
    Canonical,
    /// The same algorithm on the same layout repeats itself; ring and other orders are free to be chosen.
    PerAlgorithm,
}

/// The algorithm for an op of `bytes` bytes (of the larger of a rank's two buffers) over `n` ranks.
///
/// A step's state has no plan of its own; the answer for it is `Direct`, which [`super::build`] refuses.
#[must_use]
pub fn choose(
    collective: Collective,
    dtype: Dtype,
    reduction: ReduceOp,
    bytes: u64,
    n: u32,
    reproducibility: Reproducibility,
) -> Algorithm {
    let associative = !dtype.is_float() || matches!(reduction, ReduceOp::Min | ReduceOp::Max);
    let free = associative || n <= 2 || reproducibility == Reproducibility::PerAlgorithm;
    let small = bytes <= SMALL_BYTES_MAX;
    let few = n <= DIRECT_RANKS_MAX;
    match collective {
        Collective::AllReduce if few || (small && n <= SMALL_DIRECT_RANKS_MAX) => Algorithm::Direct,
        Collective::AllReduce if small => Algorithm::Binomial,
        Collective::AllReduce if free => Algorithm::Ring,
        Collective::AllReduce => Algorithm::HalvingDoubling,
        Collective::AllGather if few || small => Algorithm::Direct,
        Collective::AllGather => Algorithm::Ring,
        Collective::ReduceScatter if few || small || !free => Algorithm::Direct,
        Collective::ReduceScatter => Algorithm::Ring,
        Collective::Broadcast if small => Algorithm::Binomial,
        Collective::Broadcast => Algorithm::Kary,
        Collective::Reduce if small || !free => Algorithm::Binomial,
        Collective::Reduce => Algorithm::Kary,
        Collective::Barrier | Collective::Commit if few => Algorithm::Direct,
        Collective::Barrier | Collective::Commit => Algorithm::Binomial,
        Collective::State => Algorithm::Direct,
    }
}

/// The algorithm for `spec` over `n` ranks, whatever algorithm it names: [`choose`] with the size counted as it must
/// be, by the larger of a rank's two buffers.
#[must_use]
pub fn choose_for(spec: &Spec, n: u32, reproducibility: Reproducibility) -> Algorithm {
    let bytes = spec.elements(n).saturating_mul(spec.dtype.size() as u64);
    choose(spec.collective, spec.dtype, spec.reduction, bytes, n, reproducibility)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::able;
    use crate::ids::Rank;

    fn over_all(mut see: impl FnMut(Collective, Dtype, ReduceOp, u64, u32, Algorithm, Reproducibility)) {
        for &collective in Collective::ALL.iter().filter(|&&c| c != Collective::State) {
            for (&dtype, &reduction) in
                Dtype::ALL.iter().flat_map(|d| ReduceOp::ALL.iter().map(move |r| (d, r)))
            {
                for (bytes, n) in
                    [0, 8, 4096, 1 << 20, 1 << 30].into_iter().flat_map(|b| (1..80).map(move |n| (b, n)))
                {
                    for mode in [Reproducibility::Canonical, Reproducibility::PerAlgorithm] {
                        let choice = choose(collective, dtype, reduction, bytes, n, mode);
                        see(collective, dtype, reduction, bytes, n, choice, mode);
                    }
                }
            }
        }
    }

    #[test]
    fn a_gather_is_as_large_as_what_comes_out_and_a_scatter_as_what_goes_in() {
        for collective in [Collective::AllGather, Collective::ReduceScatter] {
            let of = |count| {
                let (dtype, reduction) = (Dtype::I32, ReduceOp::Sum);
                let spec =
                    Spec { collective, dtype, reduction, count, root: Rank(0), algorithm: Algorithm::Kary };
                choose_for(&spec, 16, Reproducibility::Canonical)
            };
            let largest = SMALL_BYTES_MAX / 16 / 4;
            assert_eq!((of(largest), of(largest + 1)), (Algorithm::Direct, Algorithm::Ring), "{collective}");
        }
    }

    #[test]
    fn every_choice_can_run_and_canonical_floats_never_get_a_free_order() {
        let mut rings = 0;
        over_all(|collective, dtype, reduction, bytes, n, choice, mode| {
            assert!(able(collective).contains(&choice), "{collective} {bytes} {n}");
            let reduces =
                matches!(collective, Collective::AllReduce | Collective::Reduce | Collective::ReduceScatter);
            let sums = matches!(reduction, ReduceOp::Sum | ReduceOp::Prod | ReduceOp::Avg);
            if reduces && dtype.is_float() && sums && n > 2 && mode == Reproducibility::Canonical {
                assert!(!matches!(choice, Algorithm::Ring | Algorithm::Kary), "{collective} {bytes} {n}");
            }
            rings += u32::from(choice == Algorithm::Ring);
        });
        assert!(rings > 0, "the free choice must be used somewhere");
    }
}
