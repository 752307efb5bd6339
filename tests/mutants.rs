//! Planted faults are caught by a checker that they name, at a seed that is clean without them, and the run that shows
//! one can be made small. Needs `--features mutants`.
//!
//! `MUTANT_SEEDS=5000` hunts less far than the 20,000 seeds that a claim needs, `MUTANT=CountRanks` one fault alone.
#![cfg(feature = "mutants")]

use phalanx::core::mutants::Mutant;
use phalanx::sim::checkers::checker_of;
use phalanx::sim::hunt::{SEEDS, checkers, hunt, hunt_all, json, row};
use phalanx::sim::minimise::{RUNS_MAX, Size, minimise};
use phalanx::sim::replay::Replay;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

#[test]
fn planted_faults_are_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = number("MUTANT_SEEDS").map_or(SEEDS, |count| SEEDS.start..SEEDS.start + count);
    let only = std::env::var("MUTANT").ok();
    let is_asked = |m: &&Mutant| only.as_ref().is_none_or(|name| *name == format!("{m:?}"));
    let asked: Vec<Mutant> = Mutant::ALL.iter().filter(is_asked).copied().collect();
    assert!(!asked.is_empty(), "no planted fault is called {only:?}");
    let hunts = hunt_all(&asked, &seeds, 2, |hunt| println!("{}", row(hunt, &seeds)));
    let _ = std::panic::take_hook();
    assert_eq!(hunts.len(), asked.len());
    let missed: Vec<Mutant> = hunts.iter().filter(|h| h.found.is_none()).map(|h| h.mutant).collect();
    assert!(missed.is_empty(), "not caught, or not at a clean seed: {missed:?}");
    for hunt in &hunts {
        let by = hunt.found.as_ref().map(|f| checker_of(&f.violation)).unwrap();
        assert!(checkers(hunt.mutant).contains(&by), "{hunt:?}");
    }
    let told = json(&hunts);
    assert!(
        told.starts_with(&format!(
            "{{\"planted\":{n},\"caught\":{n},\"faults\":[{{\"fault\":",
            n = asked.len()
        ))
    );
    assert!(only.is_some() || asked.len() >= 20, "{} planted faults", asked.len());
}

/// What a hunt finds early, made small: the same checker still speaks, and nothing is wrong without the fault.
#[test]
fn a_run_that_breaks_something_is_made_small() {
    for (mutant, ranks, faults) in [
        (Mutant::ReleaseEarly, 4, 2),
        (Mutant::ReleaseLocal, 3, 2),
        (Mutant::OverwriteRetained, 3, 2),
        (Mutant::SeatTwice, 3, 2),
    ] {
        let found = hunt(mutant, SEEDS).found.unwrap();
        let small = minimise(&found.replay, RUNS_MAX).unwrap();
        let (before, after) = small.sizes;
        println!("{mutant:?}: {before} -> {after} in {} runs: {}", small.runs, small.replay);
        assert_eq!(checker_of(&small.violation), checker_of(&found.violation));
        assert!(after.ranks <= ranks && after.faults <= faults, "{mutant:?}: {after}");
        assert!(after.ops <= before.ops && after.steps <= before.steps && after.spares <= before.spares);
        assert!(small.runs <= RUNS_MAX);
        assert_eq!(after, Size::of(&small.replay.scenario()));
        // The command that it prints is the run.
        let again =
            Replay { without: small.replay.without.to_string().parse().unwrap(), ..found.replay.clone() };
        assert_eq!(again.outcome(false).violations.first(), Some(&small.violation));
        assert!(Replay { mutant: None, ..again }.outcome(false).violations.is_empty());
        // It draws nothing.
        assert_eq!(minimise(&found.replay, RUNS_MAX).unwrap().replay, small.replay);
    }
}

/// A panic loses nothing of the timeline: what led there is told.
#[test]
fn a_run_that_panics_is_told_up_to_there() {
    std::panic::set_hook(Box::new(|_| {}));
    let found = hunt(Mutant::IgnoreLost, SEEDS).found.unwrap();
    let (quiet, told) = (found.replay.outcome(false), found.replay.outcome(true));
    let _ = std::panic::take_hook();
    assert_eq!(checker_of(&found.violation), "panic");
    assert_eq!(quiet.violations.first(), told.violations.first());
    assert!(told.timeline.text().contains(&format!("VIOLATION {}", found.violation)));
    assert!(told.timeline.entries.len() > 20, "{}", told.timeline.entries.len());
}

#[test]
fn the_search_stops_after_so_many_runs_and_makes_nothing_of_a_run_that_holds() {
    let found = hunt(Mutant::ReleaseEarly, SEEDS).found.unwrap();
    let small = minimise(&found.replay, 10).unwrap();
    assert!(small.runs <= 11, "{}", small.runs);
    assert!(
        minimise(&Replay { mutant: None, ..found.replay }, RUNS_MAX).is_none(),
        "nothing is wrong with it"
    );
}
