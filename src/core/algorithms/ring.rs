//! Ring: partial sums travel once around the ring to the owner, Finals once around from it.
//!
//! Source: Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009).
//! Cost:   all_reduce 2(n-1) rounds, each rank sends 2(n-1) chunks of S/n bytes (times chunks per segment);
//!         reduce_scatter and all_gather half of that each.
//! Order:  linear, starting behind the owner: not the canonical tree for n > 2.
//!
//! Segment `s` belongs to rank `s`; its sum starts at rank `s + 1`. Each fold writes straight into the slot to the
//! next rank, so no partial is copied twice; such a fold needs a free slot while it holds one, so a ring with `m`
//! messages in flight on each link needs `m + 1` slots. Two are in flight: while chunk `c + 1` of the segments is
//! reduced, chunk `c` is gathered, step by step in turn (reduce-scatter: two chunks are reduced).

use crate::algorithms::{Table, even_table, part_table};
use crate::ids::Rank;
use crate::plan::{Order, Place, Plan, Spread, Step, Target};
use crate::spec::{Collective, Spec};
use crate::units::LINK_SLOTS;

/// Slots a link needs: two messages in flight, and one free for the fold that passes on.
pub const SLOTS_MIN: usize = 3;
/// Chunks of each segment that a reduce-scatter has in flight.
const REDUCED_TOGETHER: u32 = SLOTS_MIN as u32 - 1;

const _: () = assert!(LINK_SLOTS >= SLOTS_MIN, "a ring would come to a standstill");

/// The plan of `rank` for all-reduce, reduce-scatter and all-gather.
#[must_use]
pub fn ring(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    match spec.collective {
        Collective::ReduceScatter => reduce_scatter(spec, n, rank, chunk_bytes_max),
        Collective::AllGather => all_gather(spec, n, rank, chunk_bytes_max),
        Collective::AllReduce
        | Collective::Broadcast
        | Collective::Reduce
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => all_reduce(spec, n, rank, chunk_bytes_max),
    }
}

/// One rank's place on the ring.
struct Seat {
    n: u32,
    rank: Rank,
    next: Rank,
    previous: Rank,
}

impl Seat {
    fn new(n: u32, rank: Rank) -> Self {
        Self { n, rank, next: Rank((rank.0 + 1) % n), previous: Rank((rank.0 + n - 1) % n) }
    }

    /// The segment `back` ranks behind this one.
    fn behind(&self, back: u32) -> u32 {
        (self.rank.0 + 2 * self.n - back) % self.n
    }

    /// Turn `0..n` of the reduction: start a sum, pass `n - 2` on, end the own one.
    fn reduce(&self, turn: u32, chunk: u32, table: &Table) -> Step {
        let chunk = table.id(self.behind(turn + 1), chunk);
        if turn == 0 {
            return Step::Send { chunk, from: Place::Input, to: self.next };
        }
        // With two ranks the lower one goes left, as in the canonical tree; else the sum runs along the ring.
        let order = if self.n == 2 && self.rank.0 == 0 { Order::OwnFirst } else { Order::ArrivalFirst };
        let into = if turn == self.n - 1 { Target::Output } else { Target::Link(self.next) };
        Step::Fold { chunk, from: self.previous, with: Place::Input, order, into }
    }

    /// Turn `0..n - 1` of the gathering: hand on the Final that came last, take the next one.
    fn gather(&self, turn: u32, chunk: u32, table: &Table) -> [Step; 2] {
        let (mine, comes) = (table.id(self.behind(turn), chunk), table.id(self.behind(turn + 1), chunk));
        [
            Step::Send { chunk: mine, from: Place::Output, to: self.next },
            Step::Take { chunk: comes, from: self.previous, into: Place::Output },
        ]
    }
}

fn all_reduce(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let table = even_table(spec, n, &(0..n).map(Rank).collect::<Vec<_>>(), chunk_bytes_max);
    let seat = Seat::new(n, rank);
    let mut steps = Vec::new();
    let turns = if n == 1 { 0 } else { n };
    for pass in 0..=table.per_segment {
        for turn in 0..turns {
            // The receiver folds a sum one turn later, but takes a Final in the same turn: so the Final goes first.
            let gathered = (pass > 0 && turn < n - 1).then(|| seat.gather(turn, pass - 1, &table));
            steps.extend(gathered.map(|[send, _]| send));
            if pass < table.per_segment {
                steps.push(seat.reduce(turn, pass, &table));
            }
            steps.extend(gathered.map(|[_, take]| take));
        }
    }
    table.plan(spec, n, rank, Spread::Chain, steps)
}

fn reduce_scatter(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let table = part_table(spec, n, chunk_bytes_max);
    let seat = Seat::new(n, rank);
    let mut steps = Vec::new();
    let turns = if n == 1 { 0 } else { n };
    let mut start = 0;
    while start < table.per_segment {
        let end = (start + REDUCED_TOGETHER).min(table.per_segment);
        for turn in 0..turns {
            steps.extend((start..end).map(|chunk| seat.reduce(turn, chunk, &table)));
        }
        start = end;
    }
    table.plan(spec, n, rank, Spread::Single, steps)
}

fn all_gather(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let table = part_table(spec, n, chunk_bytes_max);
    let seat = Seat::new(n, rank);
    let mut steps = Vec::new();
    // Turn-major: what is sent in a turn came a whole turn ago, so a slow neighbour is not felt at once.
    for turn in 0..n - 1 {
        for chunk in 0..table.per_segment {
            if turn == 0 {
                steps.push(Step::Settle { chunk: table.id(rank.0, chunk), from: Place::Input });
            }
            steps.extend(seat.gather(turn, chunk, &table));
        }
    }
    table.plan(spec, n, rank, Spread::Chain, steps)
}
