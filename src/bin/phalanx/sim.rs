//! `phalanx sim`: seeds of the simulator, one seed explained, drawn or made smaller, planted faults.

use std::ffi::OsString;
use std::ops::Range;

use phalanx::core::mutants::Mutant;
use phalanx::sim::coverage::Coverage;
use phalanx::sim::diagram::svg;
use phalanx::sim::minimise::{RUNS_MAX, minimise};
use phalanx::sim::replay::Replay;
use phalanx::sim::sweep::{Sweep, sweep};

use crate::options::{self, Takes};

const USAGE: &str = "phalanx sim [--seeds A..B] [--threads N] [--coverage] [--json] | \
                     --seed S [--draw D] [--mutant M] [--without LIST] [--explain | --minimise] [--svg FILE] | \
                     --mutants [--seeds A..B] [--threads N] [--json]";

const OPTIONS: &[options::Option_] = &[
    ("seeds", Takes::Value, "run these seeds, the last one not included (0..10000)"),
    ("seed", Takes::Value, "run one seed"),
    ("draw", Takes::Value, "with --seed: what it means: basic, draw, early or with_breaks (draw)"),
    ("mutant", Takes::Value, "with --seed: plant this fault"),
    ("without", Takes::Value, "with --seed: leave this out, as in \"fault 1, op 0.2, ranks>3\""),
    ("explain", Takes::Flag, "with --seed: print the scenario and what happened"),
    ("minimise", Takes::Flag, "with --seed: make a run smaller that breaks something, and explain it"),
    ("runs", Takes::Value, "with --minimise: runs at most (2000)"),
    ("svg", Takes::Value, "with --seed: draw what happened into this file"),
    ("threads", Takes::Value, "threads (2)"),
    ("coverage", Takes::Flag, "print which states the faults struck, as tables, and the cells never reached"),
    ("mutants", Takes::Flag, "plant each fault, and say which checker catches it at which seed"),
    ("json", Takes::Flag, "one JSON object"),
];

/// So many violations are printed in full.
const SHOWN: usize = 20;

/// A run of so many seeds must reach every cell of the coverage table.
const LONG_RUN: u64 = 1_000_000;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Seeds { seeds: Range<u64>, threads: usize, coverage: bool, json: bool },
    One { replay: Replay, explain: bool, svg: Option<String> },
    Minimise { replay: Replay, runs_max: u32, svg: Option<String> },
    Mutants { seeds: Option<Range<u64>>, threads: usize, json: bool },
}

/// Runs seeds; 0: nothing was found, 1: a violation, or a planted fault that nothing found.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    match parse(args)? {
        None => Ok(0),
        Some(Asked::Seeds { seeds, threads, coverage: is_asked, json: as_json }) => {
            let found = sweep(seeds, threads);
            println!("{}", if as_json { json(&found) } else { table(&found) });
            if is_asked {
                println!("{}", coverage(&found.coverage));
            }
            let is_uncovered = found.seeds >= LONG_RUN && !found.coverage.unreached().is_empty();
            let is_bad = is_uncovered || !found.violations.is_empty() || !found.coverage.absurd().is_empty();
            Ok(i32::from(is_bad))
        }
        Some(Asked::One { replay, explain, svg }) => show(&replay, explain, svg.as_deref()),
        Some(Asked::Minimise { replay, runs_max, svg }) => smaller(&replay, runs_max, svg.as_deref()),
        Some(Asked::Mutants { seeds, threads, json }) => mutants(seeds, threads, json),
    }
}

