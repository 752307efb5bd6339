//! Balanced k-ary tree: few children a rank, short depth, pipelined over the chunks.
//!
//! Source: Sanders, Speck and Träff, Parallel Computing 35 (2009); heap numbering as is usual.
//! Cost:   all_reduce 2 depth rounds for one chunk, broadcast and reduce depth, where depth is the number of levels
//!         below the root of a complete tree of arity 2; n-1 messages of S bytes each way in all.
//! Order:  a rank's input, then its children's sums in rank order: the canonical tree for n <= 3 and root 0 only.

use crate::algorithms::tree::{Climb, Descent, down, up, up_and_down};
use crate::algorithms::{KARY_ARITY, even_table};
use crate::ids::Rank;
use crate::plan::{Order, Plan, Spread};
use crate::spec::{Collective, Spec};

/// The plan of `rank` for all-reduce, broadcast and reduce.
#[must_use]
pub fn kary(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let tree = Spread::Kary(KARY_ARITY);
    let (top, spread) = match spec.collective {
        Collective::Broadcast => (spec.root, tree),
        Collective::Reduce => (spec.root, Spread::Single),
        Collective::AllReduce
        | Collective::AllGather
        | Collective::ReduceScatter
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => (Rank(0), tree),
    };
    let table = even_table(spec, n, &[top], chunk_bytes_max);
    let chunks = table.per_segment;
    let (parent, children) = (tree.parent(top, rank, n), tree.children(top, rank, n));
    let order = |child: Rank| if child < rank { Order::ArrivalFirst } else { Order::OwnFirst };
    let climb = Climb { parent, children: children.iter().map(|&c| (c, order(c))).collect() };
    let descent = Descent { parent, children };
    let steps = match spec.collective {
        Collective::Broadcast => down(&descent, chunks),
        Collective::Reduce => up(&climb, chunks),
        Collective::AllReduce
        | Collective::AllGather
        | Collective::ReduceScatter
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => up_and_down(&climb, &descent, chunks, 2 * depth(n)),
    };
    table.plan(spec, n, rank, spread, steps)
}

/// Levels below the root.
pub(super) fn depth(n: u32) -> u32 {
    let last = Rank(n - 1);
    Spread::Kary(KARY_ARITY).ancestors(Rank(0), last, n).count() as u32
}
