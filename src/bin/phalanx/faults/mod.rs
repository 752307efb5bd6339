//! `phalanx chaos --fault`: faults done to real processes, many runs of each; every run is checked, and leaves nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use phalanx::config::TransportChoice;
use phalanx::control::Interrupt;
use phalanx::core::policy::Policy;
use phalanx::demo::random::Random;

use crate::options::{self, Options, Takes};
use crate::world as shared;

mod heard;
mod kind;
mod left;
mod network;
mod soak;
mod strike;
mod world;

use heard::{Outcome, SMALL_BYTES};
use kind::Fault;
use left::Traces;
use network::Network;
use soak::Soak;
use strike::Strike;
use world::{Failure, World};

const USAGE: &str = "\
phalanx chaos --fault KIND[,KIND...]|all [--policy P] [--transport shm|tcp] [--runs N] [--seed S] [--json] [--no-skip]
       phalanx chaos --soak MINUTES [--transport shm|tcp] [--seed S]";

/// Options of `phalanx chaos --fault`.
pub const OPTIONS: &[options::Option_] = &[
    ("fault", Takes::Value, "faults to do, one a run, by their names with commas between, or all"),
    ("policy", Takes::Value, "replace, shrink or abort (replace)"),
    ("transport", Takes::Value, "shm or tcp (shm inside a host, tcp between)"),
    ("runs", Takes::Value, "runs of each fault (10)"),
    ("seed", Takes::Value, "seed of the first run; the next has the next (1)"),
    ("soak", Takes::Value, "minutes of one fault after the other in one world: nothing may grow"),
    ("json", Takes::Flag, "print one JSON object a fault and nothing else"),
    ("no-skip", Takes::Flag, "fail where a fault cannot be done here"),
];
/// So many hung runs of a fault say enough.
const HUNG_MAX: u64 = 3;
/// The stream of a seed's draws that moments and victims come from; the ranks' data come from others.
const STREAM: u64 = u64::MAX - 2;

/// What all runs of one fault have come to.
#[derive(Default)]
struct Tally {
    runs: u64,
    outcomes: BTreeMap<Outcome, u64>,
    wrong: u64,
    hung: u64,
    leaked: u64,
    /// What made packets late, where something had to.
    by: Option<&'static str>,
}

impl Tally {
    fn has_passed(&self, runs: u64) -> bool {
        self.runs >= runs && self.wrong == 0 && self.hung == 0 && self.leaked == 0
    }

    fn outcomes(&self) -> String {
        let one = |(outcome, count): (&Outcome, &u64)| format!("\"{}\":{count}", outcome.name());
        self.outcomes.iter().map(one).collect::<Vec<_>>().join(",")
    }
}

/// What is run.
struct Task {
    policy: Policy,
    transport: TransportChoice,
    runs: u64,
    seed: u64,
    is_quiet: bool,
    /// Signals that ask this command to end.
    interrupts: Receiver<i32>,
}

/// Does the faults. 0: every run came out as it must, nothing hung, nothing is left; 1: not so.
pub fn run(args: Vec<std::ffi::OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let (tell, interrupts) = channel();
    // The receiver is gone only when this command ends anyway.
    let _watch = Interrupt::watch(move |signal| _ = tell.send(signal)).map_err(|e| e.to_string())?;
    if options.has("soak") {
        let (minutes, seed) = (options.get("soak", 1.0)?, options.get("seed", 1)?);
        return match missing(Fault::Reorder) {
            None => Soak { minutes, seed, transport: shared::transport_here(&options)? }.run(&interrupts),
            Some(needs) => Err(format!("--soak needs {needs}")),
        };
    }
    let faults = faults(&options)?;
    let task = Task {
        policy: options.get("policy", Policy::Replace)?,
        transport: shared::transport_here(&options)?,
        runs: options.get("runs", 10)?,
        seed: options.get("seed", 1)?,
        is_quiet: options.has("json"),
        interrupts,
    };
    let mut is_good = true;
    for fault in faults {
        if let Some(needs) = missing(fault) {
            eprintln!("{}: skipped: needs {needs}", fault.name());
            is_good &= !options.has("no-skip");
            continue;
        }
        let begun = Instant::now();
        let tally = match task.play_all(fault) {
            Ok(tally) => tally,
            Err(Failure::Interrupted(signal)) => return Ok(128 + signal),
            Err(Failure::Hung(why) | Failure::Setup(why)) => return Err(why),
        };
        task.print(fault, &tally, begun.elapsed().as_secs_f64());
        is_good &= tally.has_passed(task.runs);
    }
    Ok(i32::from(!is_good))
}

fn faults(options: &Options) -> Result<Vec<Fault>, String> {
    let text = options.text("fault").unwrap_or("all");
    if text == "all" {
        return Ok(Fault::ALL.to_vec());
    }
    text.split(',').map(|name| name.parse().map_err(|why| format!("--fault {text}: {why}"))).collect()
}

