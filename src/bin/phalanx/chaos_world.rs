//! One world of `phalanx chaos`: waits until it runs well, kills, follows what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use phalanx::core::coordinator::WorldEvent;
use phalanx::core::ids::Rank;
use phalanx::core::policy::Policy;
use phalanx::core::spec::Collective;
use phalanx::core::wire::message::{Decision, Holding, Milestone};
use phalanx::demo::random::Random;
use phalanx::launch::{Line, Output, Signal, World};

use crate::chaos::{Tally, Task};
use crate::chaos_report::{Ending, Report, now_us};

/// How often the world is looked at while nobody reports.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A seated rank without a report for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A kill comes within so many ops, so that it falls anywhere in one.
const AIM_OPS: u64 = 3;

/// How a world ended.
pub enum End {
    /// It did what was wanted.
    Enough,
    /// Somebody was silent.
    Hung,
    /// It ended by itself, or by an interrupt: its exit code.
    Ended(i32),
}

enum News {
    Line(Line),
    /// When it was seen, in microseconds of the system's clock.
    World(u64, WorldEvent),
}

/// Runs a world until there were kills enough; with a policy that replaces nobody, until the first one.
pub fn play(task: &Task, tally: &mut Tally, random: &mut Random) -> Result<End, String> {
    let (tell, news) = channel();
    let tell_line = tell.clone();
    let mut spec = task.spec.clone();
    // A line waits in the channel, not in the pipe: the rank that printed it goes on.
    spec.output = Output::Pipe(Arc::new(move |line| drop(tell_line.send(News::Line(line)))));
    let spawned = World::spawn(spec, move |event, _| drop(tell.send(News::World(now_us(), event.clone()))));
    let world = spawned.map_err(|e| e.to_string())?;
    let mut run = Run::new(task, tally, random);
    let end = run.follow(&world, &news);
    run.tally.ops += run.last_op.values().max().map_or(0, |op| op + 1);
    drop(world);
    for news in news.try_iter() {
        run.take(news);
    }
    Ok(end)
}

/// What a seated process said last.
struct Heard {
    at: Instant,
    /// It has reported progress over undisturbed ops, so it has run for a while.
    is_warm: bool,
    op: u64,
    line: String,
}

/// A kill whose consequences are not all seen.
struct Strike {
    rank: Rank,
    at_us: u64,
    at: Instant,
    decided: Option<Decided>,
    /// What the coordinator saw, and how long after the kill.
    passed: Vec<(&'static str, f64)>,
    disturbed: Vec<(Rank, Disturbed)>,
    contributors: BTreeMap<Rank, (u64, Vec<Rank>)>,
    ended: BTreeMap<Rank, (u64, Ending)>,
}

/// What the coordinator decided about it.
struct Decided {
    epoch: u64,
    /// The op that was unfinished at a survivor, if one was.
    in_flight: Option<u64>,
}

struct Disturbed {
    op: u64,
    epoch: u64,
    done_us: u64,
    fill_us: u64,
}

enum Stage {
    /// Not everybody runs, or no spare stands by.
    Settling,
    /// A kill comes at this moment.
    Aiming(Instant),
    Struck(Strike),
    Over,
}

struct Run<'a> {
    task: &'a Task,
    tally: &'a mut Tally,
    random: &'a mut Random,
    stage: Stage,
    /// By process.
    heard: BTreeMap<u32, Heard>,
    last_op: BTreeMap<u32, u64>,
    /// Processes that were killed here.
    victims: BTreeSet<u32>,
    /// Every rank has said good-bye: processes that end now are no losses.
    is_finished: bool,
    /// Reports before this say nothing about how the world runs now.
    settles_from: Instant,
    op_ms: f64,
}

impl<'a> Run<'a> {
    fn new(task: &'a Task, tally: &'a mut Tally, random: &'a mut Random) -> Self {
        Self {
            task,
            tally,
            random,
            stage: Stage::Settling,
            heard: BTreeMap::new(),
            last_op: BTreeMap::new(),
            victims: BTreeSet::new(),
            is_finished: false,
            settles_from: Instant::now(),
            op_ms: 1.0,
        }
    }

