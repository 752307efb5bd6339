//! The canonical tree: the one association order in which every reproducible algorithm adds the ranks' inputs.
//!
//! Let `p` be the largest power of two up to `n` and `e = n - p`. For `i < e` leaf `i` is the pair `x[2i] + x[2i+1]`,
//! for `i >= e` leaf `i` is `x[i + e]`. Level `k` then joins the groups of leaves whose indices differ in bit `k`,
//! the lower index on the left.

use crate::ids::Rank;

/// How the ranks `0..world_size` map to the leaves of the canonical tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaves {
    count: u32,
    pairs: u32,
}

impl Leaves {
    /// The leaves over `world_size` ranks.
    ///
    /// # Panics
    /// When there is no rank.
    #[must_use]
    pub fn new(world_size: u32) -> Self {
        assert!(world_size > 0, "a canonical tree needs at least one rank");
        let count = 1 << world_size.ilog2();
        Self { count, pairs: world_size - count }
    }

    /// Leaves: the largest power of two up to the world size.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Levels above the leaves: the binary logarithm of their number.
    #[must_use]
    pub fn levels(&self) -> u32 {
        self.count.ilog2()
    }

    /// The leaf `rank` contributes to.
    #[must_use]
    pub fn leaf_of(&self, rank: Rank) -> u32 {
        if rank.0 < 2 * self.pairs { rank.0 / 2 } else { rank.0 - self.pairs }
    }

    /// The lowest rank of `leaf`: the one that stands for it, unless the partner is the owner.
    #[must_use]
    pub fn first_of(&self, leaf: u32) -> Rank {
        Rank(if leaf < self.pairs { 2 * leaf } else { leaf + self.pairs })
    }

    /// The rank that shares a leaf with `rank`, if one does.
    #[must_use]
    pub fn partner(&self, rank: Rank) -> Option<Rank> {
        (rank.0 < 2 * self.pairs).then_some(Rank(rank.0 ^ 1))
    }

    /// The rank that stands for `leaf` in a tree whose top is `owner`: the owner for its own leaf, else the lower one.
    #[must_use]
    pub fn stands_for(&self, leaf: u32, owner: Rank) -> Rank {
        if self.leaf_of(owner) == leaf { owner } else { self.first_of(leaf) }
    }
}

/// Combines one value per rank in canonical order: `join(left, right)` at every inner vertex.
///
/// # Panics
/// When `values` is empty.
pub fn fold_canonical<T>(values: Vec<T>, mut join: impl FnMut(T, T) -> T) -> T {
    let leaves = Leaves::new(u32::try_from(values.len()).expect("ranks are numbered by u32"));
    let mut rest = values.into_iter();
    let mut level: Vec<T> = Vec::with_capacity(leaves.count as usize);
    for _ in 0..leaves.pairs {
        match (rest.next(), rest.next()) {
            (Some(left), Some(right)) => level.push(join(left, right)),
            (Some(_), None) | (None, _) => break,
        }
    }
    level.extend(rest);
    loop {
        let mut pairs = level.into_iter();
        let first = pairs.next().expect("a level of the tree has at least one vertex");
        let Some(second) = pairs.next() else { return first };
        let mut above = vec![join(first, second)];
        while let (Some(left), Some(right)) = (pairs.next(), pairs.next()) {
            above.push(join(left, right));
        }
        level = above;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(n: u32) -> String {
        fold_canonical((0..n).map(|r| r.to_string()).collect(), |l, r| format!("({l}{r})"))
    }

    #[test]
    fn the_tree_is_the_documented_one() {
        assert_eq!(written(1), "0");
        assert_eq!(written(2), "(01)");
        assert_eq!(written(3), "((01)2)");
        assert_eq!(written(4), "((01)(23))");
        assert_eq!(written(6), "(((01)(23))(45))");
        assert_eq!(written(7), "(((01)(23))((45)6))");
    }

    #[test]
    fn leaves_partition_the_ranks() {
        for n in 1..=70 {
            let leaves = Leaves::new(n);
            for rank in (0..n).map(Rank) {
                let leaf = leaves.leaf_of(rank);
                assert!(leaf < leaves.count());
                let first = leaves.first_of(leaf);
                assert!(first == rank || leaves.partner(rank) == Some(first), "n={n} {rank}");
                assert_eq!(leaves.stands_for(leaf, rank), rank);
            }
        }
    }
}
