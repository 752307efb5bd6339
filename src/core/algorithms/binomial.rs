//! Binomial tree, neighbours first: its inner vertices are those of the canonical tree, whatever the root.
//!
//! Source: Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19 (2005).
//! Cost:   with p the largest power of two up to n: reduce and broadcast at most log2 p rounds, all_reduce twice that;
//!         n-1 messages of S bytes each way in all, up to log2 p + 1 of them at the top.
//! Order:  the canonical tree.

use crate::algorithms::even_table;
use crate::algorithms::tree::{Climb, Descent, down, up, up_and_down};
use crate::ids::Rank;
use crate::plan::leaves::Leaves;
use crate::plan::{Order, Plan, Spread};
use crate::spec::{Collective, Spec};

/// The plan of `rank` for all-reduce, broadcast, reduce, barrier and commit.
#[must_use]
pub fn binomial(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let (top, spread) = match spec.collective {
        Collective::Broadcast => (spec.root, Spread::Binomial),
        Collective::Reduce => (spec.root, Spread::Single),
        Collective::AllReduce
        | Collective::AllGather
        | Collective::ReduceScatter
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => (Rank(0), Spread::Doubling),
    };
    let table = even_table(spec, n, &[top], chunk_bytes_max);
    let chunks = table.per_segment;
    let descent = Descent { parent: spread.parent(top, rank, n), children: spread.children(top, rank, n) };
    let steps = match spread {
        Spread::Binomial => down(&descent, chunks),
        Spread::Single => up(&climb(top, rank, n), chunks),
        Spread::Doubling | Spread::Chain | Spread::Kary(_) | Spread::Star => {
            let depth = Leaves::new(n).levels() + 1;
            up_and_down(&climb(top, rank, n), &descent, chunks, 2 * depth)
        }
    };
    table.plan(spec, n, rank, spread, steps)
}

/// The place of `rank` in the canonical tree, turned so that `top` is its top.
///
/// At level `k` a group of leaves is stood for by the leaf that agrees with the top's in the lowest `k` bits, so a
/// leaf hands its sum over at the lowest bit in which it differs from the top's leaf.
fn climb(top: Rank, rank: Rank, n: u32) -> Climb {
    let parent = Spread::Doubling.parent(top, rank, n);
    let mut children = Spread::Doubling.children(top, rank, n);
    // Finals go to the largest subtree first, sums come from the smallest: the partner, then bit 0, 1, ...
    children.reverse();
    // Groups of leaves are runs of ranks, so the lower rank is on the left.
    let left = |child: Rank| if child < rank { Order::ArrivalFirst } else { Order::OwnFirst };
    Climb { parent, children: children.into_iter().map(|child| (child, left(child))).collect() }
}