/// What a fault needs and this machine does not have.
fn missing(fault: Fault) -> Option<String> {
    let has_no = |tool: &&&str| std::process::Command::new(tool).arg("--help").output().is_err();
    if let Some(tool) = fault.tools().iter().find(has_no) {
        return Some(format!("the program `{tool}`"));
    }
    let needs_root = fault.hosts() > 0 || !fault.tools().is_empty();
    (needs_root && !rustix::process::geteuid().is_root()).then(|| "to be run by root".to_owned())
}

impl Task {
    fn play_all(&self, fault: Fault) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        let spares = usize::from(fault.hosts() > 0);
        let hosts = fault.hosts() + spares;
        let network = (hosts > 0).then(|| Network::make(hosts)).transpose()?;
        let is_late = matches!(fault, Fault::Delay | Fault::Reorder);
        tally.by = network.as_ref().filter(|_| is_late).map(Network::queues);
        let prefix = network.as_ref().map(|network| network.prefix().to_owned());
        while tally.runs < self.runs && tally.hung < HUNG_MAX {
            let seed = self.seed + tally.runs;
            tally.runs += 1;
            self.play(fault, seed, network.as_ref(), &mut tally)?;
        }
        drop(network);
        let left = prefix.map(|prefix| network::namespaces(&prefix)).unwrap_or_default();
        if !left.is_empty() {
            tally.leaked += 1;
            eprintln!("{}: namespaces are left: {left:?}", fault.name());
        }
        Ok(tally)
    }

    /// One run: a world of its own, one fault, a look at what came of it and at what is left.
    fn play(
        &self,
        fault: Fault,
        seed: u64,
        network: Option<&Network>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let bytes = fault.bytes(seed);
        let plan = fault.plan(self.policy, self.transport, bytes, seed);
        let complain = |what: &str, lines: &[String]| {
            eprintln!("{} {} seed {seed}, {bytes} bytes: {what}", fault.name(), self.policy);
            lines.iter().for_each(|line| eprintln!("    {line}"));
        };
        let names = left::named_segments();
        let mut world = match World::start(&plan, network, &self.interrupts) {
            Ok(world) => world,
            Err(Failure::Hung(why)) => {
                tally.hung += 1;
                complain(&why, &[]);
                return Ok(());
            }
            Err(why @ (Failure::Setup(_) | Failure::Interrupted(_))) => return Err(why),
        };
        let mut random = Random::new(seed, STREAM);
        let is_small = bytes <= SMALL_BYTES;
        let mut strike = Strike {
            fault,
            policy: self.policy,
            world: &mut world,
            network,
            random: &mut random,
            is_small,
            keeps_first: false,
        };
        let struck = strike.carry_out();
        // Judged before it is asked to end: hosts end one after the other, and those that are left see a loss.
        let struck = struck.map(|right| (right.outcome(&world.heard), right.complaints(&world.heard)));
        let traces = Traces::of(&world, names);
        let ended = world.end();
        match struck.and_then(|judged| ended.map(|()| judged)) {
            Ok(judged) => match judged {
                (Some(outcome), complaints) if complaints.is_empty() && world.heard.wrong.is_empty() => {
                    *tally.outcomes.entry(outcome).or_default() += 1;
                }
                (outcome, complaints) => {
                    tally.wrong += 1;
                    complain(&format!("wrong ({outcome:?})"), &[complaints, world.last_words()].concat());
                }
            },
            Err(Failure::Hung(why)) => {
                tally.hung += 1;
                complain(&why, &world.last_words());
                if let Some(network) = network {
                    (0..fault.hosts()).try_for_each(|host| network.heal(host))?;
                }
                return Ok(());
            }
            Err(Failure::Setup(why)) => return Err(Failure::Setup(format!("{}: {why}", fault.name()))),
            Err(interrupted @ Failure::Interrupted(_)) => return Err(interrupted),
        }
        let left = traces.left(network, fault.hosts() + usize::from(fault.hosts() > 0));
        if !left.is_empty() {
            tally.leaked += 1;
            complain("left behind", &left);
        }
        Ok(())
    }

    fn print(&self, fault: Fault, tally: &Tally, seconds: f64) {
        let Tally { runs, wrong, hung, leaked, .. } = tally;
        let (name, policy, transport, seed) = (fault.name(), self.policy, self.transport.name(), self.seed);
        if self.is_quiet {
            let by = tally.by.map_or_else(String::new, |by| format!("\"by\":\"{by}\","));
            println!(
                "{{\"fault\":\"{name}\",\"policy\":\"{policy}\",\"transport\":\"{transport}\",{by}\"seed\":{seed},\
                 \"runs\":{runs},\"outcomes\":{{{}}},\"wrong\":{wrong},\"hung\":{hung},\"leaked\":{leaked},\
                 \"seconds\":{seconds:.0}}}",
                tally.outcomes()
            );
        } else {
            println!(
                "{name} {policy} {transport}: {runs} runs in {seconds:.0} s, {}; {wrong} wrong, {hung} hung, {leaked} \
                 leaked",
                tally.outcomes().replace(['"'], "").replace(',', ", ")
            );
        }
    }
}
