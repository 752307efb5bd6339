//! Many seeds on several threads, and the hunt for planted faults.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::coverage::Coverage;
use super::{Outcome, Scenario, run};
use phalanx_core::policy::Policy;

/// What a range of seeds came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sweep {
    /// Runs made.
    pub seeds: u64,
    /// Seeds with a violation, ascending, each with its first one.
    pub violations: Vec<(u64, String)>,
    /// Runs a second over all threads.
    pub runs_per_s: f64,
    /// Ops that ended with a result.
    pub completed: u64,
    /// Ops that ended with a typed error.
    pub failed: u64,
    /// Members declared dead.
    pub losses: u64,
    /// Decisions after a world's first.
    pub recoveries: u64,
    /// Runs compared bit for bit with the run of the same calls without a fault.
    pub compared: u64,
    /// Ranks over all runs.
    pub ranks: u64,
    /// Faults that struck something.
    pub strikes: u64,
    /// What they struck.
    pub coverage: Coverage,
}

/// Runs a scenario; every fourth under `Replace` also without its faults, and compares the results bit for bit (P1).
/// A panic anywhere in the run is a violation too. True: the two runs were compared.
#[must_use]
pub fn check(scenario: &Scenario, explain: bool) -> (Outcome, bool) {
    // A run that panicked is not looked at again, but for its seed.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut outcome = run(scenario, explain);
        let quiet = outcome.losses == 0 || outcome.shrunk || !outcome.violations.is_empty();
        if quiet || scenario.rules.policy != Policy::Replace || !scenario.seed.is_multiple_of(4) {
            return (outcome, false);
        }
        let calm = run(&scenario.undisturbed(), false);
        let differs =
            outcome.results.iter().find(|(key, hash)| calm.results.get(key).is_some_and(|h| h != *hash));
        if let Some(((op, rank), _)) = differs {
            outcome
                .violations
                .push(format!("P1 exact: {op} at {rank} has other bits than without the faults"));
        }
        (outcome, true)
    }));
    caught.unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no text");
        (Outcome { violations: vec![format!("panic: {text}")], ..Outcome::default() }, false)
    })
}

/// Runs every seed of the range on so many threads.
#[must_use]
pub fn sweep(seeds: Range<u64>, threads: usize) -> Sweep {
    let next = AtomicU64::new(seeds.start);
    let began = Instant::now();
    let one = || {
        let mut mine = Sweep::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return mine;
            }
            let scenario = Scenario::draw(seed);
            let ranks = u64::from(scenario.rules.world_size);
            let (outcome, compared) = check(&scenario, false);
            mine.seeds += 1;
            mine.completed += outcome.completed;
            mine.failed += outcome.failed;
            mine.losses += outcome.losses;
            mine.recoveries += outcome.recoveries;
            mine.compared += u64::from(compared);
            mine.ranks += ranks;
            mine.strikes += outcome.strikes;
            outcome.cells.iter().for_each(|cell| mine.coverage.count(*cell));
            mine.violations.extend(outcome.violations.into_iter().next().map(|text| (seed, text)));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        runs.into_iter().fold(Sweep::default(), |mut all, run| {
            let Ok(part) = run.join() else { return all };
            all.seeds += part.seeds;
            all.completed += part.completed;
            all.failed += part.failed;
            all.losses += part.losses;
            all.recoveries += part.recoveries;
            all.compared += part.compared;
            all.ranks += part.ranks;
            all.strikes += part.strikes;
            all.coverage.add(&part.coverage);
            all.violations.extend(part.violations);
            all
        })
    });
    all.violations.sort();
    all.runs_per_s = all.seeds as f64 / began.elapsed().as_secs_f64().max(1e-9);
    all
}

/// How a planted fault was found.
#[cfg(feature = "mutants")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunt {
    /// The fault.
    pub mutant: phalanx_core::mutants::Mutant,
    /// The seed that found it and what the checker said; `None`: no seed of the range did.
    pub found: Option<(u64, String)>,
}

/// Plants one fault on this thread and runs seeds, each also with links that break, until a checker catches it, in a
/// run that is clean without it.
#[cfg(feature = "mutants")]
#[must_use]
pub fn hunt(mutant: phalanx_core::mutants::Mutant, seeds: Range<u64>) -> Hunt {
    phalanx_core::mutants::plant(Some(mutant));
    let runs = seeds.into_iter().flat_map(|seed| [Scenario::draw(seed), Scenario::with_breaks(seed)]);
    let found = runs.into_iter().find_map(|scenario| {
        let text = check(&scenario, false).0.violations.into_iter().next()?;
        phalanx_core::mutants::plant(None);
        let is_clean = check(&scenario, false).0.violations.is_empty();
        phalanx_core::mutants::plant(Some(mutant));
        is_clean.then_some((scenario.seed, text))
    });
    phalanx_core::mutants::plant(None);
    Hunt { mutant, found }
}
