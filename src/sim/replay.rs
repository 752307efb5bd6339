//! What is run, as somebody types it: a seed, its draw, a planted fault, and what is left out of it.

use std::fmt;
use std::str::FromStr;

use phalanx_core::mutants::Mutant;

use super::reduction::Reductions;
use super::scenario::Scenario;
use super::sweep::check;
use super::world::Outcome;

/// What a seed means. The names are those of `tests/seeds.txt`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Draw {
    /// The first, plain draw, which never changes.
    Basic,
    /// The draw.
    #[default]
    Whole,
    /// What the draw was before there was the swarm.
    Early,
    /// That, with links that break.
    Breaks,
}

impl Draw {
    const ALL: [Self; 4] = [Self::Basic, Self::Whole, Self::Early, Self::Breaks];

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Whole => "draw",
            Self::Early => "early",
            Self::Breaks => "with_breaks",
        }
    }

    /// The scenario of a seed.
    #[must_use]
    pub fn scenario(self, seed: u64) -> Scenario {
        match self {
            Self::Basic => Scenario::basic(seed),
            Self::Whole => Scenario::draw(seed),
            Self::Early => Scenario::early(seed),
            Self::Breaks => Scenario::with_breaks(seed),
        }
    }
}

impl FromStr for Draw {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|d| d.name() == text);
        found.ok_or_else(|| format!("`{text}` is no draw; use one of: basic, draw, early, with_breaks"))
    }
}

/// One run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replay {
    /// The seed.
    pub seed: u64,
    /// What it means.
    pub draw: Draw,
    /// A planted fault.
    pub mutant: Option<Mutant>,
    /// What is left out of the scenario.
    pub without: Reductions,
}

impl Replay {
    /// The scenario it runs.
    #[must_use]
    pub fn scenario(&self) -> Scenario {
        self.without.applied(&self.draw.scenario(self.seed))
    }

    /// Runs it. A planted fault has no effect in a build without the feature `mutants`.
    #[must_use]
    pub fn outcome(&self, explain: bool) -> Outcome {
        #[cfg(feature = "mutants")]
        phalanx_core::mutants::plant(self.mutant);
        let outcome = check(&self.scenario(), explain).0;
        #[cfg(feature = "mutants")]
        phalanx_core::mutants::plant(None);
        outcome
    }
}

/// The command that runs it, without what is to be shown of it.
impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phalanx sim --seed {}", self.seed)?;
        if self.draw != Draw::default() {
            write!(f, " --draw {}", self.draw.name())?;
        }
        if let Some(mutant) = self.mutant {
            write!(f, " --mutant {mutant:?}")?;
        }
        if !self.without.is_empty() {
            write!(f, " --without \"{}\"", self.without)?;
        }
        Ok(())
    }
}
