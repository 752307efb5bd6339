//! One chunk after another through a tree: sums upwards, Finals downwards, both at once.
//!
//! Source: the pipelined tree of Sanders, Speck and Träff, Parallel Computing 35 (2009).
//! Cost:   2 depth rounds for one chunk; each rank sends one message a chunk up and one a child a chunk down.
//!
//! A rank works on the sums of chunks some places (the `lag`) ahead of the Finals it hands down, so that both
//! directions of every link stay busy. Whatever the lag, two slots a link are enough: a rank's sum of a chunk waits
//! for deeper ranks only, and by the time a Final comes down its receiver is past the sum it hung on.

use crate::ids::{ChunkId, Rank};
use crate::plan::{Order, Place, Step, Target};

/// A rank's place in the tree by which sums climb.
pub(super) struct Climb {
    /// Where the sum goes; `None` at the top.
    pub(super) parent: Option<Rank>,
    /// Whose sums come, in the order in which they are added.
    pub(super) children: Vec<(Rank, Order)>,
}

/// A rank's place in the tree by which Finals come down.
pub(super) struct Descent {
    /// Whence the Final comes; `None` at the top.
    pub(super) parent: Option<Rank>,
    /// Who gets it next.
    pub(super) children: Vec<Rank>,
}

impl Climb {
    /// Adds the steps of one chunk.
    fn steps(&self, chunk: ChunkId, steps: &mut Vec<Step>) {
        let out = self.parent.map_or(Target::Output, Target::Link);
        if let (true, Some(to)) = (self.children.is_empty(), self.parent) {
            steps.push(Step::Send { chunk, from: Place::Input, to });
        }
        for (i, &(from, order)) in self.children.iter().enumerate() {
            let with = if i == 0 { Place::Input } else { Place::Scratch };
            let into = if i + 1 == self.children.len() { out } else { Target::Scratch };
            steps.push(Step::Fold { chunk, from, with, order, into });
        }
    }
}

impl Descent {
    /// Adds the steps of one chunk.
    fn steps(&self, chunk: ChunkId, steps: &mut Vec<Step>) {
        steps.extend(self.parent.map(|from| Step::Take { chunk, from, into: Place::Output }));
        steps.extend(self.children.iter().map(|&to| Step::Send { chunk, from: Place::Output, to }));
    }
}

/// Sums up, Finals down, `lag` chunks apart.
pub(super) fn up_and_down(climb: &Climb, descent: &Descent, chunks: u32, lag: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for turn in 0..chunks.saturating_add(lag) {
        if turn < chunks {
            climb.steps(ChunkId(turn), &mut steps);
        }
        if turn >= lag {
            descent.steps(ChunkId(turn - lag), &mut steps);
        }
    }
    steps
}

/// Sums up only: reduce.
pub(super) fn up(climb: &Climb, chunks: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    (0..chunks).for_each(|chunk| climb.steps(ChunkId(chunk), &mut steps));
    steps
}

/// Finals down only, from the top's input: broadcast.
pub(super) fn down(descent: &Descent, chunks: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for chunk in (0..chunks).map(ChunkId) {
        if descent.parent.is_none() {
            steps.push(Step::Settle { chunk, from: Place::Input });
        }
        descent.steps(chunk, &mut steps);
    }
    steps
}
