//! I2: every member of the view gets the same verdict for the same op.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_core::error::OpError;
use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::{CommId, MemberId, OpId, OpSeq, Rank};
use phalanx_core::spec::Collective;
use phalanx_core::wire::message::{Decision, FailCause, Verdict};

use super::Finished;
use super::replay::Replay;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Contributors(Vec<Rank>),
    /// The same typed error, down to its cause.
    Failed(Option<FailCause>),
}

/// Remembers every verdict.
#[derive(Debug, Default)]
pub struct Uniform {
    verdicts: BTreeMap<OpId, (Seen, BTreeSet<MemberId>)>,
    results: BTreeMap<(OpId, Rank), u64>,
    /// Communicators whose numbers say something else than in a run without faults.
    begun_anew: BTreeSet<CommId>,
    replay: Replay,
    lost: BTreeSet<MemberId>,
    /// Ops that ended while more was lost than promised: there P2 gives no promise.
    beyond: BTreeSet<OpId>,
    /// Per communicator, the first op that was lost with the only rank that had its result.
    lost_with_owner: BTreeMap<CommId, OpSeq>,
    /// The caller has ops that are not retained: a newcomer cannot be served those, within the promise or not.
    pub(super) unretained: bool,
}

impl Uniform {
    /// A result that only its owner has is made again from all inputs: where no spare comes it is lost with the
    /// owner, and the communicator with it. Partials kept before the owner would save it; they are not built yet
    /// (docs/testing.md, what is not covered).
    ///
    /// Whether more was lost than promised is judged here: when the error reaches a caller, the world may be whole
    /// again.
    pub(super) fn decided(&mut self, decision: &Decision, is_beyond: bool, violations: &mut Vec<String>) {
        // A communicator that no survivor knows begins anew with its newcomers: it has no history to repeat.
        let lives_on = |op: &OpId| decision.comms.iter().any(|c| c.comm == op.comm);
        self.begun_anew.extend(self.results.keys().filter(|(op, _)| !lives_on(op)).map(|(op, _)| op.comm));
        self.replay.forget(|comm| decision.comms.iter().any(|c| c.comm == comm));
        self.verdicts.retain(|op, _| lives_on(op));
        self.results.retain(|(op, _), _| lives_on(op));
        for op in &decision.ops {
            let single = matches!(op.spec.collective, Collective::Reduce | Collective::ReduceScatter);
            if single && matches!(op.verdict, Verdict::Fail { cause: FailCause::Unrecoverable { .. } }) {
                self.lost_with_owner.entry(op.id.comm).or_insert(op.id.seq);
            }
        }
        for op in &decision.ops {
            let Verdict::Fail { cause: cause @ FailCause::Unrecoverable { .. } } = &op.verdict else {
                continue;
            };
            let is_known = !self.beyond.insert(op.id);
            if !is_known && !is_beyond && !self.unretained && !self.owner_only(op.id) {
                let epoch = decision.view.epoch;
                violations
                    .push(format!("P6 within the promise: {} ({}) in {epoch}: {cause:?}", op.id, op.spec));
            }
        }
    }

    fn owner_only(&self, op: OpId) -> bool {
        self.lost_with_owner.get(&op.comm).is_some_and(|first| *first <= op.seq)
    }

    pub(super) fn not_lost(&mut self, member: MemberId) {
        self.lost.remove(&member);
    }

    pub(super) fn lost(&mut self, member: MemberId) {
        self.lost.insert(member);
        // A verdict that only the dead one had binds nobody under shrink (P2).
        self.verdicts.retain(|_, (_, by)| {
            by.remove(&member);
            !by.is_empty()
        });
    }

    pub(super) fn finished(&mut self, f: &Finished, is_beyond: bool, violations: &mut Vec<String>) {
        if self.lost.contains(&f.member) {
            if f.result.is_ok() {
                violations.push(format!(
                    "P5 lease: {} returns from {} with success after it was declared dead",
                    f.member, f.op
                ));
            }
            return;
        }
        if let Err(Some(text @ OpError::Failed { cause: FailCause::Unrecoverable { .. }, .. })) = &f.result {
            // An op behind one that is lost ends with the same error.
            let is_behind = self.beyond.iter().any(|o| o.comm == f.op.comm);
            if !is_beyond && !is_behind && !self.unretained && !self.owner_only(f.op) {
                violations
                    .push(format!("P6 within the promise: {} at {} ({}): {text}", f.op, f.member, f.rank));
            }
            self.beyond.insert(f.op);
        }
        if self.beyond.contains(&f.op) {
            return;
        }
        let seen = match &f.result {
            Ok((contributors, _)) => Seen::Contributors(contributors.clone()),
            Err(Some(OpError::Evicted { .. })) => return,
            Err(Some(OpError::Failed { cause: FailCause::Expired { missing }, op, .. }))
                if missing.is_empty() =>
            {
                violations.push(format!("I8 liveness: {op} expired, and every rank had called it"));
                return;
            }
            Err(Some(OpError::Failed { cause, .. })) => Seen::Failed(Some(cause.clone())),
            Err(_) => Seen::Failed(None),
        };
        let (before, by) = self.verdicts.entry(f.op).or_insert_with(|| (seen.clone(), BTreeSet::new()));
        if *before == seen {
            by.insert(f.member);
        } else {
            violations.push(format!(
                "I2 uniform: {} is {before:?} at {by:?}, but {seen:?} at {} ({})",
                f.op, f.member, f.rank
            ));
        }
        if let Ok((contributors, bytes)) = &f.result {
            let now = fnv1a(bytes.iter().copied());
            if !self.begun_anew.contains(&f.op.comm) {
                self.results.insert((f.op, f.rank), now);
            }
            self.replay.finished(f.op, f.rank, contributors, bytes, violations);
        }
    }

    pub(super) fn results(&self) -> &BTreeMap<(OpId, Rank), u64> {
        &self.results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_two_verdicts_and_says_what_replay_finds() {
        let done = |member, bytes: &[u8]| Finished {
            member: MemberId(member),
            rank: Rank(0),
            op: OpId::default(),
            result: Ok((vec![Rank(0)], bytes.to_vec())),
        };
        let (mut uniform, mut found) = (Uniform::default(), Vec::new());
        uniform.finished(&done(1, &[1]), false, &mut found);
        uniform.finished(&done(2, &[1]), false, &mut found);
        assert!(found.is_empty());
        uniform.finished(&done(3, &[2]), false, &mut found);
        assert_eq!(found.len(), 1);
        let failed = Finished { result: Err(None), ..done(4, &[]) };
        uniform.finished(&failed, false, &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
