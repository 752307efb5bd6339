//! I1: a completed op is the sum over exactly one contribution of each contributor.
//!
//! Integers are compared with a sum computed apart. Floats are compared with the oracle by value within rounding
//! here, and bit for bit between ranks and with the undisturbed run elsewhere.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use phalanx_core::ids::{MemberId, OpId, Rank};
use phalanx_core::policy::Policy;
use phalanx_core::spec::{Collective, Dtype, ReduceOp, Spec};

use super::Finished;
use crate::sim::caller::input_bytes;
use crate::sim::scenario::Scenario;

#[derive(Debug, Clone)]
struct Call {
    spec: Spec,
    state: u64,
    group: Vec<Rank>,
    /// Of every rank of `group`; shared by all who called the same.
    inputs: Rc<Vec<Vec<u8>>>,
    /// The whole result by contributors.
    results: Results,
}

/// Whole results by contributor set, computed once.
type Results = Rc<RefCell<BTreeMap<Vec<Rank>, Rc<Vec<u8>>>>>;

/// Remembers what was called.
#[derive(Debug, Default)]
pub struct Exact {
    /// By op, then by who called: under shrink a member that was declared dead may have gone on alone with a result
    /// that no other rank had (P2, last sentence), and calls the next op from another state.
    calls: BTreeMap<OpId, BTreeMap<MemberId, Call>>,
    lost: BTreeSet<MemberId>,
}

impl Exact {
    #[expect(clippy::too_many_arguments, reason = "each is one coordinate of the call")]
    pub(super) fn called(
        &mut self,
        s: &Scenario,
        by: MemberId,
        op: OpId,
        (step, index): (u64, usize),
        spec: &Spec,
        state: u64,
        violations: &mut Vec<String>,
    ) {
        let group = s.group(op.comm);
        let known = self.calls.entry(op).or_default();
        for (other, call) in known.iter().filter(|(m, _)| !self.lost.contains(m) && s.odd.is_none()) {
            if call.spec != *spec {
                violations.push(format!("I10 replay: {op} is {} at {other} and {spec} at {by}", call.spec));
            } else if call.state != state && s.rules.policy == Policy::Replace {
                violations.push(format!("I10 replay: {by} calls {op} from another state than {other}"));
            }
        }
        let same = known.values().find(|c| c.spec == *spec && c.state == state).cloned();
        let call = same.unwrap_or_else(|| {
            let n = group.len() as u32;
            let input = |(place, rank): (usize, &Rank)| {
                let (from, len) = spec.input_range(Rank(place as u32), n);
                input_bytes(s, step, index, *rank, spec, from, len, state)
            };
            let inputs = Rc::new(group.iter().enumerate().map(input).collect());
            Call { spec: *spec, state, group: group.clone(), inputs, results: Rc::default() }
        });
        known.insert(by, call);
    }

    pub(super) fn not_lost(&mut self, member: MemberId) {
        self.lost.remove(&member);
    }

    pub(super) fn lost(&mut self, member: MemberId) {
        self.lost.insert(member);
    }

    pub(super) fn finished(&self, f: &Finished, violations: &mut Vec<String>) {
        let call = self.calls.get(&f.op).and_then(|c| c.get(&f.member));
        let (Ok((contributors, bytes)), Some(call)) = (&f.result, call) else { return };
        let want = expected(call, contributors, f.rank);
        if !same(&want, bytes, call.spec.dtype) {
            violations.push(format!(
                "I1 exact: {} ({}) on {} ({}) over {contributors:?} is not the sum of its contributions",
                f.op, call.spec, f.rank, f.member
            ));
        }
    }
}

fn expected(call: &Call, contributors: &[Rank], rank: Rank) -> Vec<u8> {
    let spec = &call.spec;
    let n = call.inputs.len() as u32;
    let size = spec.dtype.size();
    let place = |rank: &Rank| call.group.iter().position(|r| r == rank).unwrap_or(0);
    let known = call.results.borrow().get(contributors).cloned();
    let all = known.unwrap_or_else(|| {
        let all = Rc::new(match spec.collective {
            Collective::AllReduce | Collective::ReduceScatter | Collective::Reduce => {
                reduce(spec, contributors.iter().map(|r| call.inputs[place(r)].as_slice()))
            }
            Collective::AllGather => call.inputs.concat(),
            Collective::Broadcast => call.inputs[spec.root.index()].clone(),
            Collective::Barrier | Collective::Commit | Collective::State => Vec::new(),
        });
        call.results.borrow_mut().insert(contributors.to_vec(), Rc::clone(&all));
        all
    });
    let (from, len) = spec.output_range(Rank(place(&rank) as u32), n);
    all.get(from as usize * size..(from + len) as usize * size).unwrap_or(&[]).to_vec()
}

fn reduce<'a>(spec: &Spec, inputs: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let contributors = inputs.clone().count() as f64;
    let len = inputs.clone().map(<[u8]>::len).max().unwrap_or(0) / spec.dtype.size();
    (0..len)
        .flat_map(|i| {
            if spec.dtype == Dtype::F32 {
                let sum: f64 = inputs.clone().map(|b| f64::from(float(b, i))).sum();
                let value = if spec.reduction == ReduceOp::Avg { sum / contributors } else { sum };
                (value as f32).to_le_bytes().to_vec()
            } else {
                let words = inputs.clone().map(|b| word(b, i));
                let value = match spec.reduction {
                    ReduceOp::Max => words.max().unwrap_or(0),
                    ReduceOp::Sum | ReduceOp::Prod | ReduceOp::Min | ReduceOp::Avg => {
                        words.fold(0, u64::wrapping_add)
                    }
                };
                value.to_le_bytes().to_vec()
            }
        })
        .collect()
}

fn float(bytes: &[u8], i: usize) -> f32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[i * 4..i * 4 + 4]);
    f32::from_le_bytes(raw)
}

fn word(bytes: &[u8], i: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
    u64::from_le_bytes(raw)
}

fn same(want: &[u8], got: &[u8], dtype: Dtype) -> bool {
    if dtype != Dtype::F32 {
        return want == got;
    }
    let close = |i| {
        let (a, b) = (float(want, i), float(got, i));
        (a - b).abs() <= a.abs().max(1.0) * 1e-5
    };
    want.len() == got.len() && (0..want.len() / 4).all(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_a_contribution_counted_twice() {
        let s = Scenario::draw(4);
        let spec = Spec {
            collective: Collective::AllReduce,
            dtype: Dtype::U64,
            reduction: ReduceOp::Sum,
            count: 3,
            root: Rank(0),
            algorithm: phalanx_core::spec::Algorithm::Direct,
        };
        let (mut exact, mut found) = (Exact::default(), Vec::new());
        exact.called(&s, MemberId(1), OpId::default(), (0, 0), &spec, 7, &mut found);
        let group: Vec<Rank> = (0..s.rules.world_size).map(Rank).collect();
        let good = expected(&exact.calls[&OpId::default()][&MemberId(1)], &group, Rank(0));
        let mut bad = good.clone();
        bad[8] ^= 1;
        for (bytes, violations) in [(good, 0), (bad, 1)] {
            found.clear();
            let result = Ok((group.clone(), bytes));
            let f = Finished { member: MemberId(1), rank: Rank(0), op: OpId::default(), result };
            exact.finished(&f, &mut found);
            assert_eq!(found.len(), violations, "{found:?}");
        }
    }
}
