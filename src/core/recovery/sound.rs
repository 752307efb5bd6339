//! What a ledger must be before anything is concluded from it. A member that holds the key may still send one that was
//! damaged on its way, or made up: it decodes, and means nothing. Whether it tells the truth cannot be seen.

use crate::ids::{Attempt, OpSeq, Rank};
use crate::plan::CHUNKS_MAX;
use crate::policy::Rules;
use crate::wire::message::{CommReport, FailCause, Loss, OpReport, Report};

/// Ops, attempts and steps are counted from 0: no run comes near these.
const OPS_MAX: OpSeq = OpSeq(1 << 62);
const ATTEMPTS_MAX: Attempt = Attempt(1 << 30);
const STEPS_MAX: u64 = 1 << 62;
/// Bytes of a sentence in an error: what comes with a ledger goes on to every rank, in one frame.
const TEXT_BYTES_MAX: usize = 4096;

/// Why nothing can be concluded from a report, if so.
pub(crate) fn flaw(report: &Report, rules: &Rules) -> Option<String> {
    let step = &report.step;
    let state_chunks = step.state_held.as_ref().map_or(0, |held| u64::from(held.len()));
    let state_bytes_max = CHUNKS_MAX * u64::from(rules.chunk_bytes_max);
    if step.committed > STEPS_MAX || step.state_bytes > state_bytes_max || state_chunks > CHUNKS_MAX {
        return Some(format!("{} steps and a state of {} bytes", step.committed, step.state_bytes));
    }
    report.comms.iter().find_map(|comm| comm_flaw(comm, rules.world_size))
}

fn comm_flaw(report: &CommReport, world_size: u32) -> Option<String> {
    let CommReport { comm, group, next, step_first, begins, .. } = report;
    if !is_group(group, |rank| rank.0 < world_size) {
        return Some(format!("{comm} of the ranks {group:?}"));
    }
    if [next, step_first, begins].iter().any(|seq| **seq > OPS_MAX) {
        return Some(format!("{comm} at {next}, in a step from {step_first}, begun at {begins}"));
    }
    report.ops.iter().find_map(|op| op_flaw(op, group).map(|flaw| format!("{comm}: {flaw}")))
}

fn op_flaw(op: &OpReport, comm: &[Rank]) -> Option<String> {
    if op.seq > OPS_MAX || op.attempt > ATTEMPTS_MAX {
        return Some(format!("{} in {}", op.seq, op.attempt));
    }
    if !is_group(&op.group, |rank| comm.binary_search(&rank).is_ok()) {
        return Some(format!("{} over the ranks {:?}", op.seq, op.group));
    }
    let bytes = op.failed.as_ref().map_or(0, text_bytes);
    (bytes > TEXT_BYTES_MAX).then(|| format!("{} failed with an error of {bytes} bytes", op.seq))
}

/// At least one rank, each once, in ascending order.
fn is_group(group: &[Rank], belongs: impl Fn(Rank) -> bool) -> bool {
    !group.is_empty() && group.is_sorted_by(|a, b| a < b) && group.iter().all(|rank| belongs(*rank))
}

fn text_bytes(cause: &FailCause) -> usize {
    let of = |losses: &[Loss]| losses.iter().map(|loss| loss.cause.len()).sum::<usize>();
    match cause {
        FailCause::RankLost { losses } | FailCause::ShapeChanged { losses } => of(losses),
        FailCause::Unrecoverable { losses, why } => of(losses) + why.len(),
        FailCause::Mismatch { .. } | FailCause::Expired { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::Bitmap;
    use crate::ids::{CommId, Epoch};
    use crate::policy::Policy;
    use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
    use crate::wire::message::{Holding, StepReport};

    fn report() -> Report {
        let spec = Spec {
            collective: Collective::AllReduce,
            dtype: Dtype::U8,
            reduction: ReduceOp::Sum,
            count: 10,
            root: Rank(0),
            algorithm: Algorithm::Ring,
        };
        let group = vec![Rank(0), Rank(2)];
        let op = OpReport {
            seq: OpSeq(0),
            spec,
            attempt: Attempt(0),
            group: group.clone(),
            held: Holding::Nothing {},
            lost: Holding::Nothing {},
            released: false,
            done: false,
            failed: None,
        };
        let (next, step_first, begins) = (OpSeq(1), OpSeq(0), OpSeq(0));
        let comm = CommReport { comm: CommId(0), group, next, ops: vec![op], step_first, begins };
        Report { epoch: Epoch(2), comms: vec![comm], step: StepReport::default() }
    }

    #[test]
    fn what_an_engine_says_is_sound_and_each_impossible_field_is_not() {
        let rules = Rules::new(3, Policy::Replace);
        assert_eq!(flaw(&report(), &rules), None);
        let loss = Loss { rank: Rank(1), member: crate::ids::MemberId(1), cause: "x".repeat(5000) };
        type Spoil = Box<dyn Fn(&mut Report)>;
        let spoils: Vec<Spoil> = vec![
            Box::new(|r| r.comms[0].group.clear()),
            Box::new(|r| r.comms[0].group.push(Rank(3))),
            Box::new(|r| r.comms[0].group.swap(0, 1)),
            Box::new(|r| r.comms[0].group[1] = Rank(0)),
            Box::new(|r| r.comms[0].next = OpSeq(u64::MAX)),
            Box::new(|r| r.comms[0].step_first = OpSeq(u64::MAX)),
            Box::new(|r| r.comms[0].begins = OpSeq(u64::MAX)),
            Box::new(|r| r.comms[0].ops[0].group.clear()),
            Box::new(|r| r.comms[0].ops[0].group[1] = Rank(1)),
            Box::new(|r| r.comms[0].ops[0].attempt = Attempt(u32::MAX)),
            Box::new(|r| r.comms[0].ops[0].seq = OpSeq(u64::MAX)),
            Box::new(move |r| {
                r.comms[0].ops[0].failed = Some(FailCause::RankLost { losses: vec![loss.clone()] });
            }),
            Box::new(|r| r.step.committed = u64::MAX),
            Box::new(|r| r.step.state_bytes = u64::MAX),
            Box::new(|r| r.step.state_held = Some(Bitmap::empty(1 << 30))),
        ];
        for (number, spoil) in spoils.iter().enumerate() {
            let mut spoiled = report();
            spoil(&mut spoiled);
            assert!(flaw(&spoiled, &rules).is_some(), "{number}");
        }
    }
}
