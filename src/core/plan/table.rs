//! Plans as text, for `phalanx plan` and for test failures.

use std::fmt::{self, Write as _};

use crate::plan::{Order, Place, Plan, Step, Target};

/// Chunks, ranks and steps a rank that a table shows before it says how many more there are.
const CHUNKS_SHOWN: usize = 32;
const RANKS_SHOWN: usize = 16;
const STEPS_SHOWN: usize = 64;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Scratch => "scratch",
            Self::Output => "output",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(to) => write!(f, "{to}"),
            Self::Scratch => f.write_str("scratch"),
            Self::Output => f.write_str("output"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Send { chunk, from, to } => write!(f, "send    {chunk} {from} -> {to}"),
            Self::Fold { chunk, from, with, order: Order::ArrivalFirst, into } => {
                write!(f, "fold    {chunk} {from} + {with} -> {into}")
            }
            Self::Fold { chunk, from, with, order: Order::OwnFirst, into } => {
                write!(f, "fold    {chunk} {with} + {from} -> {into}")
            }
            Self::Take { chunk, from, into } => write!(f, "take    {chunk} {from} -> {into}"),
            Self::FoldAll { chunk } => write!(f, "foldall {chunk} all in canonical order -> output"),
            Self::Settle { chunk, from } => write!(f, "settle  {chunk} {from} -> output"),
        }
    }
}

/// A readable table of the plans of all ranks: the chunks, then each rank's steps in order. Long lists are cut, with a
/// line that says how much is left out.
#[must_use]
pub fn table(plans: &[Plan]) -> String {
    let mut out = String::new();
    if write_table(&mut out, plans).is_err() {
        out.push_str("(a value could not be printed)\n");
    }
    out
}

fn write_table(out: &mut String, plans: &[Plan]) -> fmt::Result {
    let Some(first) = plans.first() else {
        return writeln!(out, "no plan");
    };
    let bytes = first.spec.elements(first.world_size) * first.spec.dtype.size() as u64;
    writeln!(out, "{} over {} ranks, {bytes} bytes", first.spec, first.world_size)?;
    writeln!(out, "{} chunks, Final spreads by {}", first.chunks.len(), first.spread)?;
    for (i, chunk) in first.chunks.iter().take(CHUNKS_SHOWN).enumerate() {
        let end = chunk.start + chunk.len;
        writeln!(out, "  k{i}: elements {}..{end}, owner {}", chunk.start, chunk.owner)?;
    }
    more(out, first.chunks.len(), CHUNKS_SHOWN, "chunks")?;
    for plan in plans.iter().take(RANKS_SHOWN) {
        writeln!(out, "{}: {} steps", plan.rank, plan.steps.len())?;
        for (i, step) in plan.steps.iter().take(STEPS_SHOWN).enumerate() {
            writeln!(out, "  {i:>4}  {step}")?;
        }
        more(out, plan.steps.len(), STEPS_SHOWN, "steps")?;
    }
    more(out, plans.len(), RANKS_SHOWN, "ranks")
}

fn more(out: &mut String, all: usize, shown: usize, what: &str) -> fmt::Result {
    if all > shown {
        writeln!(out, "  ... and {} more {what}", all - shown)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Rank;
    use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

    fn plans(count: u64, n: u32) -> Vec<Plan> {
        let spec = Spec {
            collective: Collective::AllReduce,
            dtype: Dtype::F32,
            reduction: ReduceOp::Sum,
            count,
            root: Rank(0),
            algorithm: Algorithm::Ring,
        };
        (0..n).map(|r| crate::plan::build(&spec, n, Rank(r), 64).unwrap()).collect()
    }

    #[test]
    fn a_small_plan_is_shown_whole() {
        let wanted = "\
all_reduce(32 x f32, sum, ring) over 2 ranks, 128 bytes
2 chunks, Final spreads by chain
  k0: elements 0..16, owner r0
  k1: elements 16..32, owner r1
r0: 4 steps
     0  send    k1 input -> r1
     1  fold    k0 input + r1 -> output
     2  send    k0 output -> r1
     3  take    k1 r1 -> output
r1: 4 steps
     0  send    k0 input -> r0
     1  fold    k1 r0 + input -> output
     2  send    k1 output -> r0
     3  take    k0 r0 -> output
";
        assert_eq!(table(&plans(32, 2)), wanted);
    }

    #[test]
    fn a_long_plan_says_what_it_leaves_out() {
        let text = table(&plans(20 * 16 * 3, 20));
        for line in ["... and 28 more chunks", "... and 110 more steps", "... and 4 more ranks"] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        assert_eq!(table(&[]), "no plan\n");
    }
}