fn parse(args: Vec<OsString>) -> Result<Option<Asked>, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(None) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option here; usage: {USAGE}"));
    }
    let seeds = options.text("seeds").map(range).transpose()?;
    let threads = options.get("threads", 2usize)?.clamp(1, 1024);
    let (json, coverage) = (options.has("json"), options.has("coverage"));
    let svg = options.text("svg").map(str::to_owned);
    if options.has("mutants") {
        return Ok(Some(Asked::Mutants { seeds, threads, json }));
    }
    let Some(seed) = options.text("seed").map(number).transpose()? else {
        let lonely = ["explain", "minimise", "svg", "draw", "mutant", "without"];
        return match lonely.into_iter().find(|name| options.has(name)) {
            Some(name) => Err(format!("--{name} needs --seed")),
            None => {
                let seeds = seeds.unwrap_or(0..10_000);
                Ok(Some(Asked::Seeds { seeds, threads, coverage, json }))
            }
        };
    };
    let replay = Replay {
        seed,
        draw: options.get("draw", phalanx::sim::replay::Draw::default())?,
        mutant: options.text("mutant").map(mutant).transpose()?,
        without: options.get("without", phalanx::sim::reduction::Reductions::default())?,
    };
    let runs_max = options.get("runs", RUNS_MAX)?;
    let (explain, is_plain) = (options.has("explain"), replay == Replay { seed, ..Replay::default() });
    Ok(Some(if options.has("minimise") {
        Asked::Minimise { replay, runs_max, svg }
    } else if explain || svg.is_some() || !is_plain {
        Asked::One { replay, explain, svg }
    } else {
        Asked::Seeds { seeds: seed..seed + 1, threads, coverage, json }
    }))
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is not a number"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or(format!("`{text}` is not a range; write 0..1000"))?;
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok(from..to) } else { Err(format!("`{text}` is empty")) }
}

fn mutant(text: &str) -> Result<Mutant, String> {
    if !cfg!(feature = "mutants") {
        return Err(NOT_BUILT_IN.to_owned());
    }
    let found = Mutant::ALL.iter().find(|m| format!("{m:?}") == text).copied();
    found.ok_or_else(|| format!("`{text}` is no planted fault; use one of: {:?}", Mutant::ALL))
}

const NOT_BUILT_IN: &str = "planted faults are not in this binary; build it with `--features mutants`";

/// A panic of a run is told with its violation, not once more on the way.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    std::panic::set_hook(Box::new(|_| {}));
    let done = work();
    let _ = std::panic::take_hook();
    done
}

/// Runs one scenario and shows what was asked for.
fn show(replay: &Replay, explain: bool, file: Option<&str>) -> Result<i32, String> {
    let outcome = quietly(|| replay.outcome(true));
    if explain {
        print!("{}", outcome.timeline.text());
    } else {
        println!("{}", outcome.timeline.title);
    }
    if let Some(file) = file {
        std::fs::write(file, svg(&outcome.timeline)).map_err(|cause| format!("{file}: {cause}"))?;
    }
    match outcome.violations.first() {
        None => println!("no violation"),
        Some(first) => println!("violation: {first}\nsmaller: {replay} --minimise"),
    }
    Ok(i32::from(!outcome.violations.is_empty()))
}

/// Makes a run smaller that breaks something.
fn smaller(replay: &Replay, runs_max: u32, file: Option<&str>) -> Result<i32, String> {
    let Some(found) = quietly(|| minimise(replay, runs_max)) else {
        let why =
            if replay.mutant.is_some() { ", or breaks something without the planted fault too" } else { "" };
        return Err(format!("`{replay}` breaks nothing{why}; there is nothing to make smaller"));
    };
    println!("before: {}\nafter:  {}\nruns:   {}", found.sizes.0, found.sizes.1, found.runs);
    println!("replay: {} --explain\n", found.replay);
    show(&found.replay, true, file)
}

