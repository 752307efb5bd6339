//! Many seeds on several threads.

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
    /// Ops that the programs call, each counted once.
    pub called: u64,
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
        (Outcome { violations: vec![panic_in_words(&*cause)], ..Outcome::default() }, false)
    })
}

/// A panic as a violation.
pub(super) fn panic_in_words(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no text");
    format!("panic: {text}")
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
            mine.called +=
                (0..scenario.steps).map(|step| scenario.called(u64::from(step)) as u64).sum::<u64>();
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
            all.called += part.called;
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
