//! The bodies of the fuzz targets (tests/fuzz) over their corpus and damaged forms of it, without a fuzzer. The corpus
//! is what the encoders write: `SIM_WRITE_CORPUS=1` writes it anew. `SIM_FUZZ_ROUNDS` and `SIM_SEED` choose the damage.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "fuzz/bodies.rs"]
mod bodies;
#[allow(dead_code, reason = "shared with the other tests of the decoders")]
#[path = "wire/frames.rs"]
mod frames;

use std::path::PathBuf;

use phalanx::control::{FromLauncher, ToLauncher};
use phalanx::core::ids::{Attempt, ChunkId, CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::view::View;
use phalanx::core::wire::message::{CommReport, Loss, Report, Upward};
use phalanx::core::wire::{Header, Kind, Wire};
use phalanx::sim::random::Random;

/// A target: its name, its body, and the share of the rounds that its cost allows.
type Target = (&'static str, fn(&[u8]), u64);

const TARGETS: [Target; 10] = [
    ("header", bodies::header, 100),
    ("upward", bodies::upward, 100),
    ("downward", bodies::downward, 100),
    ("record", bodies::record, 100),
    ("from_launcher", bodies::from_launcher, 100),
    ("to_launcher", bodies::to_launcher, 100),
    ("frame", bodies::frame, 100),
    ("handshake", bodies::handshake, 20),
    ("stream", bodies::stream, 2),
    ("coordinator", bodies::coordinator, 20),
];

fn headers() -> Vec<Header> {
    let kinds = [Kind::Partial, Kind::Final, Kind::Confirm, Kind::Pause, Kind::Proceed];
    let header = |kind: Kind| Header {
        kind,
        op: OpId { comm: CommId(1), seq: OpSeq(2) },
        attempt: Attempt(0),
        epoch: Epoch(1),
        chunk: ChunkId(4),
        signature: 5,
        payload_bytes: if kind.is_note() { 0 } else { 100 },
        stable: OpSeq(7),
        checksum: 8,
    };
    kinds.map(header).to_vec()
}

/// A ledger that answers the fence of the target: like the one of the frames, with ranks that there are.
fn ledgers() -> Vec<Upward> {
    let group = vec![Rank(0), Rank(1), Rank(2)];
    let full = frames::report();
    let op = phalanx::core::wire::message::OpReport {
        group: group.clone(),
        spec: phalanx::core::spec::Spec { count: 1 << 12, ..frames::spec() },
        failed: None,
        ..full.comms[0].ops[0].clone()
    };
    let mut ledgers = Vec::new();
    for ops in [vec![], vec![op]] {
        for state_gone in [false, true] {
            let comm = CommReport { group: group.clone(), ops: ops.clone(), ..full.comms[0].clone() };
            let step = phalanx::core::wire::message::StepReport {
                state_gone,
                state_held: None,
                ..full.step.clone()
            };
            let report = Report { epoch: Epoch(2), comms: vec![comm], step };
            ledgers.push(Upward::Ledger { report });
        }
    }
    ledgers
}

/// Inputs of a target, made by the encoders.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let loss = Loss { rank: Rank(1), member: MemberId(6), cause: "exit code 1".into() };
    let view = View { epoch: Epoch(3), seats: vec![Some(MemberId(7)), None], members: Vec::new() };
    let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_le_bytes()[..], frame].concat();
    match target {
        "header" => headers().iter().map(|header| header.to_wire().to_vec()).collect(),
        "upward" => frames::upward(),
        "downward" => frames::downward(),
        "record" => vec![frames::record()],
        "from_launcher" => [
            FromLauncher::Follow { version: 1 },
            FromLauncher::Ended { member: MemberId(5), cause: "signal 9".into() },
            FromLauncher::Beat { number: 1 << 40 },
        ]
        .iter()
        .map(Wire::to_frame)
        .collect(),
        "to_launcher" => [
            ToLauncher::Welcome { rules: Rules::new(3, Policy::Replace) },
            ToLauncher::Refused { reason: "no".into() },
            ToLauncher::Seats { view },
            ToLauncher::Lost { loss },
            ToLauncher::Finished {},
            ToLauncher::GivenUp { why: "gone".into() },
            ToLauncher::BeatSeen { number: 3 },
        ]
        .iter()
        .map(Wire::to_frame)
        .collect(),
        "frame" => vec![
            frames::upward().iter().flat_map(framed).collect(),
            frames::downward().iter().flat_map(framed).collect(),
        ],
        "handshake" => {
            // What decides is drawn anew in every handshake: only the shape of a proof can be kept.
            vec![[&[200][..], b"PHA\x01", &[7; 32], &[1], &[0; 16], &[9; 32]].concat(), vec![1; 33]]
        }
        "stream" => {
            let message =
                |header: &Header| [&header.to_wire()[..], &vec![3; header.payload_bytes as usize]].concat();
            let all: Vec<u8> = headers().iter().flat_map(message).collect();
            [1, 9, 255].map(|cut| [&[cut][..], &all].concat()).to_vec()
        }
        "coordinator" => bodies::fenced_seeds(&ledgers()),
        other => panic!("{other} has no seeds"),
    }
}

fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fuzz/corpus", target].iter().collect()
}

#[test]
fn the_corpus_is_what_the_encoders_write() {
    let writes = std::env::var("SIM_WRITE_CORPUS").is_ok();
    for (target, body, _) in TARGETS {
        let folder = folder(target);
        let seeds = seeds(target);
        if writes {
            std::fs::create_dir_all(&folder).unwrap();
            for (number, seed) in seeds.iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
            }
        }
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("seed-"));
        files.sort();
        let kept: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(kept == seeds, "the corpus of {target} is old: SIM_WRITE_CORPUS=1 writes it anew");
        seeds.iter().for_each(|seed| body(seed));
    }
}

#[test]
fn the_bodies_hold_over_damaged_forms_of_the_corpus() {
    let number = |name: Option<String>| name.and_then(|text| text.parse::<u64>().ok());
    let rounds = number(std::env::var("SIM_FUZZ_ROUNDS").ok()).unwrap_or(100_000);
    let seed = number(std::env::var("SIM_SEED").ok()).unwrap_or_else(|| u64::from(std::process::id()));
    println!("SIM_SEED={seed} SIM_FUZZ_ROUNDS={rounds}");
    for (target, body, percent) in TARGETS {
        // What fuzzing found is in the folder too.
        let files = std::fs::read_dir(folder(target)).unwrap();
        let corpus: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        corpus.iter().for_each(|input| body(input));
        for round in 0..rounds * percent / 100 {
            let mut random = Random::new(seed << 32 | round);
            let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
            frames::damage(&mut input, &mut random);
            let caught = std::panic::catch_unwind(|| body(&input));
            assert!(caught.is_ok(), "{target}, round {round}: {input:?}");
        }
    }
}