    fn follow(&mut self, world: &World, news: &Receiver<News>) -> End {
        loop {
            let wait = match self.stage {
                Stage::Aiming(at) => at.saturating_duration_since(Instant::now()).min(LOOK_AGAIN),
                Stage::Settling | Stage::Struck(_) | Stage::Over => LOOK_AGAIN,
            };
            match news.recv_timeout(wait) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    if let Some(code) = world.wait_within(Duration::ZERO).filter(|_| !self.may_end()) {
                        self.tally.survivor_errors += u64::from(code == 0);
                        return End::Ended(code);
                    }
                }
            }
            if let Err(why) = self.advance(world) {
                self.tally.hung += 1;
                self.dump(world, &why);
                return End::Hung;
            }
            if matches!(self.stage, Stage::Over) {
                return End::Enough;
            }
        }
    }

    /// Whether the end of all processes is what the policy wants.
    fn may_end(&self) -> bool {
        self.task.policy() == Policy::Abort && matches!(self.stage, Stage::Struck(_) | Stage::Over)
    }

    /// Goes to the next stage if it is time; the error says who hangs.
    fn advance(&mut self, world: &World) -> Result<(), String> {
        match &self.stage {
            Stage::Settling => {
                if self.is_settled(world) {
                    let within_us = (self.op_ms * 1e3) as u64 * AIM_OPS + 1000;
                    let delay = Duration::from_micros(self.random.below(within_us as usize) as u64);
                    self.stage = Stage::Aiming(Instant::now() + delay);
                }
            }
            Stage::Aiming(at) => {
                if *at <= Instant::now() {
                    self.strike(world);
                }
            }
            Stage::Struck(strike) => {
                if self.is_through(strike, world) {
                    self.conclude();
                } else if strike.at.elapsed() > SILENCE_MAX {
                    return Err(format!("{} was killed, and not everybody went on", strike.rank));
                }
            }
            Stage::Over => {}
        }
        self.silent(world).map_or(Ok(()), Err)
    }

    fn is_settled(&self, world: &World) -> bool {
        let snapshot = world.server().snapshot();
        let spares = usize::from(self.task.policy() == Policy::Replace);
        // The first kill comes when the world has run for a while, the others at any time after the last recovery.
        let is_first = self.victims.is_empty();
        let runs = |seat: &Option<_>| {
            let pid = seat.and_then(|m| snapshot.view.info(m)).map(|info| info.pid);
            pid.and_then(|pid| self.heard.get(&pid))
                .is_some_and(|h| h.at > self.settles_from && (h.is_warm || !is_first))
        };
        snapshot.epoch.0 > 0
            && snapshot.is_steady
            && snapshot.spares >= spares
            && snapshot.view.seats.iter().all(runs)
    }

    fn strike(&mut self, world: &World) {
        let rank = Rank(self.random.below(self.task.spec.ranks as usize) as u32);
        let (at_us, at) = (now_us(), Instant::now());
        // A seat that has become vacant by itself is told as a loss.
        let Ok(pid) = world.kill_rank(rank, Signal::Kill) else {
            self.settle();
            return;
        };
        self.victims.insert(pid);
        self.stage = Stage::Struck(Strike {
            rank,
            at_us,
            at,
            decided: None,
            passed: Vec::new(),
            disturbed: Vec::new(),
            contributors: BTreeMap::new(),
            ended: BTreeMap::new(),
        });
    }

    fn settle(&mut self) {
        self.settles_from = Instant::now();
        self.stage = Stage::Settling;
    }

    /// Whether all that follows from the kill is seen.
    fn is_through(&self, strike: &Strike, world: &World) -> bool {
        let Some(decided) = &strike.decided else { return false };
        let survivors = || (0..self.task.spec.ranks).map(Rank).filter(|r| *r != strike.rank);
        match (self.task.policy(), decided.in_flight) {
            (Policy::Abort, _) => survivors().all(|r| strike.ended.contains_key(&r)),
            (Policy::Shrink, _) => {
                survivors().all(|r| strike.contributors.contains_key(&r) && strike.is_past(r))
            }
            (Policy::Replace, None) => world.server().snapshot().is_steady,
            (Policy::Replace, Some(_)) => (0..self.task.spec.ranks).all(|r| strike.is_past(Rank(r))),
        }
    }

    /// Counts what the kill has come to.
    fn conclude(&mut self) {
        let Stage::Struck(strike) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        match strike.times_ms() {
            Some((whole_ms, replay_ms)) => {
                self.tally.kills_in_flight += 1;
                self.tally.whole_ms.push(whole_ms);
                self.tally.replay_ms.push(replay_ms);
                self.say(|| {
                    let (rank, op, timeline) = (strike.rank, strike.op().unwrap_or(0), strike.timeline());
                    format!("{rank} killed in op {op}: over after {whole_ms:.2} ms ({timeline})")
                });
            }
            None if strike.op().is_some() => self.tally.kills_in_flight += 1,
            None => self.tally.kills_missed += 1,
        }
        match self.task.policy() {
            Policy::Replace => {
                if self.tally.kills_in_flight < self.task.kills {
                    self.settle();
                }
            }
            Policy::Shrink => self.compare_contributors(&strike),
            Policy::Abort => self.compare_endings(&strike),
        }
    }

    /// The contributors are, at every survivor and from the same op on, the survivors.
    fn compare_contributors(&mut self, strike: &Strike) {
        let survivors: Vec<Rank> =
            (0..self.task.spec.ranks).map(Rank).filter(|r| *r != strike.rank).collect();
        let distinct: BTreeSet<_> = strike.contributors.values().collect();
        if distinct.len() != 1 || distinct.iter().any(|(_, ranks)| *ranks != survivors) {
            self.tally.wrong += 1;
            complain(&format!(
                "contributors differ after {} was killed: {:?}",
                strike.rank, strike.contributors
            ));
        }
    }

    /// Every survivor has the typed error, about the same op.
    fn compare_endings(&mut self, strike: &Strike) {
        self.tally.aborted += strike.ended.values().filter(|(_, how)| *how == Ending::Aborted).count() as u64;
        let distinct: BTreeSet<u64> = strike.ended.values().map(|(op, _)| *op).collect();
        if distinct.len() != 1 {
            self.tally.wrong += 1;
            complain(&format!("the ops that failed differ: {:?}", strike.ended));
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Line(line) => match Report::parse(&line.text) {
                Some(report) => self.take_report(line.pid, report, &line.text),
                None => complain(&format!("[{}] {}", line.label, line.text)),
            },
            News::World(at_us, event) => self.take_event(at_us, &event),
        }
    }

    fn take_event(&mut self, at_us: u64, event: &WorldEvent) {
        if let Stage::Struck(strike) = &mut self.stage {
            strike.note(at_us, event);
        }
        match event {
            WorldEvent::Decided(decision) => {
                let Stage::Struck(strike) = &mut self.stage else { return };
                if strike.decided.is_none() && decision.losses.iter().any(|loss| loss.rank == strike.rank) {
                    let in_flight = in_flight(decision, strike.rank, self.task.policy());
                    strike.decided = Some(Decided { epoch: decision.view.epoch.0, in_flight });
                }
            }
            WorldEvent::Lost(loss) => {
                let is_expected = match &self.stage {
                    Stage::Struck(strike) => strike.rank == loss.rank,
                    Stage::Over => true,
                    Stage::Settling | Stage::Aiming(_) => false,
                } || self.is_finished;
                if !is_expected {
                    self.tally.survivor_errors += 1;
                    complain(&format!("{} was lost and nobody killed it: {}", loss.rank, loss.cause));
                }
            }
            WorldEvent::Finished | WorldEvent::Unrecoverable(_) => self.is_finished = true,
            WorldEvent::Formed
            | WorldEvent::Fenced(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::SpareReady(_) => {}
        }
    }

    fn take_report(&mut self, pid: u32, report: Report, line: &str) {
        // What the dead one said last is only late.
        let is_victim = self.victims.contains(&pid);
        let strike = match &mut self.stage {
            Stage::Struck(strike) if !is_victim => Some(strike),
            Stage::Struck(_) | Stage::Settling | Stage::Aiming(_) | Stage::Over => None,
        };
        let is_progress = matches!(report, Report::Progress { op_us: 1.., .. });
        let op = match report {
            Report::Progress { op, op_us, .. } => {
                if op_us > 0 && !is_victim {
                    self.op_ms = op_us as f64 / 1e3;
                    self.tally.op_ms.push(self.op_ms);
                }
                op
            }
            Report::Disturbed { rank, op, epoch, done_us, fill_us } => {
                if let Some(strike) = strike {
                    strike.disturbed.push((rank, Disturbed { op, epoch, done_us, fill_us }));
                }
                op
            }
            Report::Contributors { rank, op, ranks } => {
                if let Some(strike) = strike {
                    strike.contributors.insert(rank, (op, ranks));
                }
                op
            }
            Report::Wrong { op, .. } => {
                self.tally.wrong += 1;
                complain(line);
                op
            }
            Report::Ended { rank, op, how, .. } => {
                let is_wanted = how == Ending::Aborted && self.task.policy() == Policy::Abort;
                if !is_wanted && !is_victim {
                    self.tally.survivor_errors += 1;
                    complain(line);
                }
                if let (Some(strike), Some(rank)) = (strike, rank) {
                    strike.ended.insert(rank, (op, how));
                }
                op
            }
        };
        let is_warm = is_progress || self.heard.get(&pid).is_some_and(|h| h.is_warm);
        self.heard.insert(pid, Heard { at: Instant::now(), is_warm, op, line: line.to_owned() });
        self.last_op.insert(pid, op);
    }

    /// A seated rank that has said nothing for too long.
    fn silent(&self, world: &World) -> Option<String> {
        if self.may_end() {
            return None; // Who has ended says no more; the kill has its own limit.
        }
        let view = world.server().snapshot().view;
        let seated = view.seats.iter().enumerate().filter_map(|(r, m)| Some((r, view.info((*m)?)?.pid)));
        let last = |pid| self.heard.get(&pid).map_or(self.settles_from, |h| h.at.max(self.settles_from));
        let mut long = seated.filter(|(_, pid)| last(*pid).elapsed() > SILENCE_MAX);
        long.next().map(|(r, pid)| format!("rank {r} (process {pid}) is silent"))
    }

    /// All there is to say about a world that hangs.
    fn dump(&self, world: &World, why: &str) {
        let snapshot = world.server().snapshot();
        complain(&format!("hung: {why}; {:?}, steady: {}", snapshot.epoch, snapshot.is_steady));
        complain(&format!("seats {:?}, {} spares", snapshot.view.seats, snapshot.spares));
        for (pid, label) in world.children() {
            let rank = snapshot
                .view
                .members
                .iter()
                .find(|i| i.pid == pid)
                .and_then(|i| snapshot.view.rank_of(i.member));
            let said = self.heard.get(&pid).map_or_else(
                || "said nothing".to_owned(),
                |h| format!("op {}, {} ms ago: {}", h.op, h.at.elapsed().as_millis(), h.line),
            );
            complain(&format!("{label} process {pid} {rank:?}: {said}"));
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if !self.task.is_quiet {
            println!("{}", text());
        }
    }
}

impl Strike {
    fn note(&mut self, at_us: u64, event: &WorldEvent) {
        let name = match event {
            WorldEvent::Lost(_) => "lost",
            WorldEvent::Fenced(_) => "fenced",
            WorldEvent::Decided(_) => "decided",
            WorldEvent::Reached(_, _, Milestone::StateHeld {}) => "state",
            WorldEvent::Reached(_, _, Milestone::Replayed {}) => "replayed",
            WorldEvent::Reached(_, _, Milestone::Resumed {}) => "resumed",
            WorldEvent::SpareMissing(_) => "no spare",
            WorldEvent::Unrecoverable(_) => "unrecoverable",
            WorldEvent::SpareReady(_) | WorldEvent::Formed | WorldEvent::Finished => return,
        };
        self.passed.push((name, at_us.saturating_sub(self.at_us) as f64 / 1e3));
    }

    /// The way of the recovery, in words.
    fn timeline(&self) -> String {
        let one = |(name, ms): &(&str, f64)| format!("{name} {ms:.2}");
        self.passed.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn op(&self) -> Option<u64> {
        self.decided.as_ref()?.in_flight
    }

    /// Whether `rank` has ended the op in flight, or one after it, in the new epoch.
    fn is_past(&self, rank: Rank) -> bool {
        let Some(decided) = &self.decided else { return false };
        let from = decided.in_flight.unwrap_or(0);
        self.disturbed.iter().any(|(r, d)| *r == rank && d.epoch >= decided.epoch && d.op >= from)
    }

    /// From the kill to the end of the op in flight at the last rank, and the newcomer's own part of it.
    fn times_ms(&self) -> Option<(f64, f64)> {
        let op = self.op()?;
        let epoch = self.decided.as_ref()?.epoch;
        let of_op = || self.disturbed.iter().filter(move |(_, d)| d.op == op && d.epoch >= epoch);
        let last_us = of_op().map(|(_, d)| d.done_us).max()?;
        let fill_us = of_op().find(|(r, _)| *r == self.rank).map_or(0, |(_, d)| d.fill_us);
        Some((last_us.saturating_sub(self.at_us) as f64 / 1e3, fill_us as f64 / 1e3))
    }
}

/// The op that the ledgers at the fence show unfinished at a survivor.
fn in_flight(decision: &Decision, killed: Rank, policy: Policy) -> Option<u64> {
    let is_unfinished = |held: &Holding| match held {
        Holding::Nothing {} | Holding::Some { .. } => true,
        Holding::Everything {} | Holding::Satisfied {} => false,
    };
    let survives = |rank: &Rank| *rank != killed && !decision.newcomers.contains(rank);
    let ops = decision.ops.iter().filter(|op| op.spec.collective == Collective::AllReduce);
    let found = ops
        .into_iter()
        .find(|op| op.group.iter().zip(&op.held).any(|(rank, held)| survives(rank) && is_unfinished(held)))?;
    Some(match policy {
        // Each step has one all-reduce.
        Policy::Replace => decision.committed,
        Policy::Shrink | Policy::Abort => found.id.seq.0,
    })
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
