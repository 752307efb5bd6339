//! Seeds of the simulator: those that failed once, and fixed ranges. Fresh ones are for `phalanx sim --seeds A..B`.

use phalanx::sim::Scenario;
use phalanx::sim::sweep::{check, sweep};

/// Checks a range and says how to replay the first failure.
fn range(from: u64, count: u64) {
    println!("seeds {from}..{}", from + count);
    let found = sweep(from..from + count, 2);
    let first = found.violations.first();
    assert!(first.is_none(), "{first:?}; replay: phalanx sim --seed N --explain; smaller: --minimise");
    assert_eq!(found.seeds, count);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// How many seeds a test of this build can do in reasonable time.
const COUNT: u64 = if cfg!(debug_assertions) { 1_000 } else { 4_000 };

#[test]
fn a_fixed_range_holds() {
    range(number("SIM_FROM").unwrap_or(0), number("SIM_COUNT").unwrap_or(COUNT));
}

#[test]
fn a_second_fixed_range_holds() {
    range(1_000_000, COUNT / 2);
}

#[test]
fn a_range_of_the_wide_draw_holds() {
    range(phalanx::sim::scenario::WIDE_FROM, COUNT);
}

#[test]
fn a_range_of_the_draw_of_calm_fences_holds() {
    range(phalanx::sim::scenario::CALM_FROM, COUNT);
}

/// Links that break between the living are repaired: no op expires that every rank has called, nothing is wrong.
#[test]
fn worlds_whose_links_break_hold() {
    let from = number("SIM_FROM").unwrap_or(2_000_000);
    for seed in from..from + number("SIM_COUNT").unwrap_or(COUNT / 2) {
        let (outcome, _) = check(&Scenario::with_breaks(seed), false);
        assert!(outcome.violations.is_empty(), "with_breaks {seed}: {:?}", outcome.violations);
    }
}

#[test]
fn seeds_that_failed_once_hold() {
    let mut run = 0;
    for line in include_str!("seeds.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let (draw, seed, why) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let seed = seed.parse().unwrap();
        let scenario = draw.parse::<phalanx::sim::replay::Draw>().unwrap().scenario(seed);
        let (outcome, _) = check(&scenario, false);
        assert!(outcome.violations.is_empty(), "{draw} {seed} ({why}): {:?}", outcome.violations);
        run += 1;
    }
    assert!(run > 10, "seeds.txt was not read");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..100 {
        let s = Scenario::draw(seed);
        let (one, two) = (phalanx::sim::run(&s, false), phalanx::sim::run(&s, true));
        assert_eq!((one.trace, one.results), (two.trace, two.results), "seed {seed}");
    }
    let traces: std::collections::BTreeSet<u64> =
        (0..100).map(|seed| phalanx::sim::run(&Scenario::draw(seed), false).trace).collect();
    assert!(traces.len() > 95, "the trace hash depends on what happens: {} of 100 differ", traces.len());
}

#[test]
fn a_wrong_call_gives_every_rank_the_same_mismatch_and_a_missing_one_the_same_expiry() {
    use phalanx::sim::scenario::OddCall;
    let (mut mismatches, mut expiries) = (0, 0);
    for seed in 0..3_000 {
        let s = Scenario::early(seed);
        let (Some(odd), true) = (s.odd, s.faults.is_empty()) else { continue };
        // Uniformity down to the cause is the checker's; here only that the error is the one the case asks for.
        let (outcome, _) = check(&s, true);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:?}", outcome.violations);
        let text = outcome.timeline.text();
        let with = |cause: &str| text.lines().any(|l| l.contains("decides e") && l.contains(cause));
        match odd {
            OddCall::Other(_) => mismatches += u32::from(with("fail (mismatch") && outcome.failed > 0),
            OddCall::Never(_) => expiries += u32::from(with("fail (expired") && outcome.failed > 0),
        }
    }
    assert!(mismatches > 10 && expiries > 10, "{mismatches} mismatches, {expiries} expiries");
}
