//! `phalanx chaos`: loops all-reduces, kills random ranks at random moments, and checks every element of every result
//! on every rank.

use std::ffi::OsString;

use phalanx::core::policy::Policy;
use phalanx::demo::random::Random;
use phalanx::launch::WorldSpec;

use crate::chaos_world::{self, End};
use crate::options::{self, Options, Takes};
use crate::{faults, world};

const USAGE: &str = "\
phalanx chaos [--kills K] [--seed N] [--bytes B] [--json] [WORLD OPTIONS]
       phalanx chaos --fault KIND[,KIND...]|all [--runs N] ...; `phalanx chaos --fault all --help` tells its options";

const OPTIONS: &[options::Option_] = &[
    ("kills", Takes::Value, "kills that hit an op in flight (10)"),
    ("seed", Takes::Value, "seed of the data, the victims and the moments (1)"),
    ("bytes", Takes::Value, "bytes of an all-reduce, as in 1K or 16M (1K)"),
    ("json", Takes::Flag, "print one JSON object and nothing else"),
];
/// Kills that may miss for each one wanted: a tiny op is seldom in flight.
const MISSES_PER_KILL: u64 = 20;
/// So many hung worlds say enough.
const HUNG_MAX: u64 = 3;

/// What is asked for.
pub struct Task {
    /// How to start a world.
    pub spec: WorldSpec,
    pub kills: u64,
    pub bytes: u64,
    pub seed: u64,
    /// Name of the transport between the ranks.
    pub transport: &'static str,
    /// Nothing but the result is printed.
    pub is_quiet: bool,
}

impl Task {
    fn from_options(options: &Options) -> Result<Self, String> {
        let seed: u64 = options.get("seed", 1)?;
        let bytes = options.bytes("bytes", 1024)?;
        if bytes == 0 || bytes % 8 != 0 {
            return Err(format!("--bytes {bytes}: the elements are 64-bit integers, use a multiple of 8"));
        }
        let mut spec = world::spec(options, world::own_command(&["chaos-rank"])?)?;
        let transport = world::transport_here(options)?.name();
        let mut arg = |name: &str, value: u64| spec.command.extend([name.into(), value.to_string().into()]);
        arg("--bytes", bytes);
        arg("--seed", seed);
        if spec.rules.policy == Policy::Replace {
            spec.command.push("--steps".into());
            if spec.spares == 0 {
                return Err("--policy replace needs a spare: use --spares 1 or more".to_owned());
            }
        }
        if spec.ranks < 2 {
            return Err("--ranks 1: a kill needs a second rank that goes on".to_owned());
        }
        let (kills, is_quiet) = (options.get("kills", 10)?, options.has("json"));
        let spares = spec.spares;
        if spec.rules.policy == Policy::Replace && !spec.respawn && kills > u64::from(spares) {
            return Err(format!(
                "--no-respawn: each kill takes a spare, and {kills} kills want more than {spares}; raise --spares, or \
                 leave --no-respawn out"
            ));
        }
        Ok(Self { spec, kills, bytes, seed, transport, is_quiet })
    }

    /// The world's policy.
    pub fn policy(&self) -> Policy {
        self.spec.rules.policy
    }
}

/// What was counted and measured, over all worlds.
#[derive(Default)]
pub struct Tally {
    pub kills_in_flight: u64,
    pub kills_missed: u64,
    /// Ops that were checked.
    pub ops: u64,
    /// Reports of wrong elements, or of contributors that differ.
    pub wrong: u64,
    pub hung: u64,
    /// Errors that survivors saw and should not have, and members that were lost without being killed.
    pub survivor_errors: u64,
    /// Survivors that got the typed error of policy abort.
    pub aborted: u64,
    /// Undisturbed ops: medians of fifths of a second.
    pub op_ms: Vec<f64>,
    /// From each kill to the end of the op in flight at the last rank; nothing taken off.
    pub whole_ms: Vec<f64>,
    /// What the newcomer's own code needed of each.
    pub replay_ms: Vec<f64>,
}

impl Tally {
    /// Whether so many kills hit and did no harm.
    fn has_passed(&self, kills: u64) -> bool {
        self.kills_in_flight >= kills && self.wrong == 0 && self.hung == 0 && self.survivor_errors == 0
    }

    /// The time each kill cost: less an undisturbed op, less the caller's own replay.
    fn stalls_ms(&self) -> Vec<f64> {
        let op_ms = quantile(&self.op_ms, 0.5);
        let stalls = self.whole_ms.iter().zip(&self.replay_ms);
        stalls.map(|(whole, replay)| (whole - op_ms - replay).max(0.0)).collect()
    }

