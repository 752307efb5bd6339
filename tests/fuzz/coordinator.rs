//! A coordinator in the middle of a fence, and whatever its members say to it.

use phalanx::core::coordinator::Coordinator;
use phalanx::core::engine::Engine;
use phalanx::core::ids::{DomainId, Epoch, MemberId, Rank};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::view::MemberInfo;
use phalanx::core::wire::Wire;
use phalanx::core::wire::message::{FRAME_BYTES_MAX, Upward};

/// Members 1 to 3 have the seats, 4 is a spare; 3 is dead.
const RANKS: u64 = 3;

pub fn info(member: u64) -> MemberInfo {
    let wants = (member <= RANKS).then(|| Rank(member as u32 - 1));
    MemberInfo {
        member: MemberId(member),
        host: member,
        domain: DomainId(member),
        tcp: None,
        shm: None,
        pid: 1,
        wants,
    }
}

fn fenced(policy: Policy) -> Coordinator {
    let mut coordinator = Coordinator::new(Rules::new(RANKS as u32, policy), None, 0);
    for member in 1..=RANKS + 1 {
        let join = Upward::Join { version: 1, info: info(member), epoch: Epoch(0) };
        coordinator.handle_message(MemberId(member), join, 0);
    }
    drain(&mut coordinator);
    coordinator.handle_lost(MemberId(3), "signal 9", 0);
    drain(&mut coordinator);
    assert_eq!(coordinator.epoch(), Epoch(2));
    coordinator
}

/// Everything that follows: each message must fit a frame.
fn drain(coordinator: &mut Coordinator) {
    loop {
        if let Some(record) = coordinator.poll_store() {
            coordinator.handle_stored(&record, 0);
        } else if let Some((_, message)) = coordinator.poll_message() {
            assert!(message.to_frame().len() <= FRAME_BYTES_MAX);
        } else if coordinator.poll_event().is_none() {
            return;
        }
    }
}

/// First byte: the policy. Then messages: who says it, a length of two bytes, the frame.
pub fn coordinator(data: &[u8]) {
    let Some((&policy, mut rest)) = data.split_first() else { return };
    let mut coordinator = fenced([Policy::Replace, Policy::Shrink, Policy::Abort][usize::from(policy) % 3]);
    while let Some(([from, low, high], after)) = rest.split_first_chunk::<3>() {
        let bytes = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (frame, after) = after.split_at(bytes);
        rest = after;
        let Ok(message) = Upward::from_frame(frame) else { continue };
        coordinator.handle_message(MemberId(u64::from(*from) % (RANKS + 3)), message, 0);
        drain(&mut coordinator);
    }
}

/// What real engines say to that fence, and what else is in `frames`, as input for [`coordinator`].
pub fn seeds(ledgers: &[Upward]) -> Vec<Vec<u8>> {
    let mut engine = Engine::new(info(1), 0);
    let join = engine.poll_message().unwrap();
    let said = |all: &[(u64, &Upward)]| {
        let mut bytes = vec![0];
        for (from, message) in all {
            let frame = message.to_frame();
            bytes.push(*from as u8);
            bytes.extend((frame.len() as u16).to_le_bytes());
            bytes.extend(frame);
        }
        bytes
    };
    let mut seeds = vec![said(&[(1, &join), (1, &Upward::Leave {}), (2, &Upward::Leave {})])];
    for ledger in ledgers {
        seeds.push(said(&[(1, ledger), (2, ledger)]));
    }
    seeds.clone().into_iter().for_each(|seed| {
        let (_, rest) = seed.split_first().unwrap();
        seeds.extend([1, 2].map(|policy| [&[policy], rest].concat()));
    });
    seeds
}
