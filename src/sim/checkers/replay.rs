//! I10: a replayed op gives the bits of the first time.

use std::collections::BTreeMap;

use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::{CommId, OpId, Rank};

/// The bits of each op at each rank, by contributor set: a dead member's result over another set binds nobody.
#[derive(Debug, Default)]
pub struct Replay {
    bits: BTreeMap<(OpId, Rank, Vec<Rank>), u64>,
}

impl Replay {
    /// Communicators that no survivor knows begin anew with their newcomers: they have no history to repeat.
    pub(super) fn forget(&mut self, lives_on: impl Fn(CommId) -> bool) {
        self.bits.retain(|(op, ..), _| lives_on(op.comm));
    }

    /// A rank got a result.
    pub(super) fn finished(
        &mut self,
        op: OpId,
        rank: Rank,
        contributors: &[Rank],
        bytes: &[u8],
        violations: &mut Vec<String>,
    ) {
        let now = fnv1a(bytes.iter().copied());
        if *self.bits.entry((op, rank, contributors.to_vec())).or_insert(now) != now {
            violations.push(format!("I10 replay: {op} gives other bits to the new occupant of {rank}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_other_bits_over_the_same_contributors() {
        let (mut replay, mut found) = (Replay::default(), Vec::new());
        let op = OpId::default();
        let (all, one) = ([Rank(0), Rank(1)], [Rank(1)]);
        for (contributors, bytes) in [(&all[..], &[1][..]), (&all[..], &[1]), (&one[..], &[2])] {
            replay.finished(op, Rank(0), contributors, bytes, &mut found);
        }
        assert!(found.is_empty());
        replay.finished(op, Rank(0), &all, &[2], &mut found);
        assert_eq!(found.len(), 1, "{found:?}");
        replay.forget(|_| false);
        replay.finished(op, Rank(0), &all, &[3], &mut found);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