    fn to_json(&self, task: &Task) -> String {
        let stalls = self.stalls_ms();
        format!(
            "{{\"policy\":\"{}\",\"ranks\":{},\"bytes\":{},\"transport\":\"{}\",\"domain\":\"{}\",\"seed\":{},\
             \"kills_in_flight\":{},\"kills_missed\":{},\"ops\":{},\"wrong\":{},\"hung\":{},\
             \"survivor_errors\":{},\"aborted\":{},\"op_ms_p50\":{:.3},\"replay_ms_p50\":{:.3},\
             \"stall_ms_p50\":{:.3},\"stall_ms_p99\":{:.3},\"stall_ms_max\":{:.3}}}",
            task.policy(),
            task.spec.ranks,
            task.bytes,
            task.transport,
            task.spec.domain.name(),
            task.seed,
            self.kills_in_flight,
            self.kills_missed,
            self.ops,
            self.wrong,
            self.hung,
            self.survivor_errors,
            self.aborted,
            quantile(&self.op_ms, 0.5),
            quantile(&self.replay_ms, 0.5),
            quantile(&stalls, 0.5),
            quantile(&stalls, 0.99),
            quantile(&stalls, 1.0),
        )
    }

    fn print(&self) {
        let stalls = self.stalls_ms();
        println!("{} kills in flight, {} missed", self.kills_in_flight, self.kills_missed);
        println!("{} ops checked, {} wrong, {} hung", self.ops, self.wrong, self.hung);
        println!("{} errors at survivors, {} aborted", self.survivor_errors, self.aborted);
        println!(
            "op {:.2} ms, replay {:.2} ms (median)",
            quantile(&self.op_ms, 0.5),
            quantile(&self.replay_ms, 0.5)
        );
        println!(
            "stall {:.2} ms (median), {:.2} ms (p99), {:.2} ms (most)",
            quantile(&stalls, 0.5),
            quantile(&stalls, 0.99),
            quantile(&stalls, 1.0)
        );
    }
}

/// The value below which `part` of `values` lie; 0 without values.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len().saturating_sub(1) as f64 * part).ceil() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

/// Kills until enough kills have hit. 0: they did, every result was right, nothing hung, no survivor saw an error it
/// should not.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    if args.iter().any(|arg| {
        options::split(&arg.to_string_lossy()).is_some_and(|(name, _)| matches!(name, "fault" | "soak"))
    }) {
        return faults::run(args);
    }
    let Some(options) = options::parse(USAGE, &world::with(OPTIONS), args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let task = Task::from_options(&options)?;
    let (mut tally, mut random) = (Tally::default(), Random::new(task.seed, u64::MAX));
    let mut interrupted = None;
    while interrupted.is_none()
        && tally.kills_in_flight < task.kills
        && tally.kills_missed < MISSES_PER_KILL * task.kills
        && tally.hung < HUNG_MAX
    {
        match chaos_world::play(&task, &mut tally, &mut random)? {
            End::Enough | End::Hung => {}
            End::Ended(code) => interrupted = Some(code),
        }
    }
    if task.is_quiet {
        println!("{}", tally.to_json(&task));
    } else {
        tally.print();
    }
    if tally.kills_in_flight < task.kills && tally.hung < HUNG_MAX && interrupted.is_none() {
        eprintln!(
            "phalanx: only {} of {} kills hit an op in flight, {} missed; larger ops are hit more often, see --bytes",
            tally.kills_in_flight, task.kills, tally.kills_missed
        );
    }
    Ok(match interrupted {
        Some(code) if code != 0 => code,
        Some(_) | None => i32::from(!tally.has_passed(task.kills)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_what_is_left_of_the_time_and_never_below_nothing() {
        let tally = Tally {
            op_ms: vec![2.0, 1.0, 3.0],
            whole_ms: vec![10.0, 2.5],
            replay_ms: vec![3.0, 1.0],
            ..Tally::default()
        };
        assert_eq!(tally.stalls_ms(), [5.0, 0.0]);
        assert_eq!(
            (quantile(&[], 0.5), quantile(&[4.0, 1.0], 1.0), quantile(&[4.0, 1.0, 2.0], 0.5)),
            (0.0, 4.0, 2.0)
        );
    }

    #[test]
    fn any_wrong_result_and_any_kill_that_is_missing_fails_the_run() {
        let good = || Tally { aborted: 3, kills_in_flight: 2, kills_missed: 9, ..Tally::default() };
        assert!(good().has_passed(2));
        for tally in [
            Tally { wrong: 1, ..good() },
            Tally { hung: 1, ..good() },
            Tally { survivor_errors: 1, ..good() },
            Tally { kills_in_flight: 1, ..good() },
        ] {
            assert!(!tally.has_passed(2));
        }
    }
}
