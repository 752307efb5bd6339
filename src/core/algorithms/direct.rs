//! Direct: every owner takes all inputs of its chunks at once, adds them in canonical order, sends the result to all.
//!
//! Source: two-phase all-to-all reduction, Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19
//!         (2005), pairwise exchange; the order of the sum is our own.
//! Cost:   all_reduce 2 rounds, each rank sends 2(n-1) chunks of S/n bytes (times chunks per segment);
//!         reduce_scatter and all_gather 1 round and half the chunks. Up to 4 KiB fewer owners, down to one.
//! Order:  the canonical tree.
//!
//! Sends rotate: rank `r` starts with `r + 1`, so no receiver is everybody's first. The inputs of the next round are
//! sent before the Finals of this one are taken, so owners find the next inputs when they come to add. Two slots a
//! link are enough: a link holds at most a Final of one round and the input of the next.

use crate::algorithms::{Table, cut_elements, even_table, part_table};
use crate::ids::{ChunkId, Rank};
use crate::plan::{Place, Plan, Spread, Step};
use crate::spec::{Collective, Spec};

/// Up to so many bytes a message costs by its number, not its length: as few owners as the cuts allow.
pub const FEW_OWNERS_BYTES: u64 = 4096;

/// The plan of `rank` for all-reduce, reduce-scatter, all-gather, barrier and commit.
#[must_use]
pub fn direct(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let (table, spread) = match spec.collective {
        Collective::ReduceScatter => (part_table(spec, n, chunk_bytes_max), Spread::Single),
        Collective::AllGather => (part_table(spec, n, chunk_bytes_max), Spread::Star),
        Collective::AllReduce
        | Collective::Broadcast
        | Collective::Reduce
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => {
            let owners: Vec<_> = (0..owners(spec, n, chunk_bytes_max)).map(Rank).collect();
            (even_table(spec, n, &owners, chunk_bytes_max), Spread::Star)
        }
    };
    let seat = Seat { n, rank, owners: table.chunks.len() as u32 / table.per_segment, table: &table };
    let mut steps = Vec::new();
    for round in 0..table.per_segment {
        match spec.collective {
            Collective::AllGather => {
                steps.push(Step::Settle { chunk: table.id(rank.0, round), from: Place::Input });
                seat.send_final(round, &mut steps);
                seat.take_finals(round, &mut steps);
            }
            Collective::ReduceScatter => {
                seat.send_inputs(round, &mut steps);
                seat.add(round, &mut steps);
            }
            Collective::AllReduce
            | Collective::Broadcast
            | Collective::Reduce
            | Collective::Barrier
            | Collective::Commit
            | Collective::State => {
                if round == 0 {
                    seat.send_inputs(round, &mut steps);
                }
                seat.add(round, &mut steps);
                seat.send_final(round, &mut steps);
                if round + 1 < table.per_segment {
                    seat.send_inputs(round + 1, &mut steps);
                }
                seat.take_finals(round, &mut steps);
            }
        }
    }
    table.plan(spec, n, rank, spread, steps)
}

/// How many ranks own a segment.
fn owners(spec: &Spec, n: u32, chunk_bytes_max: usize) -> u32 {
    let elements = spec.elements(n);
    if elements * spec.dtype.size() as u64 > FEW_OWNERS_BYTES {
        return n;
    }
    let cuts = elements.div_ceil(cut_elements(spec, chunk_bytes_max));
    cuts.clamp(1, u64::from(n)) as u32
}

/// One rank and the chunk it owns in each round, if it owns any.
struct Seat<'a> {
    n: u32,
    rank: Rank,
    owners: u32,
    table: &'a Table,
}

impl Seat<'_> {
    fn own(&self, round: u32) -> Option<ChunkId> {
        (self.rank.0 < self.owners).then(|| self.table.id(self.rank.0, round))
    }

    fn send_inputs(&self, round: u32, steps: &mut Vec<Step>) {
        let owners = (1..self.n).map(|d| (self.rank.0 + d) % self.n).filter(|&o| o < self.owners);
        steps.extend(owners.map(|o| Step::Send {
            chunk: self.table.id(o, round),
            from: Place::Input,
            to: Rank(o),
        }));
    }

    fn add(&self, round: u32, steps: &mut Vec<Step>) {
        steps.extend(self.own(round).map(|chunk| Step::FoldAll { chunk }));
    }

    fn send_final(&self, round: u32, steps: &mut Vec<Step>) {
        let Some(chunk) = self.own(round) else { return };
        let all = (1..self.n).map(|d| Rank((self.rank.0 + d) % self.n));
        steps.extend(all.map(|to| Step::Send { chunk, from: Place::Output, to }));
    }

    fn take_finals(&self, round: u32, steps: &mut Vec<Step>) {
        let owners = (1..self.n).map(|d| (self.rank.0 + self.n - d) % self.n).filter(|&o| o < self.owners);
        steps.extend(owners.map(|o| Step::Take {
            chunk: self.table.id(o, round),
            from: Rank(o),
            into: Place::Output,
        }));
    }
}
