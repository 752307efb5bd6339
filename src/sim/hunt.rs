//! The hunt for planted faults: which checker catches each, and at which seed.

use std::ops::Range;
use std::sync::Mutex;

use phalanx_core::mutants::Mutant;

use super::checkers::checker_of;
use super::replay::{Draw, Replay};
use super::scenario::CALM_FROM;

/// Seeds that a hunt looks at, where nobody says which.
pub const SEEDS: Range<u64> = CALM_FROM..CALM_FROM + 20_000;

/// The checkers that catch a planted fault by what it breaks. A violation of another one does not count as caught: the
/// fault would be seen by luck.
#[must_use]
pub fn checkers(mutant: Mutant) -> &'static [&'static str] {
    match mutant {
        Mutant::ReleaseLocal | Mutant::ReleaseEarly | Mutant::NoTopRule => &["I4 holders"],
        Mutant::IgnoreEpoch => &["I6 fence"],
        // Ranks go on by what is no longer so, and wait for each other.
        Mutant::StaleLedger => &["I8 liveness"],
        // The engine asserts that no chunk becomes Final twice.
        Mutant::IgnoreLost => &["panic"],
        Mutant::ForgetRetained | Mutant::OverwriteRetained | Mutant::CountTwice | Mutant::UndoOnce => {
            &["I1 exact"]
        }
        Mutant::CommitAsOp => &["I8 liveness"],
        Mutant::ShrinkReleased => &["I2 uniform"],
        Mutant::IgnoreLease => &["P5 lease"],
        Mutant::OldMember | Mutant::SeatTwice => &["I7 seats"],
        Mutant::UndoByChunk | Mutant::NoUndo => &["I3 buffer"],
        Mutant::OutOfOrder | Mutant::CountRanks => &["P6 within the promise"],
        Mutant::IgnoreCount => &["I8 liveness"],
        Mutant::SeatDeadSpare => &["I8 liveness"],
        Mutant::StateEarly => &["I10 replay"],
    }
}

/// Where a planted fault was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The run.
    pub replay: Replay,
    /// What the checker says.
    pub violation: String,
    /// Seeds it took, this one included.
    pub seeds: u64,
}

/// How a planted fault was hunted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunt {
    /// The fault.
    pub mutant: Mutant,
    /// Where it was caught; `None`: at no seed of the range.
    pub found: Option<Found>,
    /// What other checkers said before: seen, not caught.
    pub seen_by_others: u64,
}

/// Plants one fault and runs seeds, each also with links that break, until a checker that it names catches it in a run
/// that is clean without it.
#[must_use]
pub fn hunt(mutant: Mutant, seeds: Range<u64>) -> Hunt {
    let mut hunt = Hunt { mutant, found: None, seen_by_others: 0 };
    let runs = seeds.clone().flat_map(|seed| [(seed, Draw::Whole), (seed, Draw::Breaks)]);
    for (seed, draw) in runs {
        let replay = Replay { seed, draw, mutant: Some(mutant), ..Replay::default() };
        let Some(violation) = replay.outcome(false).violations.into_iter().next() else { continue };
        if !checkers(mutant).contains(&checker_of(&violation)) {
            hunt.seen_by_others += 1;
            continue;
        }
        let unplanted = Replay { mutant: None, ..replay.clone() };
        if unplanted.outcome(false).violations.is_empty() {
            hunt.found = Some(Found { replay, violation, seeds: seed - seeds.start + 1 });
            break;
        }
    }
    hunt
}

/// Hunts each of these faults, on so many threads; `tell` hears of each as it ends. The hunts come back in the order of
/// `mutants`.
pub fn hunt_all(
    mutants: &[Mutant],
    seeds: &Range<u64>,
    threads: usize,
    tell: impl Fn(&Hunt) + Sync,
) -> Vec<Hunt> {
    let next = Mutex::new(mutants.iter());
    let take = || next.lock().ok().and_then(|mut left| left.next().copied());
    let one = || {
        let mut mine = Vec::new();
        while let Some(mutant) = take() {
            let hunt = hunt(mutant, seeds.clone());
            tell(&hunt);
            mine.push(hunt);
        }
        mine
    };
    let mut all: Vec<Hunt> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        runs.into_iter().filter_map(|run| run.join().ok()).flatten().collect()
    });
    all.sort_by_key(|hunt| mutants.iter().position(|m| *m == hunt.mutant));
    all
}

/// A line of the table.
#[must_use]
pub fn row(hunt: &Hunt, seeds: &Range<u64>) -> String {
    let name = format!("{:?}", hunt.mutant);
    match &hunt.found {
        Some(found) => {
            let (checker, replay) = (checker_of(&found.violation), &found.replay);
            format!("{name:<18} {checker:<22} {:>6}  {replay}", found.seeds)
        }
        None => {
            let (checkers, tried) = (checkers(hunt.mutant).join(" or "), seeds.end - seeds.start);
            format!(
                "{name:<18} {checkers:<22} {tried:>6}  NOT CAUGHT; other checkers {}",
                hunt.seen_by_others
            )
        }
    }
}

/// All hunts as one JSON object.
#[must_use]
pub fn json(hunts: &[Hunt]) -> String {
    let caught = hunts.iter().filter(|h| h.found.is_some()).count();
    let faults: Vec<String> = hunts.iter().map(entry).collect();
    format!("{{\"planted\":{},\"caught\":{caught},\"faults\":[{}]}}", hunts.len(), faults.join(","))
}

fn entry(hunt: &Hunt) -> String {
    let fault = format!("\"fault\":\"{:?}\"", hunt.mutant);
    match &hunt.found {
        Some(found) => format!(
            "{{{fault},\"checker\":\"{}\",\"seeds\":{},\"seed\":{},\"draw\":\"{}\"}}",
            checker_of(&found.violation),
            found.seeds,
            found.replay.seed,
            found.replay.draw.name()
        ),
        None => format!("{{{fault},\"checker\":null,\"seeds\":null,\"seed\":null,\"draw\":null}}"),
    }
}
