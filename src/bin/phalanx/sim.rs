//! `phalanx sim`: seeds of the simulator, one seed explained, planted faults.

use std::ffi::OsString;
use std::ops::Range;

use phalanx::sim::Scenario;
use phalanx::sim::coverage::Coverage;
use phalanx::sim::sweep::{Sweep, check, sweep};

use crate::options::{self, Takes};

const USAGE: &str = "phalanx sim [--seeds A..B] [--threads N] [--coverage] [--json] | --seed S [--explain] [--json] | --mutants";

const OPTIONS: &[options::Option_] = &[
    ("seeds", Takes::Value, "run these seeds, the last one not included (0..10000)"),
    ("seed", Takes::Value, "run one seed"),
    ("explain", Takes::Flag, "with --seed: print the scenario and what happened"),
    ("threads", Takes::Value, "threads (2)"),
    ("coverage", Takes::Flag, "print which states the faults struck, as tables, and the cells never reached"),
    ("mutants", Takes::Flag, "plant each fault, and say which checker finds it at which of the seeds"),
    ("json", Takes::Flag, "one JSON object"),
];

/// So many violations are printed in full.
const SHOWN: usize = 20;

/// A run of so many seeds must reach every cell of the coverage table.
const LONG_RUN: u64 = 1_000_000;

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    seeds: Range<u64>,
    explain: bool,
    coverage: bool,
    mutants: bool,
    json: bool,
    threads: usize,
}

/// Runs seeds; 0: nothing was found, 1: a violation, or a planted fault that nothing found.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(asked) = parse(args)? else { return Ok(0) };
    if asked.mutants {
        return mutants(asked.seeds);
    }
    if asked.explain {
        let (outcome, _) = check(&Scenario::draw(asked.seeds.start), true);
        println!("{:?}", Scenario::draw(asked.seeds.start));
        outcome.lines.iter().for_each(|line| println!("{line}"));
        outcome.violations.iter().for_each(|text| println!("violation: {text}"));
        return Ok(i32::from(!outcome.violations.is_empty()));
    }
    let found = sweep(asked.seeds, asked.threads);
    println!("{}", if asked.json { json(&found) } else { table(&found) });
    if asked.coverage {
        println!("{}", coverage(&found.coverage));
    }
    let is_uncovered = found.seeds >= LONG_RUN && !found.coverage.unreached().is_empty();
    Ok(i32::from(!found.violations.is_empty() || is_uncovered || !found.coverage.absurd().is_empty()))
}

fn parse(args: Vec<OsString>) -> Result<Option<Asked>, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(None) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option here; usage: {USAGE}"));
    }
    let seed = options.text("seed").map(number).transpose()?;
    let seeds = options.text("seeds").map(range).transpose()?.unwrap_or(0..10_000);
    let asked = Asked {
        seeds: seed.map_or(seeds, |seed| seed..seed + 1),
        explain: options.has("explain"),
        coverage: options.has("coverage"),
        mutants: options.has("mutants"),
        json: options.has("json"),
        threads: options.get("threads", 2usize)?.clamp(1, 1024),
    };
    if asked.explain && seed.is_none() {
        return Err("--explain needs --seed".to_owned());
    }
    Ok(Some(asked))
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is not a number"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or(format!("`{text}` is not a range; write 0..1000"))?;
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok(from..to) } else { Err(format!("`{text}` is empty")) }
}

fn table(s: &Sweep) -> String {
    let mut text = format!(
        "seeds {}  ({:.0} runs/s)\nops {} completed, {} ended with a typed error\nlosses {}  recoveries {}\n\
         compared bit for bit with the run without faults {}\nmean a run: {:.1} ranks, {:.1} results, {:.1} faults\n\
         states struck {} of {}\nviolations {}",
        s.seeds,
        s.runs_per_s,
        s.completed,
        s.failed,
        s.losses,
        s.recoveries,
        s.compared,
        mean(s.ranks, s),
        mean(s.completed, s),
        mean(s.strikes, s),
        Coverage::possible() - s.coverage.unreached().len(),
        Coverage::possible(),
        s.violations.len()
    );
    for (seed, what) in s.violations.iter().take(SHOWN) {
        text += &format!("\n{what}\nreplay: phalanx sim --seed {seed} --explain");
    }
    if s.violations.len() > SHOWN {
        text += &format!("\n… and {} more seeds", s.violations.len() - SHOWN);
    }
    text
}

