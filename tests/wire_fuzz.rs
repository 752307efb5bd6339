//! Damaged frames: every decoder ends with a value or an error, never with a panic. The base of the run is printed; set
//! `SIM_FUZZ_ROUNDS` for a longer one.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "wire/frames.rs"]
mod frames;

use phalanx::core::coordinator::Record;
use phalanx::core::ids::{Attempt, ChunkId, CommId, Epoch, OpId, OpSeq};
use phalanx::core::wire::codec::DecodeError;
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::message::{Downward, Upward};
use phalanx::core::wire::{Header, Kind, Wire};
use phalanx::sim::random::Random;

use frames::{corpus, damage};

/// A kind that is added to the messages must be added to the frames, or this fails.
#[test]
fn the_frames_have_every_kind() {
    let unknown = |outcome: Option<DecodeError>| matches!(outcome, Some(DecodeError::Bad { .. }));
    for (number, frame) in frames::upward().iter().enumerate() {
        assert_eq!(frame[0], number as u8);
        assert!(Upward::from_frame(frame).is_ok());
    }
    for (number, frame) in frames::downward().iter().enumerate() {
        assert_eq!(frame[0], number as u8);
        assert!(Downward::from_frame(frame).is_ok());
    }
    let next = [frames::upward().len(), frames::downward().len()].map(|n| [n as u8]);
    assert!(unknown(Upward::from_frame(&next[0]).err()), "a frame of the kind {:?} is missing", next[0]);
    assert!(unknown(Downward::from_frame(&next[1]).err()), "a frame of the kind {:?} is missing", next[1]);
    assert!(Record::from_frame(&frames::record()).is_ok());
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
