//! One frame of every control message and of the store's record, and ways to damage one.

use phalanx::core::bitmap::Bitmap;
use phalanx::core::coordinator::Record;
use phalanx::core::ids::{Attempt, CommId, DomainId, Epoch, MemberId, OpId, OpSeq, Rank};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use phalanx::core::view::{MemberInfo, View};
use phalanx::core::wire::Wire;
use phalanx::core::wire::message::{
    CommDecision, CommReport, Decision, Downward, FailCause, Holding, Loss, Milestone, OpDecision, OpReport,
    Report, StateDecision, StepReport, Upward, Verdict,
};
use phalanx::sim::random::Random;

pub fn spec() -> Spec {
    Spec {
        collective: Collective::AllReduce,
        dtype: Dtype::BF16,
        reduction: ReduceOp::Avg,
        count: 1 << 40,
        root: Rank(0),
        algorithm: Algorithm::HalvingDoubling,
    }
}

fn info() -> MemberInfo {
    MemberInfo {
        member: MemberId(9),
        host: 3,
        domain: DomainId(4),
        tcp: Some("127.0.0.1:9".parse().unwrap()),
        shm: Some("name".into()),
        pid: 5,
        wants: Some(Rank(1)),
    }
}

fn loss() -> Loss {
    Loss { rank: Rank(1), member: MemberId(2), cause: "signal 9".into() }
}

pub fn report() -> Report {
    let op = OpReport {
        seq: OpSeq(8),
        spec: spec(),
        attempt: Attempt(1),
        group: vec![Rank(0), Rank(1)],
        held: Holding::Some { chunks: Bitmap::from_words(130, &[1, 2, 3]) },
        lost: Holding::Everything {},
        released: true,
        done: true,
        failed: Some(FailCause::Expired { missing: vec![Rank(1)] }),
    };
    let comm = CommReport {
        comm: CommId(0),
        group: vec![Rank(0)],
        next: OpSeq(9),
        ops: vec![op],
        step_first: OpSeq(3),
        begins: OpSeq(4),
    };
    let step = StepReport {
        committed: 4,
        open: true,
        state_bytes: 77,
        state_gone: true,
        state_held: Some(Bitmap::from_words(3, &[5])),
    };
    Report { epoch: Epoch(7), comms: vec![comm], step }
}

pub fn decision() -> Decision {
    let cause = |n| match n {
        0 => FailCause::RankLost { losses: vec![loss()] },
        1 => FailCause::Unrecoverable { losses: vec![loss()], why: "gone".into() },
        2 => FailCause::Mismatch { one: Rank(0), one_spec: spec(), two: Rank(1), two_spec: spec() },
        _ => FailCause::ShapeChanged { losses: vec![loss()] },
    };
    let op = |verdict| OpDecision {
        id: OpId { comm: CommId(0), seq: OpSeq(5) },
        spec: spec(),
        verdict,
        attempt: Attempt(1),
        group: vec![Rank(0), Rank(1)],
        held: vec![Holding::Nothing {}, Holding::Some { chunks: Bitmap::from_words(70, &[5, 1]) }],
    };
    let mut ops: Vec<_> = (0..4).map(|n| op(Verdict::Fail { cause: cause(n) })).collect();
    ops.extend([op(Verdict::Keep {}), op(Verdict::Repair {}), op(Verdict::Shrink {})]);
    Decision {
        view: View { epoch: Epoch(7), seats: vec![Some(MemberId(9)), None], members: vec![info()] },
        losses: vec![loss()],
        newcomers: vec![Rank(1)],
        comms: vec![CommDecision {
            comm: CommId(0),
            group: vec![Rank(0), Rank(1)],
            step_first: OpSeq(3),
            begins: OpSeq(5),
            broken: Some(cause(2)),
        }],
        ops,
        committed: 4,
        state: Some(StateDecision {
            committed: 4,
            providers: vec![Rank(0)],
            bytes: 100,
            newcomers: vec![(Rank(1), Holding::Nothing {})],
        }),
    }
}

/// One frame a kind, in the order of their numbers.
pub fn upward() -> Vec<Vec<u8>> {
    let op = OpId { comm: CommId(0), seq: OpSeq(5) };
    let epoch = Epoch(7);
    [
        Upward::Join { version: 1, info: info(), epoch },
        Upward::Beat { epoch, done_below: vec![(CommId(0), OpSeq(4)), (CommId(1), OpSeq(0))] },
        Upward::Suspect { member: MemberId(3), epoch, cause: "reset".into() },
        Upward::Ledger { report: report() },
        Upward::Expired { op, epoch },
        Upward::Mismatch { op, peer: Rank(1), epoch },
        Upward::Milestone { epoch, what: Milestone::Replayed {} },
        Upward::Leave {},
    ]
    .iter()
    .map(Wire::to_frame)
    .collect()
}

/// As [`upward`].
pub fn downward() -> Vec<Vec<u8>> {
    let epoch = Epoch(8);
    [
        Downward::Welcome { version: 1, rules: Rules::new(4, Policy::Replace) },
        Downward::BeatSeen { epoch, stable: vec![(CommId(0), OpSeq(4))] },
        Downward::Fence { epoch, losses: vec![loss()] },
        Downward::Decide { decision: decision() },
        Downward::Evicted { epoch, cause: "silence".into() },
        Downward::Finished {},
        Downward::Refused { reason: "another version".into() },
    ]
    .iter()
    .map(Wire::to_frame)
    .collect()
}

/// What the store keeps.
pub fn record() -> Vec<u8> {
    let (losses, former) = (vec![loss()], vec![MemberId(3)]);
    Record { epoch: Epoch(8), decision: Some(decision()), losses, former }.to_frame()
}

/// Every frame.
pub fn corpus() -> Vec<Vec<u8>> {
    let mut frames = upward();
    frames.extend(downward());
    frames.push(record());
    frames
}

/// Changes, cuts and lengthens a frame.
pub fn damage(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.between(1, 6) {
        let at = random.below(frame.len() as u64 + 1) as usize;
        match random.below(5) {
            0 if at < frame.len() => frame[at] = random.bits() as u8,
            1 if at < frame.len() => frame[at] ^= 1 << random.below(8),
            2 => frame.truncate(at),
            3 => frame.insert(at, random.bits() as u8),
            _ if at + 4 <= frame.len() => frame[at..at + 4].fill(0xff),
            _ => {}
        }
    }
}