fn json(s: &Sweep) -> String {
    let first = s.violations.first().map_or_else(|| "null".to_owned(), |(seed, _)| seed.to_string());
    format!(
        "{{\"seeds\":{},\"violations\":{},\"first_seed\":{first},\"runs_per_s\":{:.1},\"ops\":{},\
         \"ops_failed\":{},\"losses\":{},\"recoveries\":{},\"compared\":{},\"ranks_mean\":{:.1},\
         \"faults_mean\":{:.1},\"cells\":{},\"unreached_cells\":{}}}",
        s.seeds,
        s.violations.len(),
        s.runs_per_s,
        s.completed,
        s.failed,
        s.losses,
        s.recoveries,
        s.compared,
        mean(s.ranks, s),
        mean(s.strikes, s),
        Coverage::possible(),
        s.coverage.unreached().len()
    )
}

fn mean(sum: u64, s: &Sweep) -> f64 {
    sum as f64 / s.seeds.max(1) as f64
}

/// The tables, why cells do not exist, and what was not reached.
fn coverage(c: &Coverage) -> String {
    let mut text = c.tables() + "\nnot counted, because there is no such state:\n";
    for (reason, cells) in Coverage::reasons() {
        text += &format!("- {cells} cells: {reason}\n");
    }
    let unreached = c.unreached();
    text += &format!("never reached: {}\n", unreached.len());
    unreached.iter().for_each(|name| text += &format!("- {name}\n"));
    for name in c.absurd() {
        text += &format!("reached, and said to be impossible: {name}\n");
    }
    text
}

#[cfg(not(feature = "mutants"))]
fn mutants(_: Range<u64>) -> Result<i32, String> {
    Err("planted faults are not in this binary; build it with `--features mutants`".to_owned())
}

#[cfg(feature = "mutants")]
fn mutants(seeds: Range<u64>) -> Result<i32, String> {
    let mut missed = 0;
    println!("{:<16} {:>6}  found by", "planted", "seeds");
    for &mutant in phalanx::core::mutants::Mutant::ALL {
        let hunt = phalanx::sim::sweep::hunt(mutant, seeds.clone());
        let name = format!("{mutant:?}");
        match hunt.found {
            Some((seed, text)) => {
                let text: String = text.chars().take(90).collect();
                println!("{name:<16} {:>6}  {text}", seed - seeds.start + 1);
            }
            None => {
                missed = 1;
                println!("{name:<16} {:>6}  NOT FOUND", seeds.end - seeds.start);
            }
        }
    }
    Ok(missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Option<Asked>, String> {
        parse(text.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn arguments_are_read_and_wrong_ones_named() {
        assert_eq!(words("--seeds 5..1_000 --threads 3").unwrap().unwrap().seeds, 5..1000);
        assert_eq!(words("--seed 7 --explain").unwrap().unwrap().seeds, 7..8);
        assert!(words("--help").unwrap().is_none());
        assert!(words("--seeds 9..9").unwrap_err().contains("empty"));
        assert!(words("--explain").unwrap_err().contains("--seed"));
        assert!(words("--sedes 1").unwrap_err().contains("`--sedes`"));
        assert!(words("7").unwrap_err().contains("`7`"));
    }

    #[test]
    fn a_few_seeds_run_and_the_json_names_what_was_counted() {
        let found = sweep(0..20, 2);
        assert_eq!(found.seeds, 20);
        assert!(found.violations.is_empty() && found.completed > 0, "{found:?}");
        for key in ["\"seeds\":20", "\"violations\":0", "\"runs_per_s\":", "\"ops\":", "\"losses\":"] {
            assert!(json(&found).contains(key), "{key}");
        }
        let bad = Sweep { violations: vec![(7, "I1".to_owned())], ..found };
        assert!(table(&bad).contains("phalanx sim --seed 7 --explain"));
    }
}
