//! One world, one fault after the other for minutes or an hour: what lives through all of them must not have grown.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use phalanx::Rank;
use phalanx::config::TransportChoice;
use phalanx::core::policy::Policy;
use phalanx::demo::random::Random;

use super::heard::{Outcome, SMALL_BYTES};
use super::kind::Fault;
use super::left::{self, Traces};
use super::network::Network;
use super::strike::Strike;
use super::world::{Failure, Store, World};

/// What is done to the world, in any order; the last one only in the first part of the time, for a coordinator that is
/// started again begins small.
const MIX: &[Fault] = &[
    Fault::Kill,
    Fault::Stop,
    Fault::Pause,
    Fault::LinkFlap,
    Fault::Loss,
    Fault::Delay,
    Fault::Reorder,
    Fault::CoordinatorRestart,
];
/// The part of the time after which it is looked who grows.
const WARM_PART: f64 = 0.25;
/// What may be more at the end: a connection on its way, a thread that is about to end.
const FEW: u64 = 3;
/// Memory that an allocator may keep besides a tenth.
const RSS_SLACK_KIB: u64 = 4096;
/// How often figures are printed.
const PRINT_EVERY: Duration = Duration::from_secs(60);
/// A rank that was silent for a lease and a quarter has been put out by then.
const LATE_LOSS: Duration = Duration::from_millis(5_500);
const BYTES: u64 = SMALL_BYTES;
const STREAM: u64 = u64::MAX - 3;

/// What a process has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Size {
    rss_kib: u64,
    descriptors: u64,
    threads: u64,
}

impl Size {
    fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Self { rss_kib: number("VmRSS:")?, descriptors, threads: number("Threads:")? })
    }

    /// Whether `later` is more than chance makes it.
    fn has_grown(self, later: Self) -> bool {
        later.rss_kib > self.rss_kib + self.rss_kib / 10 + RSS_SLACK_KIB
            || later.descriptors > self.descriptors + FEW
            || later.threads > self.threads + FEW
    }
}

/// How long, over what, by which seed.
pub struct Soak {
    pub minutes: f64,
    pub transport: TransportChoice,
    pub seed: u64,
}

impl Soak {
    /// Runs it, prints figures every minute and one JSON object at the end. 0: every fault came out as it must, and
    /// nothing has grown.
    pub fn run(&self, interrupts: &Receiver<i32>) -> Result<i32, String> {
        let hosts = Fault::LinkFlap.hosts() + 1;
        let network = Network::make(hosts)?;
        let mut plan = Fault::LinkFlap.plan(Policy::Replace, self.transport, BYTES, self.seed);
        plan.store = Store::Folder;
        let names = left::named_segments();
        let mut world = World::start(&plan, Some(&network), interrupts).map_err(|e| format!("{e:?}"))?;
        let mut done = Done::default();
        let begun = Instant::now();
        let why = match self.strike_all(&mut world, &network, begun, &mut done) {
            Ok(()) => None,
            Err(Failure::Hung(why) | Failure::Setup(why)) => {
                world.last_words().iter().for_each(|line| eprintln!("    {line}"));
                Some(why)
            }
            Err(Failure::Interrupted(signal)) => Some(format!("signal {signal} ends it before its time")),
        };
        let traces = Traces::of(&world, names);
        let ended = world.end();
        let left = traces.left(Some(&network), hosts);
        let grown = done.grown();
        println!("{}", done.to_json(self, begun.elapsed(), why.is_some(), &grown, left.len()));
        for line in why.iter().chain(&grown).chain(&left) {
            eprintln!("phalanx: {line}");
        }
        let is_good = why.is_none() && grown.is_empty() && left.is_empty() && ended.is_ok();
        Ok(i32::from(!is_good))
    }

