//! `phalanx demo`: trains a network on several ranks, kills one inside an all-reduce, and compares the parameters bit
//! for bit with a run of the same processes that nobody was killed in.

use std::ffi::OsString;
use std::str::FromStr;

use phalanx::core::ids::{Rank, StepId};
use phalanx::demo::display::Screen;
use phalanx::demo::network::ParamsHash;
use phalanx::demo::random::Random;
use phalanx::demo::summary::Summary;

use crate::demo_run::{self, Kill, Outcome, Show, Training};
use crate::options::{self, Options, Takes};
use crate::world;

const USAGE: &str =
    "phalanx demo [--ranks N] [--spares M] [--kill WHOM] [--transport T] [--steps K] [--seed N] [--json]";

const OPTIONS: &[options::Option_] = &[
    ("ranks", Takes::Value, "ranks of the world (4)"),
    ("n", Takes::Value, "the same as --ranks"),
    ("spares", Takes::Value, "spares that stand by (1)"),
    ("kill", Takes::Value, "none, random or rank=R,step=S (random: the seed chooses)"),
    ("transport", Takes::Value, "shm or tcp (what PHALANX_TRANSPORT says, else shm)"),
    ("steps", Takes::Value, "steps of the training (300)"),
    ("seed", Takes::Value, "seed of the training and of the random kill (1)"),
    ("json", Takes::Flag, "print one JSON object and nothing else"),
];

const STEPS: u64 = 300;
/// Fewer have no middle to kill in.
const STEPS_MIN: u64 = 3;
/// The network uses the last stream of a seed, the sampling those from 0 up.
const KILL_STREAM: u64 = u64::MAX - 1;

/// Who is to be killed, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Nobody,
    Random,
    This(Kill),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = || {
            let (rank, step) = text.strip_prefix("rank=")?.split_once(",step=")?;
            Some(Kill { rank: Rank(rank.parse().ok()?), step: StepId(step.parse().ok()?) })
        };
        match text {
            "none" => Ok(Self::Nobody),
            "random" => Ok(Self::Random),
            _ => named().map(Self::This).ok_or_else(|| "use none, random or rank=R,step=S".to_owned()),
        }
    }
}

/// Runs the training without and with the kill. 0: the same bits, no survivor saw an error, and the kill, where one
/// was asked for, hit an all-reduce in flight.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(0) };
    if let Some(word) =
        options.words.first().cloned().or(options.rest.first().map(|w| w.display().to_string()))
    {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let training = training(&options)?;
    let kill = kill(&options, &training)?;
    let json = options.has("json");
    if !json {
        println!("{} steps on {} ranks without a failure, to compare with", training.steps, training.ranks);
    }
    let baseline = match demo_run::play(&training, None, &mut Show::nothing())? {
        outcome if outcome.code == 0 && outcome.has_result() => outcome,
        outcome => return failed(&outcome, "the run without a failure"),
    };
    let Some(baseline_hash) = baseline.common_hash() else {
        return Err(format!("the run without a failure ended with several results: {:?}", baseline.hashes));
    };
    let mut show = if json { Show::nothing() } else { Show::on(training.ranks, Screen::of_stdout()) };
    if let Some(kill) = kill.filter(|_| !json) {
        println!("the same again; {} is killed inside the all-reduce of step {}\n", kill.rank, kill.step.0);
    }
    let outcome = demo_run::play(&training, kill, &mut show)?;
    if outcome.code != 0 || !outcome.has_result() {
        return failed(&outcome, "the run");
    }
    let summary = summary(&outcome, baseline_hash, training.steps);
    if json {
        println!("{}", summary.to_json());
    } else {
        show.finish(&summary);
        if kill.is_some() {
            let hit =
                if summary.kill_in_flight { "in flight at the fence" } else { "NOT in flight at the fence" };
            println!("{:<22}{hit}", "the all-reduce was");
        }
    }
    let hit = kill.is_none() || summary.kill_in_flight;
    Ok(i32::from(!(summary.bitwise_equal() && summary.survivor_errors == 0 && hit)))
}

fn training(options: &Options) -> Result<Training, String> {
    let ranks: u32 = options.get(if options.text("n").is_some() { "n" } else { "ranks" }, 4)?;
    if let Some(other) = options.text("transport").filter(|name| !matches!(*name, "shm" | "tcp")) {
        return Err(format!("--transport {other}: use shm or tcp"));
    }
    let training = Training {
        ranks,
        spares: options.get("spares", 1)?,
        steps: options.get("steps", STEPS)?,
        seed: options.get("seed", 1)?,
        transport: world::transport_here(options)?.name().to_owned(),
        program: world::own_command(&["demo-rank"])?,
    };
    if training.ranks == 0 {
        return Err("--ranks 0: a world needs at least one rank".to_owned());
    }
    if training.steps < STEPS_MIN {
        return Err(format!("--steps {}: use at least {STEPS_MIN}", training.steps));
    }
    Ok(training)
}

fn kill(options: &Options, training: &Training) -> Result<Option<Kill>, String> {
    let kill = match options.get("kill", Wanted::Random)? {
        Wanted::Nobody => return Ok(None),
        Wanted::This(kill) => kill,
        Wanted::Random => {
            let mut random = Random::new(training.seed, KILL_STREAM);
            let margin = training.steps.div_ceil(10);
            Kill {
                rank: Rank(random.below(training.ranks as usize) as u32),
                step: StepId(margin + random.below((training.steps - 2 * margin) as usize) as u64),
            }
        }
    };
    if training.ranks < 2 || training.spares == 0 {
        return Err(
            "a kill needs a second rank that holds the state and a spare: use --ranks 2 and --spares 1, \
                    or more; or --kill none"
                .to_owned(),
        );
    }
    if kill.rank.0 >= training.ranks || kill.step.0 >= training.steps {
        return Err(format!(
            "--kill rank={},step={}: ranks go up to {}, steps up to {}",
            kill.rank.0,
            kill.step.0,
            training.ranks - 1,
            training.steps - 1
        ));
    }
    Ok(Some(kill))
}

/// Says on standard error what became of a run without a result; its exit code.
fn failed(outcome: &Outcome, which: &str) -> Result<i32, String> {
    eprintln!(
        "phalanx: {which} ended with code {}, {} errors at survivors, results of {} ranks",
        outcome.code,
        outcome.survivor_errors,
        outcome.hashes.len()
    );
    Ok(if outcome.code == 0 { 1 } else { outcome.code })
}

fn summary(outcome: &Outcome, baseline_hash: ParamsHash, steps: u64) -> Summary {
    // One rank that differs is enough to differ.
    let other = outcome.hashes.values().copied().find(|hash| *hash != baseline_hash);
    let times = outcome.times.clone().unwrap_or_default();
    Summary {
        accuracy: outcome.accuracy,
        params_hash: other.unwrap_or(baseline_hash),
        baseline_hash,
        survivor_errors: outcome.survivor_errors,
        kill_in_flight: outcome.kill_in_flight,
        stall_ms: times.stall_ms,
        detect_ms: times.detect_ms,
        reseat_ms: times.reseat_ms,
        state_ms: times.state_ms,
        replay_ms: times.replay_ms,
        steps,
    }
}
