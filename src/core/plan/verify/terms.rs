//! Association trees, each stored once.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bitmap::Bitmap;
use crate::ids::{ChunkId, Rank};

/// A tree, by its number: equal numbers, equal trees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Term(u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// A rank's input.
    Leaf(Rank),
    /// The Final that ranks held before the plans started.
    Held,
    /// Left operand and right operand.
    Join(Term, Term),
}

/// All trees that occur. Chunks share them: a tree says which ranks are added how, not where the elements lie.
pub(super) struct Terms {
    known: BTreeMap<Shape, Term>,
    ranks_in: Vec<Bitmap>,
    world_size: u32,
}

impl Terms {
    pub(super) fn new(world_size: u32) -> Self {
        Self { known: BTreeMap::new(), ranks_in: Vec::new(), world_size }
    }

    fn intern(&mut self, shape: Shape, ranks: impl FnOnce(&Self) -> Bitmap) -> Term {
        if let Some(&term) = self.known.get(&shape) {
            return term;
        }
        let term = Term(self.ranks_in.len() as u32);
        let ranks = ranks(self);
        self.ranks_in.push(ranks);
        self.known.insert(shape, term);
        term
    }

    pub(super) fn leaf(&mut self, rank: Rank) -> Term {
        self.intern(Shape::Leaf(rank), |terms| {
            let mut one = Bitmap::empty(terms.world_size);
            one.insert(ChunkId(rank.0));
            one
        })
    }

    pub(super) fn held(&mut self) -> Term {
        self.intern(Shape::Held, |terms| Bitmap::full(terms.world_size))
    }

    /// The sum of two trees; `None` when a contribution would enter twice.
    pub(super) fn join(&mut self, left: Term, right: Term) -> Option<Term> {
        let (a, b) = (&self.ranks_in[left.0 as usize], &self.ranks_in[right.0 as usize]);
        if a.words().iter().zip(b.words()).any(|(a, b)| a & b != 0) {
            return None;
        }
        Some(self.intern(Shape::Join(left, right), |terms| {
            let mut both = terms.ranks_in[left.0 as usize].clone();
            both.union(&terms.ranks_in[right.0 as usize]);
            both
        }))
    }

    /// How many contributions the tree holds, and whether `ranks` are exactly those.
    pub(super) fn holds_exactly(&self, term: Term, ranks: Range<u32>) -> (u32, bool) {
        let has = &self.ranks_in[term.0 as usize];
        let wanted = ranks.len() as u32;
        let all = has.count() == wanted && ranks.into_iter().all(|r| has.has(ChunkId(r)));
        (has.count(), all)
    }
}
