//! The tree by which a chunk's Final spreads from its owner: the *path* of rules R1 and R2.

use crate::ids::Rank;
use crate::plan::leaves::Leaves;

/// Shape of the tree by which a chunk's Final spreads. The owner of the chunk is its top.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Spread {
    /// The ring: owner, owner + 1, ... It ends before the owner, it does not wrap.
    Chain,
    /// Balanced tree with so many children a rank, over ranks rotated so that the owner is 0.
    Kary(u32),
    /// Binomial tree over ranks rotated so that the owner is 0: the parent lacks the lowest set bit.
    Binomial,
    /// The canonical tree read downwards, for any owner: recursive doubling, or the reverse of a binomial reduce.
    Doubling,
    /// The owner sends to everybody.
    Star,
    /// Only the owner ever holds the Final: reduce-scatter, reduce.
    Single,
}

fn rotated(owner: Rank, rank: Rank, world_size: u32) -> u32 {
    (rank.0 + world_size - owner.0) % world_size
}

fn unrotated(owner: Rank, turned: u32, world_size: u32) -> Rank {
    Rank(((u64::from(turned) + u64::from(owner.0)) % u64::from(world_size)) as u32)
}

impl Spread {
    /// The rank that hands `rank` the Final of a chunk of `owner`. `None`: the owner itself, or nobody gets it.
    ///
    /// # Panics
    /// When a rank is not below `world_size`.
    #[must_use]
    pub fn parent(&self, owner: Rank, rank: Rank, world_size: u32) -> Option<Rank> {
        check(owner, rank, world_size);
        if owner == rank {
            return None;
        }
        let turned = rotated(owner, rank, world_size);
        match *self {
            Self::Chain => Some(unrotated(owner, turned - 1, world_size)),
            Self::Kary(arity) => Some(unrotated(owner, (turned - 1) / arity.max(1), world_size)),
            Self::Binomial => Some(unrotated(owner, turned & (turned - 1), world_size)),
            Self::Star => Some(owner),
            Self::Single => None,
            Self::Doubling => {
                let leaves = Leaves::new(world_size);
                let (leaf, top) = (leaves.leaf_of(rank), leaves.leaf_of(owner));
                let stands = leaves.stands_for(leaf, owner);
                if stands != rank {
                    return Some(stands);
                }
                // `leaf != top`: the owner stands for its own leaf, and `rank` is not the owner.
                Some(leaves.stands_for(leaf ^ (1 << (leaf ^ top).trailing_zeros()), owner))
            }
        }
    }

    /// Whether `rank` ends with the Final of a chunk of `owner`.
    #[must_use]
    pub fn receives(&self, owner: Rank, rank: Rank, world_size: u32) -> bool {
        owner == rank || self.parent(owner, rank, world_size).is_some()
    }

    /// The ranks above `rank` on the path, nearest first, the owner last. Empty for the owner.
    pub fn ancestors(&self, owner: Rank, rank: Rank, world_size: u32) -> impl Iterator<Item = Rank> + use<> {
        let spread = *self;
        std::iter::successors(spread.parent(owner, rank, world_size), move |&above| {
            spread.parent(owner, above, world_size)
        })
    }

    /// The ranks `rank` hands the Final of a chunk of `owner` to, largest subtree first where they differ.
    ///
    /// # Panics
    /// When a rank is not below `world_size`.
    #[must_use]
    pub fn children(&self, owner: Rank, rank: Rank, world_size: u32) -> Vec<Rank> {
        check(owner, rank, world_size);
        let turned = rotated(owner, rank, world_size);
        let turn_back = |turned| unrotated(owner, turned, world_size);
        match *self {
            Self::Single => Vec::new(),
            Self::Chain => (turned + 1 < world_size).then(|| turn_back(turned + 1)).into_iter().collect(),
            Self::Star if rank == owner => (1..world_size).map(turn_back).collect(),
            Self::Star => Vec::new(),
            Self::Kary(arity) => {
                let first = u64::from(turned) * u64::from(arity.max(1)) + 1;
                let last = (first + u64::from(arity.max(1))).min(u64::from(world_size));
                (first..last).map(|t| turn_back(t as u32)).collect()
            }
            Self::Binomial => {
                let bits = if turned == 0 { world_size.ilog2() + 1 } else { turned.trailing_zeros() };
                let below = |bit| turned.checked_add(1_u32 << bit).filter(|&t| t < world_size);
                (0..bits.min(31)).rev().filter_map(below).map(turn_back).collect()
            }
            Self::Doubling => {
                let leaves = Leaves::new(world_size);
                let (leaf, top) = (leaves.leaf_of(rank), leaves.leaf_of(owner));
                if leaves.stands_for(leaf, owner) != rank {
                    return Vec::new();
                }
                let bits = if leaf == top { leaves.levels() } else { (leaf ^ top).trailing_zeros() };
                let below = (0..bits).rev().map(|bit| leaves.stands_for(leaf ^ (1 << bit), owner));
                below.chain(leaves.partner(rank)).collect()
            }
        }
    }
}