fn table(s: &Sweep) -> String {
    let mut text = format!(
        "seeds {}  ({:.0} runs/s)\nops {} completed, {} ended with a typed error\nlosses {}  recoveries {}\n\
         compared bit for bit with the run without faults {}\nmean a run: {:.1} ranks, {:.1} ops, {:.1} faults\n\
         states struck {} of {}\nviolations {}",
        s.seeds,
        s.runs_per_s,
        s.completed,
        s.failed,
        s.losses,
        s.recoveries,
        s.compared,
        mean(s.ranks, s),
        mean(s.called, s),
        mean(s.strikes, s),
        Coverage::possible() - s.coverage.unreached().len(),
        Coverage::possible(),
        s.violations.len()
    );
    for (seed, what) in s.violations.iter().take(SHOWN) {
        text += &format!("\n{what}\nreplay: phalanx sim --seed {seed} --explain");
        text += &format!("\nsmaller: phalanx sim --seed {seed} --minimise");
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
         \"ops_mean\":{:.1},\"faults_mean\":{:.1},\"cells\":{},\"unreached_cells\":{}}}",
        s.seeds,
        s.violations.len(),
        s.runs_per_s,
        s.completed,
        s.failed,
        s.losses,
        s.recoveries,
        s.compared,
        mean(s.ranks, s),
        mean(s.called, s),
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
fn mutants(_: Option<Range<u64>>, _: usize, _: bool) -> Result<i32, String> {
    Err(NOT_BUILT_IN.to_owned())
}

#[cfg(feature = "mutants")]
fn mutants(seeds: Option<Range<u64>>, threads: usize, as_json: bool) -> Result<i32, String> {
    use phalanx::sim::hunt::{Hunt, SEEDS, hunt_all, json, row};
    let seeds = seeds.unwrap_or(SEEDS);
    if !as_json {
        println!("{:<18} {:<22} {:>6}  replay", "planted", "checker", "seeds");
    }
    let tell = |hunt: &Hunt| {
        if !as_json {
            println!("{}", row(hunt, &seeds));
        }
    };
    let hunts = quietly(|| hunt_all(Mutant::ALL, &seeds, threads, tell));
    let caught = hunts.iter().filter(|h| h.found.is_some()).count();
    if as_json {
        println!("{}", json(&hunts));
    } else {
        println!("planted {}, caught {caught}", hunts.len());
    }
    Ok(i32::from(caught < hunts.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Option<Asked>, String> {
        parse(text.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn arguments_are_read_and_wrong_ones_named() {
        let Some(Asked::Seeds { seeds, threads: 3, coverage: false, json: false }) =
            words("--seeds 5..1_000 --threads 3").unwrap()
        else {
            panic!("seeds")
        };
        assert_eq!(seeds, 5..1000);
        assert!(matches!(words("--seed 7").unwrap(), Some(Asked::Seeds { seeds, .. }) if seeds == (7..8)));
        assert!(matches!(words("--seed 7 --explain").unwrap(), Some(Asked::One { explain: true, .. })));
        assert!(words("--help").unwrap().is_none());
        assert!(words("--seeds 9..9").unwrap_err().contains("empty"));
        for lonely in ["--explain", "--minimise", "--without fault", "--svg x"] {
            assert!(words(lonely).unwrap_err().contains("needs --seed"), "{lonely}");
        }
        assert!(words("--sedes 1").unwrap_err().contains("`--sedes`"));
        assert!(words("7").unwrap_err().contains("`7`"));
        assert!(words("--seed 7 --draw x").unwrap_err().contains("with_breaks"));
        assert!(words("--seed 7 --without fault").unwrap_err().contains("`fault`"));
    }

    #[test]
    fn the_command_that_a_run_prints_is_the_run() {
        let without = "fault 1, op 0.2, ranks>3".parse().unwrap();
        let replay = Replay { seed: 7, draw: "with_breaks".parse().unwrap(), mutant: None, without };
        let command = replay.to_string();
        let (flags, list) = command.strip_prefix("phalanx sim ").unwrap().split_once(" --without ").unwrap();
        let list = list.trim_matches('"');
        let args = flags.split(' ').chain(["--without", list]).map(OsString::from).collect();
        let Some(Asked::One { replay: read, .. }) = parse(args).unwrap() else { panic!("{command}") };
        assert_eq!(read, replay);
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
        assert!(table(&bad).contains("phalanx sim --seed 7 --minimise"));
    }
}
