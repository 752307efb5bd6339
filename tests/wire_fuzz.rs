//! Damaged frames: every decoder ends with a value or an error, never with a panic. The base of the run is printed; set
//! `SIM_FUZZ_ROUNDS` for a longer one.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use phalanx::core::bitmap::Bitmap;
use phalanx::core::coordinator::Record;
use phalanx::core::ids::{Attempt, ChunkId, CommId, DomainId, Epoch, MemberId, OpId, OpSeq, Rank};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use phalanx::core::view::{MemberInfo, View};
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::message::{
    CommReport, Downward, FailCause, Holding, Loss, OpReport, Report, StepReport, Upward,
};
use phalanx::core::wire::{Header, Kind, Wire};
use phalanx::sim::random::Random;

fn spec() -> Spec {
    Spec {
        collective: Collective::AllReduce,
        dtype: Dtype::BF16,
        reduction: ReduceOp::Avg,
        count: 1 << 40,
        root: Rank(0),
        algorithm: Algorithm::HalvingDoubling,
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let info = MemberInfo {
        member: MemberId(9),
        host: 3,
        domain: DomainId(4),
        tcp: Some("127.0.0.1:9".parse().unwrap()),
        shm: Some("name".into()),
        pid: 5,
        wants: Some(Rank(1)),
    };
    let loss = Loss { rank: Rank(1), member: MemberId(2), cause: "signal 9".into() };
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
    let view = View { epoch: Epoch(7), seats: vec![Some(MemberId(9)), None], members: vec![info.clone()] };
    let cause = FailCause::Mismatch { one: Rank(0), one_spec: spec(), two: Rank(1), two_spec: spec() };
    let decision = phalanx::core::wire::message::Decision {
        view,
        losses: vec![loss.clone()],
        newcomers: vec![Rank(1)],
        comms: vec![phalanx::core::wire::message::CommDecision {
            comm: CommId(0),
            group: vec![Rank(0), Rank(1)],
            step_first: OpSeq(3),
            begins: OpSeq(5),
            broken: Some(cause),
        }],
        ops: Vec::new(),
        committed: 4,
        state: None,
    };
    vec![
        Upward::Join { version: 1, info, epoch: Epoch(2) }.to_frame(),
        Upward::Ledger { report: Report { epoch: Epoch(7), comms: vec![comm], step } }.to_frame(),
        Downward::Welcome { version: 1, rules: Rules::new(4, Policy::Replace) }.to_frame(),
        Downward::Fence { epoch: Epoch(8), losses: vec![loss.clone()] }.to_frame(),
        Downward::Decide { decision: decision.clone() }.to_frame(),
        Record { epoch: Epoch(8), decision: Some(decision), losses: vec![loss], former: vec![MemberId(3)] }
            .to_frame(),
    ]
}

fn damage(frame: &mut Vec<u8>, random: &mut Random) {
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

#[test]
fn damaged_frames_never_panic_a_decoder() {
    let rounds: u64 = std::env::var("SIM_FUZZ_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(200_000);
    let base = u64::from(std::process::id());
    println!("base {base}, {rounds} rounds");
    let corpus = corpus();
    let (mut good, mut bad) = (0u64, 0u64);
    for round in 0..rounds {
        let mut random = Random::new(base << 32 | round);
        let mut frame = corpus[random.below(corpus.len() as u64) as usize].clone();
        damage(&mut frame, &mut random);
        let decoded = [
            Upward::from_frame(&frame).map(|v| v.to_frame()),
            Downward::from_frame(&frame).map(|v| v.to_frame()),
            Record::from_frame(&frame).map(|v| v.to_frame()),
        ];
        for outcome in decoded {
            match outcome {
                // What decodes encodes again into something that decodes.
                Ok(again) => {
                    assert!(
                        again.len() <= frame.len() + 3 * frame.len(),
                        "{} from {}",
                        again.len(),
                        frame.len()
                    );
                    good += 1;
                }
                Err(_) => bad += 1,
            }
        }
    }
    println!("{good} decoded, {bad} refused");
    assert!(good > 0 && bad > 0, "the damage is either none or total: {good} {bad}");
}

#[test]
fn damaged_headers_never_panic_and_never_announce_more_than_a_slot() {
    let header = Header {
        kind: Kind::Final,
        op: OpId { comm: CommId(1), seq: OpSeq(2) },
        attempt: Attempt(0),
        epoch: Epoch(3),
        chunk: ChunkId(4),
        signature: 5,
        payload_bytes: 6,
        stable: OpSeq(7),
        checksum: 8,
    };
    let mut random = Random::new(u64::from(std::process::id()));
    for _ in 0..200_000 {
        let mut bytes = header.to_wire();
        for _ in 0..random.between(1, 4) {
            bytes[random.below(HEADER_BYTES as u64) as usize] = random.bits() as u8;
        }
        if let Ok(read) = Header::from_wire(&bytes, 4096) {
            assert!(read.payload_bytes <= 4096);
        }
    }
}
