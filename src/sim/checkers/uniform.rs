//! I2 and I10: every member of the view gets the same verdict for the same op, and a replayed op gives the bits of
//! the first time.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_core::ids::{MemberId, OpId, Rank};

use super::Finished;
use crate::sim::caller::hash;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Contributors(Vec<Rank>),
    Failed,
}

/// Remembers every verdict.
#[derive(Debug, Default)]
pub struct Uniform {
    verdicts: BTreeMap<OpId, (Seen, MemberId)>,
    results: BTreeMap<(OpId, Rank), u64>,
    lost: BTreeSet<MemberId>,
}

impl Uniform {
    pub(super) fn lost(&mut self, member: MemberId) {
        self.lost.insert(member);
        // A verdict that only the dead one had binds nobody under shrink (P2).
        self.verdicts.retain(|_, (_, by)| *by != member);
    }

    pub(super) fn finished(&mut self, f: &Finished, violations: &mut Vec<String>) {
        if self.lost.contains(&f.member) {
            return;
        }
        let seen = match &f.result {
            Ok((contributors, _)) => Seen::Contributors(contributors.clone()),
            Err(text) if text.contains("is out of the view") => return,
            Err(_) => Seen::Failed,
        };
        match self.verdicts.get(&f.op) {
            Some((before, by)) if *before != seen => violations.push(format!(
                "I2 uniform: {} is {before:?} at {by}, but {seen:?} at {} ({})",
                f.op, f.member, f.rank
            )),
            Some(_) => {}
            None => {
                self.verdicts.insert(f.op, (seen, f.member));
            }
        }
        if let Ok((_, bytes)) = &f.result {
            let now = hash(bytes);
            let before = *self.results.entry((f.op, f.rank)).or_insert(now);
            if before != now {
                violations.push(format!("I10 replay: {} gives other bits to the new occupant of {}", f.op, f.rank));
            }
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
    fn it_fires_on_two_verdicts_and_on_other_bits() {
        let done = |member, bytes: &[u8]| Finished {
            member: MemberId(member),
            rank: Rank(0),
            op: OpId::default(),
            result: Ok((vec![Rank(0)], bytes.to_vec())),
        };
        let (mut uniform, mut found) = (Uniform::default(), Vec::new());
        uniform.finished(&done(1, &[1]), &mut found);
        uniform.finished(&done(2, &[1]), &mut found);
        assert!(found.is_empty());
        uniform.finished(&done(3, &[2]), &mut found);
        assert_eq!(found.len(), 1);
        let failed = Finished { result: Err("lost".into()), ..done(4, &[]) };
        uniform.finished(&failed, &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
