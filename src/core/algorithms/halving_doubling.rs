//! Recursive halving, then recursive doubling, for any number of ranks, in canonical order.
//!
//! Source: Rabenseifner, ICCS 2004, LNCS 3036; neighbours (bit 0) first, as Thakur, Rabenseifner and Gropp,
//!         Int. J. High Perform. Comput. Appl. 19 (2005) do for the extra ranks.
//! Cost:   n = p a power of two: 2 log2 p rounds, each rank sends 2(p-1) chunks of S/p bytes (times chunks per
//!         segment). Otherwise two rounds more; of the first 2(n-p) ranks the odd one sends p chunks and the even one p
//!         chunks more.
//! Order:  the canonical tree.
//!
//! Leaf `q` of the canonical tree ends as the owner of the segment whose number is `q` with its bits reversed: in
//! round `k` it keeps the half of its segments that agrees with its own bit `k`. Sends and folds alternate chunk by
//! chunk, so that one slot a link would do. Up to [`PASS_CHUNKS`] chunks of each segment go through all rounds before
//! the next ones start: this bounds the scratch, and keeps it in the cache.

use std::ops::Range;

use crate::algorithms::{Table, even_table};
use crate::ids::{ChunkId, Rank};
use crate::plan::leaves::Leaves;
use crate::plan::{Order, Place, Plan, Spread, Step, Target};
use crate::spec::Spec;

/// Chunks of each segment that go through all rounds together.
pub const PASS_CHUNKS: u32 = 4;

/// The plan of `rank` for all-reduce.
#[must_use]
pub fn halving_doubling(spec: &Spec, n: u32, rank: Rank, chunk_bytes_max: usize) -> Plan {
    let leaves = Leaves::new(n);
    let owners: Vec<_> = (0..leaves.count()).map(|s| leaves.first_of(reverse(s, leaves.levels()))).collect();
    let table = even_table(spec, n, &owners, chunk_bytes_max);
    let mut steps = Vec::new();
    let mut start = 0;
    while n > 1 && start < table.per_segment {
        let end = (start + PASS_CHUNKS).min(table.per_segment);
        let pass = Pass { leaves, leaf: leaves.leaf_of(rank), table: &table, chunks: start..end };
        match leaves.partner(rank) {
            Some(first) if rank.0 % 2 == 1 => pass.give_and_take(first, &mut steps),
            partner => pass.exchange(partner, &mut steps),
        }
        start = end;
    }
    table.plan(spec, n, rank, Spread::Doubling, steps)
}

/// `value` with its lowest `bits` bits in reverse order.
fn reverse(value: u32, bits: u32) -> u32 {
    if bits == 0 { 0 } else { value.reverse_bits() >> (u32::BITS - bits) }
}

/// Some chunks of each segment on their way through all rounds.
struct Pass<'a> {
    leaves: Leaves,
    leaf: u32,
    table: &'a Table,
    chunks: Range<u32>,
}

impl Pass<'_> {
    /// The chunks whose owner's leaf agrees with `leaf` in the lowest `bits` bits.
    fn agreeing(&self, leaf: u32, bits: u32) -> impl Iterator<Item = ChunkId> {
        let first = reverse(leaf & ((1 << bits) - 1), self.leaves.levels());
        let segments = first..first + (self.leaves.count() >> bits);
        segments.flat_map(move |segment| self.chunks.clone().map(move |chunk| self.table.id(segment, chunk)))
    }

    /// The chunks that go to, and that stay before, the partner in bit `bit`.
    fn halves(&self, bit: u32) -> impl Iterator<Item = (ChunkId, ChunkId)> {
        self.agreeing(self.leaf ^ (1 << bit), bit + 1).zip(self.agreeing(self.leaf, bit + 1))
    }

    /// The order in which a leaf's Finals come to be, and so go to the partner that shares the leaf.
    fn finals(&self) -> impl Iterator<Item = ChunkId> {
        let levels = self.leaves.levels();
        let doubled = (0..levels).rev().flat_map(|bit| self.halves(bit).map(|(comes, _)| comes));
        self.agreeing(self.leaf, levels).chain(doubled)
    }

    /// A folded rank: everything to `first`, which stands for the leaf, and the Finals back from it.
    fn give_and_take(&self, first: Rank, steps: &mut Vec<Step>) {
        for chunk in self.halves(0).flat_map(|(goes, stays)| [goes, stays]) {
            steps.push(Step::Send { chunk, from: Place::Input, to: first });
        }
        for chunk in self.finals() {
            steps.push(Step::Take { chunk, from: first, into: Place::Output });
        }
    }

    /// A rank that stands for its leaf; `folded` shares the leaf, if there is one.
    fn exchange(&self, folded: Option<Rank>, steps: &mut Vec<Step>) {
        let levels = self.leaves.levels();
        for bit in 0..levels {
            for (goes, stays) in self.halves(bit) {
                self.halve(bit, goes, stays, folded, steps);
            }
        }
        if let Some(to) = folded {
            let own = self.agreeing(self.leaf, levels);
            steps.extend(own.map(|chunk| Step::Send { chunk, from: Place::Output, to }));
        }
        for bit in (0..levels).rev() {
            let to = self.leaves.first_of(self.leaf ^ (1 << bit));
            for (comes, has) in self.halves(bit) {
                steps.push(Step::Send { chunk: has, from: Place::Output, to });
                steps.push(Step::Take { chunk: comes, from: to, into: Place::Output });
                steps.extend(folded.map(|to| Step::Send { chunk: comes, from: Place::Output, to }));
            }
        }
    }
    /// Gives `goes` to the partner in bit `bit`, folds what it gives of `stays`.
    fn halve(&self, bit: u32, goes: ChunkId, stays: ChunkId, folded: Option<Rank>, steps: &mut Vec<Step>) {
        let to = self.leaves.first_of(self.leaf ^ (1 << bit));
        let mut with = if bit == 0 { Place::Input } else { Place::Scratch };
        match folded {
            // The even rank of the pair is the left operand, and the sum for the partner never rests here.
            Some(from) if bit == 0 => {
                let (own, order) = (Place::Input, Order::OwnFirst);
                steps.push(Step::Fold { chunk: goes, from, with: own, order, into: Target::Link(to) });
                steps.push(Step::Fold { chunk: stays, from, with: own, order, into: Target::Scratch });
                with = Place::Scratch;
            }
            Some(_) | None => steps.push(Step::Send { chunk: goes, from: with, to }),
        }
        let order = if self.leaf >> bit & 1 == 0 { Order::OwnFirst } else { Order::ArrivalFirst };
        let into = if bit + 1 == self.leaves.levels() { Target::Output } else { Target::Scratch };
        steps.push(Step::Fold { chunk: stays, from: to, with, order, into });
    }
}
