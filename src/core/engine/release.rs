//! Rule R2: whose confirmation an op waits for before `wait()` may return, and who waits for this rank's.

use super::{Engine, Op};
use crate::ids::{DomainId, Rank};
use crate::plan::residual::release_set;
use crate::plan::{Place, Step};

/// Places in an op's group.
pub(super) struct ReleaseSets {
    /// Who must confirm to this rank.
    pub(super) awaits: Vec<Rank>,
    /// To whom this rank confirms.
    pub(super) due: Vec<Rank>,
}

impl Engine {
    /// The sets of an op in the view of today. What a repair hands on joins them: whoever serves a chunk keeps it until
    /// its taker has the whole op, so that a fence in between finds it at one of the two.
    pub(super) fn release_sets(&self, op: &Op) -> ReleaseSets {
        if !Self::confirms(op, self.retain_bytes()) {
            return ReleaseSets { awaits: Vec::new(), due: Vec::new() };
        }
        let lost_max = self.rules.as_ref().map_or(1, |r| r.domains_lost_max);
        let lost_max = if crate::planted!(ReleaseEarly) { lost_max.saturating_sub(1) } else { lost_max };
        let vacant: Vec<bool> = op.group.iter().map(|r| self.view.occupant(*r).is_none()).collect();
        let domain_of: Vec<DomainId> = op.group.iter().map(|r| self.domain_of(*r)).collect();
        let set = |place| {
            let (spread, n) = (op.plan.spread, op.plan.world_size);
            release_set(spread, &op.plan.chunks, place, n, &domain_of, &vacant, lost_max)
        };
        let mut awaits = set(op.place);
        // Whoever waits for this rank: the relation is not symmetric, so it is asked for every other place.
        let others = (0..op.group.len() as u32).map(Rank).filter(|p| *p != op.place && !vacant[p.index()]);
        let mut due: Vec<Rank> = others.filter(|p| set(*p).contains(&op.place)).collect();
        for (set, more) in [(&mut awaits, &op.serves), (&mut due, &op.served_by)] {
            set.extend(more);
            set.sort_unstable();
            set.dedup();
        }
        ReleaseSets { awaits, due }
    }

    fn domain_of(&self, rank: Rank) -> DomainId {
        if crate::planted!(CountRanks) { DomainId(rank.0.into()) } else { self.view.domain(rank) }
    }
}

impl Op {
    /// The places that a repair makes this rank hand on to, and take from. Only what is handed on: partial sums are
    /// Input to their taker.
    pub(super) fn note_hand_on(&mut self, steps: &[Step]) {
        self.serves.clear();
        self.served_by.clear();
        for step in steps {
            match *step {
                Step::Send { from: Place::Output, to, .. } => self.serves.push(to),
                Step::Take { from, into: Place::Output, .. } => self.served_by.push(from),
                Step::Send { .. }
                | Step::Take { .. }
                | Step::Fold { .. }
                | Step::FoldAll { .. }
                | Step::Settle { .. } => {}
            }
        }
        for places in [&mut self.serves, &mut self.served_by] {
            places.sort_unstable();
            places.dedup();
        }
    }
}