    fn strike_all(
        &self,
        world: &mut World<'_>,
        network: &Network,
        begun: Instant,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let mut random = Random::new(self.seed, STREAM);
        let whole = Duration::from_secs_f64(self.minutes * 60.0);
        let (mut printed, processes) = (Instant::now(), world.processes().len());
        while begun.elapsed() < whole {
            let is_warm = begun.elapsed() > whole.mul_f64(WARM_PART);
            let kinds = if is_warm { &MIX[..MIX.len() - 1] } else { MIX };
            let fault = kinds[random.below(kinds.len())];
            let mut strike = Strike {
                fault,
                policy: Policy::Replace,
                world,
                network: Some(network),
                random: &mut random,
                is_small: true,
                keeps_first: true,
            };
            let right = strike.carry_out()?;
            if fault == Fault::Loss {
                // A beat that was lost again and again puts a rank out only now, and that is no fault of the next one.
                world.pass(LATE_LOSS);
                world.heard.mark();
                world.wait_over(&right)?;
            }
            let (outcome, complaints) = (right.outcome(&world.heard), right.complaints(&world.heard));
            if outcome.is_none() || !complaints.is_empty() {
                return Err(Failure::Hung(format!("{} came out wrong: {complaints:?}", fault.name())));
            }
            *done.faults.entry(fault.name()).or_default() += 1;
            done.replaced += u64::from(outcome == Some(Outcome::Replaced));
            // As many processes as at first: those that were lost are gone, and a spare has come for each.
            world.wait("as many processes as at first", |world| world.processes().len() == processes)?;
            world.heard.settle();
            let sizes = done.measure(world)?;
            if is_warm && done.warm.is_empty() {
                done.warm.clone_from(&sizes);
            }
            if printed.elapsed() >= PRINT_EVERY {
                printed = Instant::now();
                let count: u64 = done.faults.values().sum();
                eprintln!("{:.0} s, {count} faults: {sizes:?}", begun.elapsed().as_secs_f64());
            }
            done.last = sizes;
        }
        Ok(())
    }
}

/// What was done, and how large those are that live through all of it.
#[derive(Default)]
struct Done {
    faults: BTreeMap<&'static str, u64>,
    replaced: u64,
    warm: BTreeMap<String, Size>,
    last: BTreeMap<String, Size>,
}

impl Done {
    fn measure(&self, world: &World<'_>) -> Result<BTreeMap<String, Size>, Failure> {
        let rank = ("rank 0".to_owned(), world.pid_of(Rank(0))?);
        let coordinator = ("coordinator".to_owned(), world.coordinator());
        let launchers = world.launchers.iter().enumerate();
        let launchers = launchers.map(|(host, child)| (format!("launcher {host}"), child.id()));
        let sizes = launchers.chain([rank, coordinator]).map(|(name, pid)| {
            let size = Size::of(pid).ok_or_else(|| Failure::Hung(format!("{name} is gone")))?;
            Ok((name, size))
        });
        sizes.collect()
    }

    fn grown(&self) -> Vec<String> {
        let pairs = self.warm.iter().filter_map(|(name, warm)| Some((name, warm, self.last.get(name)?)));
        let grown = pairs.filter(|(_, warm, last)| warm.has_grown(**last));
        grown.map(|(name, warm, last)| format!("{name} has grown from {warm:?} to {last:?}")).collect()
    }

    fn to_json(&self, soak: &Soak, took: Duration, is_stuck: bool, grown: &[String], left: usize) -> String {
        let faults = self.faults.iter().map(|(name, count)| format!("\"{name}\":{count}"));
        let pair = |a: u64, b: u64| format!("[{a},{b}]");
        let sizes = self.warm.iter().filter_map(|(name, warm)| {
            let last = self.last.get(name)?;
            Some(format!(
                "\"{name}\":{{\"rss_kib\":{},\"descriptors\":{},\"threads\":{}}}",
                pair(warm.rss_kib, last.rss_kib),
                pair(warm.descriptors, last.descriptors),
                pair(warm.threads, last.threads)
            ))
        });
        format!(
            "{{\"soak_minutes\":{:.1},\"transport\":\"{}\",\"seed\":{},\"faults\":{{{}}},\"replaced\":{},\
             \"failed\":{is_stuck},\"grown\":{},\"leaked\":{left},\"sizes\":{{{}}}}}",
            took.as_secs_f64() / 60.0,
            soak.transport.name(),
            soak.seed,
            faults.collect::<Vec<_>>().join(","),
            self.replaced,
            grown.len(),
            sizes.collect::<Vec<_>>().join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen_and_chance_is_not() {
        let warm = Size { rss_kib: 10_000, descriptors: 20, threads: 4 };
        assert!(!warm.has_grown(Size { rss_kib: 12_000, descriptors: 22, threads: 5 }));
        assert!(warm.has_grown(Size { rss_kib: 20_000, ..warm }));
        assert!(warm.has_grown(Size { descriptors: 30, ..warm }));
        assert!(warm.has_grown(Size { threads: 8, ..warm }));
        assert!(Size::of(std::process::id()).is_some_and(|me| me.threads > 0 && me.descriptors > 0));
        assert_eq!(Size::of(u32::MAX), None);
    }
}
