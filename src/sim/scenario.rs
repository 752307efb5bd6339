//! What one seed draws: the shape of the world, what is called, what goes wrong.

use std::collections::BTreeSet;

use phalanx_core::ids::Rank;
use phalanx_core::policy::Rules;
use phalanx_core::spec::Collective;

mod calm;
mod fault;
mod plain;
mod program;
mod swarm;
mod wide;
mod words;

pub use calm::CALM_FROM;
pub use fault::{Aim, Fault, FaultKind, Moment, SlowLinks, Trap, When};
pub use program::{PlannedOp, SECOND};

/// One rank's program differs from the others' at one all-reduce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OddCall {
    /// It calls another count.
    Other(u32),
    /// It never calls it.
    Never(u32),
}

/// Everything a run depends on.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// What everybody agrees on.
    pub rules: Rules,
    /// Ranks on one host: its failure domain.
    pub ranks_per_host: u32,
    /// Spares at the start.
    pub spares: u32,
    /// Steps (policy replace) or groups of ops.
    pub steps: u32,
    /// Words of the replicated state.
    pub state_words: usize,
    /// Longest delay of a data message.
    pub delay_us_max: u64,
    /// Ops are started before earlier ones are waited for.
    pub asynchronous: bool,
    /// Faults by virtual time in microseconds.
    pub faults: Vec<(u64, Fault)>,
    /// A second death when a recovery gets so far: the occupant of a rank.
    pub follow: Option<(Moment, u32)>,
    /// When a rank has got its so manieth result, it and the ranks after it die: (rank, results, ranks).
    pub after_release: Option<(u32, u32, u32)>,
    /// World ranks of a second communicator; empty: there is none.
    pub split: Vec<Rank>,
    /// A rank whose program is wrong.
    pub odd: Option<OddCall>,
    /// Some ops of a step are not retained: `Replace` cannot serve those.
    pub unretained: bool,
    /// Faults that wait for what a rank does.
    pub traps: Vec<Trap>,
    /// Some links are slower.
    pub slow_links: SlowLinks,
    /// Longest time that a program computes between two calls.
    pub think_us_max: u64,
    /// Ops that the first ranks call before their first step.
    pub prelude: u32,
    /// No op but a barrier has fewer elements a rank.
    pub count_min: u64,
    /// Where a tree can do an op, one does.
    pub trees: bool,
    /// Reduces are called under shrink and abort too.
    pub reduces: bool,
    /// A program that starts ops before it waits for earlier ones also waits for some while it leaves others open.
    pub waits: bool,
    /// Ops that are not called, by step and place in it; what is drawn for the others stays the same.
    pub left_out: BTreeSet<(u64, usize)>,
    /// No op has more elements a rank.
    pub count_max: u64,
    /// I4 is looked at after every so manieth event.
    pub holders_every: u64,
    /// Early messages of one sender and communicator at which it is asked to pause; `None`: as in a real run.
    pub pause_at: Option<usize>,
    /// The draw of all that is known to go wrong, with stricter rules: a coordinator that died writes nothing more, and
    /// all must have ended so long after the last trouble.
    pub is_swarm: bool,
    /// Faults meant for a phase and an op, one after the other.
    pub aims: Vec<Aim>,
    /// A kind of op that is called often.
    pub favourite: Option<Collective>,
    /// Links are memory that the sender writes: what is under way lands even after the sender's death, until it is shut
    /// out. Else they are streams: a death loses what was under way from some message on.
    pub is_one_sided: bool,
    /// Messages that a link holds.
    pub link_slots: usize,
    /// Clocks run fast or slow by up to so many millionths, and begin anywhere.
    pub drift_ppm_max: u64,
    /// Spares sit on the hosts of ranks, not on their own.
    pub shares_hosts: bool,
    /// Ops drawn so far.
    drawn: program::Drawn,
}

impl Scenario {
    /// Draws the scenario of a seed: below [`WIDE_FROM`] the swarm, from there on the draws that were before it.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        if seed < WIDE_FROM { Self::swarm(seed) } else { Self::early(seed) }
    }

    /// What a seed meant before there was the swarm.
    #[must_use]
    pub fn early(seed: u64) -> Self {
        let mut s = Self::plain(seed);
        if s.is_wide() {
            s.widen();
        }
        if seed >= CALM_FROM {
            s.disturb_calmly();
        }
        s
    }

    /// Whether the scenario is of a draw later than the plain one.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.is_swarm || self.seed >= WIDE_FROM
    }

    /// The same calls with nothing going wrong.
    #[must_use]
    pub fn undisturbed(&self) -> Self {
        Self {
            faults: Vec::new(),
            follow: None,
            after_release: None,
            traps: Vec::new(),
            aims: Vec::new(),
            ..self.clone()
        }
    }
}

/// Seeds from here on have the wide draw.
pub const WIDE_FROM: u64 = 100_000_000;
