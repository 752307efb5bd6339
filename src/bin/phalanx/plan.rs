//! `phalanx plan`: prints what every rank does in a collective, and proves it over all ranks.

use std::ffi::OsString;

use phalanx::core::algorithms::able;
use phalanx::core::algorithms::select::{Reproducibility, choose_for};
use phalanx::core::ids::Rank;
use phalanx::core::plan::verify::{Initial, Proof, verify};
use phalanx::core::plan::{self, Plan};
use phalanx::core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use phalanx::core::units::{LINK_SLOTS, SLOT_BYTES};

use crate::options::{self, Options, Takes};

const USAGE: &str =
    "phalanx plan COLLECTIVE [--ranks N] [--bytes B] [--algo A] [--dtype T] [--op O] [--root R]";

const OPTIONS: &[options::Option_] = &[
    ("ranks", Takes::Value, "ranks (4)"),
    ("bytes", Takes::Value, "bytes of a rank's input, as in 64K or 16M (1M)"),
    ("algo", Takes::Value, "algorithm (the one that would be chosen)"),
    ("dtype", Takes::Value, "element type (f32)"),
    ("op", Takes::Value, "reduction (sum)"),
    ("root", Takes::Value, "root of a broadcast or reduce (0)"),
];
/// A proof looks at every step of every rank.
const RANKS_MAX: u32 = 1024;

/// Prints table and proof. 0: proven.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(0) };
    print!("{}", explain(&options)?);
    Ok(0)
}

fn explain(options: &Options) -> Result<String, String> {
    let [collective] = options.words.as_slice() else {
        return Err(format!("name one collective; usage: {USAGE}"));
    };
    let collective = named(collective)?;
    let ranks: u32 = options.get("ranks", 4)?;
    if ranks == 0 || ranks > RANKS_MAX {
        return Err(format!("--ranks {ranks}: use 1 to {RANKS_MAX}"));
    }
    let spec = spec(options, collective, ranks)?;
    let plans = (0..ranks).map(|rank| plan::build(&spec, ranks, Rank(rank), SLOT_BYTES));
    let plans: Vec<Plan> = plans.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let chunks = plans.first().map_or(0, |p| p.chunks.len()) as u32;
    let proof = verify(&plans, LINK_SLOTS, &Initial::fresh(ranks, chunks));
    let proof = proof.map_err(|fault| format!("the plan is WRONG: {fault}"))?;
    Ok(plan::table(&plans) + &describe(&proof))
}

/// A collective that has a plan.
fn named(word: &str) -> Result<Collective, String> {
    let planned = || Collective::ALL.iter().filter(|collective| !able(**collective).is_empty());
    planned().copied().find(|collective| collective.name() == word).ok_or_else(|| {
        let names: Vec<_> = planned().map(|collective| collective.name()).collect();
        format!("there is no plan of `{word}`; use one of: {}", names.join(", "))
    })
}

fn spec(options: &Options, collective: Collective, ranks: u32) -> Result<Spec, String> {
    let dtype = options.get("dtype", Dtype::F32)?;
    let reduction = options.get("op", ReduceOp::Sum)?;
    let bytes = options.bytes("bytes", 1 << 20)?;
    let elements = bytes / dtype.size() as u64;
    let count = match collective {
        Collective::ReduceScatter => elements / u64::from(ranks),
        Collective::Barrier | Collective::Commit => 0,
        Collective::AllReduce
        | Collective::AllGather
        | Collective::Broadcast
        | Collective::Reduce
        | Collective::State => elements,
    };
    let mut spec = Spec {
        collective,
        dtype,
        reduction,
        count,
        root: Rank(options.get("root", 0)?),
        algorithm: Algorithm::Direct,
    };
    spec.algorithm = options.get("algo", choose_for(&spec, ranks, Reproducibility::Canonical))?;
    Ok(spec)
}

fn describe(proof: &Proof) -> String {
    let most = |values: &[u64]| values.iter().copied().max().unwrap_or(0);
    format!(
        "proven: no deadlock, every chunk Final exactly once at every rank due, each contribution exactly once\n\
         rounds {}, at most {} messages and {} bytes sent by a rank, {} chunks in scratch\n\
         association: {}\n",
        proof.rounds_max(),
        most(&proof.messages),
        most(&proof.bytes),
        proof.scratch_chunks.iter().max().unwrap_or(&0),
        if proof.canonical { "canonical (the same bits by any algorithm)" } else { "the algorithm's own" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(words: &[&str]) -> Result<String, String> {
        let args = words.iter().map(OsString::from).collect();
        explain(&options::parse(USAGE, OPTIONS, args)?.unwrap())
    }

    #[test]
    fn every_collective_with_a_plan_is_shown_and_proven() {
        for (collective, algorithm) in [
            ("all_reduce", "ring"),
            ("all_reduce", "direct"),
            ("all_gather", "ring"),
            ("reduce_scatter", "direct"),
            ("broadcast", "binomial"),
        ] {
            let text =
                explained(&[collective, "--ranks", "5", "--algo", algorithm, "--bytes", "80"]).unwrap();
            assert!(text.contains("over 5 ranks") && text.contains("proven: no deadlock"), "{text}");
            assert!(text.contains(algorithm), "{text}");
        }
        assert!(explained(&["all_reduce"]).unwrap().contains("canonical (the same bits"));
    }

    #[test]
    fn the_words_that_are_offered_are_those_that_are_taken() {
        for word in ["state", "nothing"] {
            let said = explained(&[word]).unwrap_err();
            let (_, offered) = said.split_once("use one of: ").unwrap();
            let offered: Vec<&str> = offered.split(", ").collect();
            for collective in Collective::ALL.iter().map(|c| c.name()) {
                assert_eq!(offered.contains(&collective), explained(&[collective]).is_ok(), "{collective}");
            }
        }
    }

    #[test]
    fn what_cannot_be_planned_is_said() {
        for words in [
            &["all_reduce", "--ranks", "0"][..],
            &["nothing"],
            &[],
            &["all_reduce", "--algo", "sideways"],
            &["broadcast", "--root", "9"],
            &["state"],
        ] {
            assert!(explained(words).is_err(), "{words:?}");
        }
    }
}