fn check(owner: Rank, rank: Rank, world_size: u32) {
    assert!(owner.0 < world_size && rank.0 < world_size, "{owner} or {rank} outside {world_size} ranks");
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chain => f.write_str("chain"),
            Self::Kary(arity) => write!(f, "{arity}-ary tree"),
            Self::Binomial => f.write_str("binomial tree"),
            Self::Doubling => f.write_str("doubling tree"),
            Self::Star => f.write_str("star"),
            Self::Single => f.write_str("owner only"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Spread; 7] = [
        Spread::Chain,
        Spread::Kary(2),
        Spread::Kary(3),
        Spread::Binomial,
        Spread::Doubling,
        Spread::Star,
        Spread::Single,
    ];

    #[test]
    fn children_and_parent_are_inverse_and_reach_every_rank_once() {
        for (spread, n) in ALL.iter().flat_map(|s| (1..=40).map(move |n| (s, n))) {
            for owner in (0..n).map(Rank) {
                let mut reached = vec![owner];
                let mut at = 0;
                while at < reached.len() {
                    let above = reached[at];
                    for below in spread.children(owner, above, n) {
                        assert_eq!(spread.parent(owner, below, n), Some(above), "{spread} n={n} {owner}");
                        reached.push(below);
                    }
                    at += 1;
                }
                reached.sort_unstable();
                let wanted: Vec<_> = (0..n).map(Rank).filter(|&r| spread.receives(owner, r, n)).collect();
                assert_eq!(reached, wanted, "{spread} n={n} {owner}");
                let expected = if *spread == Spread::Single { 1 } else { n as usize };
                assert_eq!(wanted.len(), expected, "{spread} n={n} {owner}");
            }
        }
    }

    #[test]
    fn ancestors_end_at_the_owner() {
        for (spread, n) in ALL.iter().flat_map(|s| (1..=20).map(move |n| (s, n))) {
            for (owner, rank) in (0..n).flat_map(|o| (0..n).map(move |r| (Rank(o), Rank(r)))) {
                let path: Vec<_> = spread.ancestors(owner, rank, n).collect();
                if owner == rank || *spread == Spread::Single {
                    assert!(path.is_empty());
                } else {
                    assert_eq!(path.last(), Some(&owner), "{spread} n={n} {owner} {rank}");
                }
            }
        }
    }

    #[test]
    fn the_shapes_are_the_documented_ones() {
        let path = |s: Spread, o, r, n| s.ancestors(Rank(o), Rank(r), n).map(Rank::get).collect::<Vec<_>>();
        assert_eq!(path(Spread::Chain, 2, 0, 4), [3, 2]);
        assert_eq!(path(Spread::Kary(2), 0, 6, 7), [2, 0]);
        assert_eq!(path(Spread::Binomial, 0, 7, 8), [6, 4, 0]);
        assert_eq!(path(Spread::Doubling, 5, 0, 8), [1, 5]);
        // Seven ranks: leaf 1 is the pair 2 + 3; rank 3 hangs below its partner 2.
        assert_eq!(path(Spread::Doubling, 0, 3, 7), [2, 0]);
        assert_eq!(path(Spread::Doubling, 3, 2, 7), [3]);
    }
}
