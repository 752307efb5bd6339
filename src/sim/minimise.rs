//! From a run that breaks something to a smaller one that breaks the same: less is left out only as long as the same
//! checker still speaks first.
//!
//! The search is greedy and tries the large cuts first: whole lists, then halves, then single things (after Zeller and
//! Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002). It goes round until nothing more can be left
//! out, or until it has made so many runs. It draws nothing: the same run gives the same smaller one.

use std::collections::BTreeSet;
use std::fmt;

use super::checkers::checker_of;
use super::reduction::{Measure, Part, Reduction, Reductions};
use super::replay::Replay;
use super::scenario::Scenario;

/// So many runs at most, where nobody says how many.
pub const RUNS_MAX: u32 = 2_000;

/// What a run was made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Ranks of the world.
    pub ranks: u32,
    /// Spares at the start.
    pub spares: u32,
    /// Steps.
    pub steps: u32,
    /// Ops, over all steps and before them.
    pub ops: usize,
    /// Faults, traps, and deaths that follow something.
    pub faults: usize,
}

impl Size {
    /// The size of a scenario.
    #[must_use]
    pub fn of(s: &Scenario) -> Self {
        let follows = usize::from(s.follow.is_some()) + usize::from(s.after_release.is_some());
        Self {
            ranks: s.rules.world_size,
            spares: s.spares,
            steps: s.steps,
            ops: (0..s.steps).map(|step| s.called(u64::from(step))).sum::<usize>() + s.before_steps().len(),
            faults: s.faults.len() + s.traps.len() + s.aims.len() + follows,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, spares, steps, ops, faults } = self;
        write!(f, "ranks {ranks}, spares {spares}, steps {steps}, ops {ops}, faults {faults}")
    }
}

/// A smaller run that breaks the same.
#[derive(Clone, Debug)]
pub struct Minimised {
    /// The run.
    pub replay: Replay,
    /// What the checker says of it.
    pub violation: String,
    /// Runs that it took.
    pub runs: u32,
    /// The size before and after.
    pub sizes: (Size, Size),
}

/// Makes a run smaller; `None`: it breaks nothing, or, with a planted fault, it breaks something without it too.
#[must_use]
pub fn minimise(start: &Replay, runs_max: u32) -> Option<Minimised> {
    let first = start.outcome(false).violations.into_iter().next()?;
    let mut search = Search {
        drawn: start.draw.scenario(start.seed),
        best: start.clone(),
        checker: checker_of(&first).to_owned(),
        violation: first,
        tried: BTreeSet::new(),
        runs: 1,
        runs_max,
    };
    if !search.is_clean_without(start) {
        return None;
    }
    loop {
        let before = search.best.without.clone();
        search.leave_out_parts();
        search.lower_measures();
        search.thin(Search::faults);
        search.thin(Search::traps);
        search.thin(Search::aims);
        search.thin(Search::ops);
        if search.best.without == before || search.runs >= runs_max {
            break;
        }
    }
    let sizes = (Size::of(&start.scenario()), Size::of(&search.best.scenario()));
    Some(Minimised { replay: search.best, violation: search.violation, runs: search.runs, sizes })
}

struct Search {
    /// What the seed means, whole.
    drawn: Scenario,
    /// The smallest run so far.
    best: Replay,
    checker: String,
    violation: String,
    tried: BTreeSet<Reductions>,
    runs: u32,
    runs_max: u32,
}

impl Search {
    /// A planted fault is to blame only where nothing is wrong without it.
    fn is_clean_without(&mut self, replay: &Replay) -> bool {
        if replay.mutant.is_none() {
            return true;
        }
        self.runs += 1;
        Replay { mutant: None, ..replay.clone() }.outcome(false).violations.is_empty()
    }

    /// Leaves `more` out too, if the same still breaks. What changes nothing is no reduction.
    fn take(&mut self, more: &[Reduction]) -> bool {
        let without = self.best.without.with(more.iter().copied());
        let changed = format!("{:?}", without.applied(&self.drawn)) != format!("{:?}", self.best.scenario());
        if !changed || self.runs >= self.runs_max || !self.tried.insert(without.clone()) {
            return false;
        }
        let next = Replay { without, ..self.best.clone() };
        self.runs += 1;
        let first = next.outcome(false).violations.into_iter().next();
        let Some(violation) = first.filter(|text| checker_of(text) == self.checker) else { return false };
        if !self.is_clean_without(&next) {
            return false;
        }
        (self.best, self.violation) = (next, violation);
        true
    }

    fn leave_out_parts(&mut self) {
        let all = Part::ALL.map(|(part, _)| Reduction::Part(part));
        for part in all {
            self.take(&[part]);
        }
    }

    fn lower_measures(&mut self) {
        for (measure, _) in Measure::ALL {
            let now = measure.of(&self.best.scenario());
            let candidates = measure.candidates(now);
            let _ = candidates.into_iter().any(|most| self.take(&[Reduction::Above(measure, most)]));
        }
    }

    /// Leaves out as many things of a list as it can: all, halves, quarters, single ones.
    fn thin(&mut self, list: fn(&Self) -> Vec<Reduction>) {
        let mut together = list(self).len();
        while together > 0 {
            for some in list(self).chunks(together) {
                self.take(some);
            }
            together /= 2;
        }
    }

    fn faults(&self) -> Vec<Reduction> {
        let all = (0..self.drawn.faults.len()).map(Reduction::Fault);
        all.filter(|r| !self.best.without.has(r)).collect()
    }

    fn aims(&self) -> Vec<Reduction> {
        let all = (0..self.drawn.aims.len()).map(Reduction::Aim);
        all.filter(|r| !self.best.without.has(r)).collect()
    }

    fn traps(&self) -> Vec<Reduction> {
        let all = (0..self.drawn.traps.len()).map(Reduction::Trap);
        all.filter(|r| !self.best.without.has(r)).collect()
    }

    fn ops(&self) -> Vec<Reduction> {
        let s = self.best.scenario();
        let of_step = |step| (0..s.ops(step).len()).map(move |index| Reduction::Op(step, index));
        let all = (0..u64::from(s.steps)).flat_map(of_step);
        all.filter(|r| !self.best.without.has(r)).collect()
    }
}

impl Measure {
    fn of(self, s: &Scenario) -> u64 {
        match self {
            Self::Ranks => u64::from(s.rules.world_size),
            Self::Spares => u64::from(s.spares),
            Self::Steps => u64::from(s.steps),
            Self::Count => (0..s.steps)
                .flat_map(|step| s.ops(u64::from(step)).iter().map(|op| op.spec.count).collect::<Vec<_>>())
                .max()
                .unwrap_or(0),
            Self::Delay => s.delay_us_max,
            Self::State => s.state_words as u64,
        }
    }

    /// Limits below `now`, the lowest first.
    fn candidates(self, now: u64) -> Vec<u64> {
        match self {
            Self::Ranks | Self::Steps => (1..now).collect(),
            Self::Spares => (0..now).collect(),
            Self::Count => [0, 1, 3, 8, 17, 33, 64, 200].into_iter().filter(|c| *c < now).collect(),
            Self::Delay => [1, 5, 50].into_iter().filter(|c| *c < now).collect(),
            Self::State => [0, 1, 7].into_iter().filter(|c| *c < now).collect(),
        }
    }
}
