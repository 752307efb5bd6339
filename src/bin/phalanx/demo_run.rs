//! One run of the demo's world: starts it, kills the rank at its moment, writes down what happened when.
//!
//! All times are of this process's one clock: when it sent the kill, when it read a report from a rank's pipe, when
//! its coordinator saw an event.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use phalanx::core::coordinator::WorldEvent;
use phalanx::core::ids::{MemberId, Rank, StepId};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::spec::Collective;
use phalanx::core::wire::message::{Decision, Holding, Milestone as Reached};
use phalanx::demo::display::{DemoEvent, Display, Screen};
use phalanx::demo::network::ParamsHash;
use phalanx::demo::protocol::{Milestone, Report};
use phalanx::demo::summary::Summary;
use phalanx::launch::{Line, Output, Signal, World, WorldSpec};

use crate::world::ms;

/// How often the end of the world is looked for while nobody reports.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The picture is drawn no more often.
const DRAW_EVERY: Duration = Duration::from_millis(40);
/// A run without any report for so long hangs: it is ended.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Exit code of a run that was ended for its silence, as `timeout` has it.
const CODE_SILENT: i32 = 124;

/// What is trained, on what.
pub struct Training {
    pub ranks: u32,
    pub spares: u32,
    pub steps: u64,
    pub seed: u64,
    pub transport: String,
    /// Program and first argument of each rank.
    pub program: Vec<OsString>,
}

/// Whom to kill inside the all-reduce of which step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kill {
    pub rank: Rank,
    pub step: StepId,
}

/// Milliseconds since the kill; see [`Summary`].
#[derive(Clone, Default)]
pub struct Times {
    pub stall_ms: Option<f64>,
    pub detect_ms: Option<f64>,
    pub reseat_ms: Option<f64>,
    pub state_ms: Option<f64>,
    pub replay_ms: Option<f64>,
}

/// What came out of a run.
pub struct Outcome {
    /// The world's exit code.
    pub code: i32,
    ranks: u32,
    /// The parameters that each rank ended with.
    pub hashes: BTreeMap<Rank, ParamsHash>,
    pub accuracy: f64,
    pub survivor_errors: u32,
    pub kill_in_flight: bool,
    /// `None`: nobody was killed.
    pub times: Option<Times>,
}

impl Outcome {
    /// Whether every rank has reported its end.
    pub fn has_result(&self) -> bool {
        self.hashes.len() == self.ranks as usize
    }

    /// The hash, where it is one.
    pub fn common_hash(&self) -> Option<ParamsHash> {
        let first = *self.hashes.values().next()?;
        self.hashes.values().all(|hash| *hash == first).then_some(first)
    }
}

/// The display, or none.
pub struct Show {
    display: Option<Display>,
    drawn: Instant,
}

impl Show {
    pub fn nothing() -> Self {
        Self { display: None, drawn: Instant::now() }
    }

    pub fn on(ranks: u32, screen: Screen) -> Self {
        Self { display: Some(Display::new(ranks, screen)), drawn: Instant::now() }
    }

    fn handle(&mut self, event: &DemoEvent) {
        if let Some(display) = &mut self.display {
            display.handle(event);
        }
    }

    fn draw(&mut self) {
        let Some(display) = self.display.as_mut().filter(|_| self.drawn.elapsed() >= DRAW_EVERY) else {
            return;
        };
        // A closed output is not the run's error.
        let _ = display.render(&mut std::io::stdout().lock());
        self.drawn = Instant::now();
    }

    /// Draws the result.
    pub fn finish(&mut self, summary: &Summary) {
        self.handle(&DemoEvent::Finished(summary.clone()));
        if let Some(display) = &mut self.display {
            let _ = display.render(&mut std::io::stdout().lock());
        }
    }
}

enum News {
    Line(Line),
    World(WorldEvent),
}

/// Runs the training once.
pub fn play(training: &Training, kill: Option<Kill>, show: &mut Show) -> Result<Outcome, String> {
    let (tell, news) = channel();
    let tell_line = tell.clone();
    let mut spec = spec(training, kill);
    // A line waits in the channel, not in the pipe: the rank that printed it goes on.
    spec.output =
        Output::Pipe(Arc::new(move |line| drop(tell_line.send((Instant::now(), News::Line(line))))));
    let world = World::spawn(spec, move |event, _| {
        drop(tell.send((Instant::now(), News::World(event.clone()))));
    })
    .map_err(|e| e.to_string())?;
    let mut run = Run::new(training, kill);
    let mut heard = Instant::now();
    let code = loop {
        match news.recv_timeout(LOOK_AGAIN) {
            Ok((at, news)) => {
                heard = at;
                run.take(at, news, show);
                run.kill_if_due(&world, show)?;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if let Some(code) = world.wait_within(Duration::ZERO) {
                    break code;
                }
                if heard.elapsed() > SILENCE_MAX {
                    eprintln!(
                        "phalanx: no rank has reported for {} s; the run is ended",
                        SILENCE_MAX.as_secs()
                    );
                    break CODE_SILENT;
                }
            }
        }
        show.draw();
    };
    drop(world);
    for (at, news) in news.try_iter() {
        run.take(at, news, show);
    }
    Ok(run.outcome(code))
}

fn spec(training: &Training, kill: Option<Kill>) -> WorldSpec {
    let mut command = training.program.clone();
    let mut arg = |name: &str, value: u64| command.extend([name.into(), value.to_string().into()]);
    arg("--steps", training.steps);
    arg("--seed", training.seed);
    if let Some(kill) = kill {
        arg("--kill-step", kill.step.0);
        arg("--late-rank", u64::from(late_rank(kill, training.ranks).0));
    }
    let policy = if training.spares > 0 { Policy::Replace } else { Policy::Abort };
    let mut spec = WorldSpec::new(training.ranks, Rules::new(training.ranks, policy), command);
    spec.spares = training.spares;
    spec.transport = Some(training.transport.clone());
    spec.stops_on_interrupt = true;
    spec
}

/// The rank that keeps the all-reduce open: another than the one that dies, so that this one dies inside.
fn late_rank(kill: Kill, ranks: u32) -> Rank {
    Rank((kill.rank.0 + 1) % ranks)
}

/// Whether the all-reduce of the kill was open when the fence stopped everybody: the step is not committed, the dead
/// one was inside, and no survivor has the whole result. A survivor that had not come yet has none; of two ranks that
/// is the only one, and then the ledgers know nothing of the op.
fn was_in_flight(decision: &Decision, kill: Kill, inside: &BTreeSet<Rank>) -> bool {
    let has_whole = |held: &Holding| match held {
        Holding::Nothing {} | Holding::Some { .. } => false,
        Holding::Everything {} | Holding::Satisfied {} => true,
    };
    let survives = |rank: &Rank| *rank != kill.rank && !decision.newcomers.contains(rank);
    let all_reduces = decision.ops.iter().filter(|op| op.spec.collective == Collective::AllReduce);
    let mut held = all_reduces.flat_map(|op| op.group.iter().zip(&op.held));
    decision.committed == kill.step.0
        && inside.contains(&kill.rank)
        && !held.any(|(rank, held)| survives(rank) && has_whole(held))
}

/// A run as the demo sees it.
struct Run {
    ranks: u32,
    kill: Option<Kill>,
    late: Option<Rank>,
    /// Processes in the seats.
    pids: BTreeMap<Rank, u32>,
    /// Numbers that people can read, in the order of appearance behind the ranks.
    members: BTreeMap<MemberId, MemberId>,
    is_spare_ready: bool,
    /// Ranks that are inside the all-reduce of the kill, before it.
    inside: BTreeSet<Rank>,
    /// When, and which process.
    killed: Option<(Instant, u32)>,
    passed: BTreeMap<Milestone, f64>,
    resumed: BTreeSet<Rank>,
    kill_in_flight: bool,
    survivor_errors: u32,
    hashes: BTreeMap<Rank, ParamsHash>,
    accuracy: f64,
}

impl Run {
    fn new(training: &Training, kill: Option<Kill>) -> Self {
        Self {
            ranks: training.ranks,
            kill,
            late: kill.map(|kill| late_rank(kill, training.ranks)),
            pids: BTreeMap::new(),
            members: BTreeMap::new(),
            is_spare_ready: false,
            inside: BTreeSet::new(),
            killed: None,
            passed: BTreeMap::new(),
            resumed: BTreeSet::new(),
            kill_in_flight: false,
            survivor_errors: 0,
            hashes: BTreeMap::new(),
            accuracy: f64::NAN,
        }
    }

    /// Kills once every rank but the late one is inside, and a spare stands by: else the time to start a process would
    /// count as recovery.
    fn kill_if_due(&mut self, world: &World, show: &mut Show) -> Result<(), String> {
        let Some(kill) = self.kill else { return Ok(()) };
        let all_inside = self.inside.len() + 1 == self.ranks as usize;
        if self.killed.is_some() || !self.is_spare_ready || !all_inside {
            return Ok(());
        }
        let Some(&pid) = self.pids.get(&kill.rank) else { return Ok(()) };
        self.killed = Some((Instant::now(), pid));
        world.kill(pid, Signal::Kill).map_err(|e| format!("{} cannot be killed: {e}", kill.rank))?;
        show.handle(&DemoEvent::Killed { rank: kill.rank, step: kill.step });
        Ok(())
    }

    fn take(&mut self, at: Instant, news: News, show: &mut Show) {
        match news {
            News::World(event) => self.take_event(at, &event, show),
            News::Line(line) => match Report::parse(&line.text) {
                // What the dead one said last says nothing about the recovery.
                Some(_) if self.killed.is_some_and(|(_, pid)| pid == line.pid) => {}
                Some(report) => self.take_report(at, report, line.pid, show),
                None => {
                    let _ = writeln!(std::io::stderr().lock(), "[{}] {}", line.label, line.text);
                }
            },
        }
    }

    fn take_event(&mut self, at: Instant, event: &WorldEvent, show: &mut Show) {
        match event {
            WorldEvent::SpareReady(_) => self.is_spare_ready = true,
            WorldEvent::Lost(_) => self.pass(Milestone::Detected, at, show),
            WorldEvent::Fenced(_) => self.pass(Milestone::Fenced, at, show),
            WorldEvent::Decided(decision) => {
                self.pass(Milestone::Decided, at, show);
                let kill = self.kill.filter(|_| self.killed.is_some());
                self.kill_in_flight |= kill.is_some_and(|kill| was_in_flight(decision, kill, &self.inside));
            }
            WorldEvent::Reached(_, _, Reached::StateHeld {}) => self.pass(Milestone::Transferred, at, show),
            // Seen in the ranks' own reports, when their callers see it.
            WorldEvent::Reached(_, _, Reached::Replayed {} | Reached::Resumed {})
            | WorldEvent::Formed
            | WorldEvent::SpareMissing(_)
            | WorldEvent::Unrecoverable(_)
            | WorldEvent::Finished => {}
        }
    }

    fn take_report(&mut self, at: Instant, report: Report, pid: u32, show: &mut Show) {
        match report {
            Report::Spare { member } => {
                self.readable(member, None);
            }
            Report::Seated { rank, member, step } => {
                self.pids.insert(rank, pid);
                self.pass(Milestone::Reseated, at, show);
                let member = self.readable(member, Some(rank));
                show.handle(&DemoEvent::Seated { rank, member, step });
            }
            Report::InFlight { rank, .. } => {
                if self.killed.is_none() && self.late != Some(rank) {
                    self.inside.insert(rank);
                } else if self.kill.is_some_and(|kill| kill.rank == rank) {
                    self.pass(Milestone::Replayed, at, show);
                }
            }
            Report::Step { step, rank, loss } => show.handle(&DemoEvent::Step { rank, step, loss }),
            Report::Milestone { milestone, rank, .. } => {
                if self.killed.is_some() && milestone == Milestone::Resumed {
                    self.resumed.insert(rank);
                    self.pass(milestone, at, show);
                }
            }
            Report::Error { rank, step, text } => {
                self.survivor_errors += 1;
                let _ = writeln!(std::io::stderr().lock(), "{rank}: error in step {}: {text}", step.0);
            }
            Report::Done { rank, accuracy, hash, .. } => {
                self.hashes.insert(rank, hash);
                self.accuracy = accuracy;
            }
        }
    }

    /// A small number for a member: its rank at the start, then the next one free.
    fn readable(&mut self, member: MemberId, rank: Option<Rank>) -> MemberId {
        let spares = self.members.values().filter(|m| m.0 >= u64::from(self.ranks)).count() as u64;
        let next = match rank {
            Some(rank) if self.killed.is_none() => u64::from(rank.0),
            Some(_) | None => u64::from(self.ranks) + spares,
        };
        *self.members.entry(member).or_insert(MemberId(next))
    }

    fn pass(&mut self, milestone: Milestone, at: Instant, show: &mut Show) {
        let Some((killed, _)) = self.killed else { return };
        let since_kill_ms = ms(at.saturating_duration_since(killed));
        let at = self.passed.entry(milestone).or_insert(since_kill_ms);
        if milestone != Milestone::Detected {
            // The first evidence is the detection; all else is over when the last rank is through.
            *at = at.max(since_kill_ms);
        }
        show.handle(&DemoEvent::Milestone { milestone, since_kill_ms });
    }

    fn outcome(self, code: i32) -> Outcome {
        let passed = |milestone| self.passed.get(&milestone).copied();
        let all_resumed = self.resumed.len() == self.ranks as usize;
        let times = self.killed.map(|_| Times {
            // Nothing is taken off for what a step takes anyway: when the kill came the gradients were computed.
            stall_ms: passed(Milestone::Resumed).filter(|_| all_resumed),
            detect_ms: passed(Milestone::Detected),
            reseat_ms: passed(Milestone::Reseated),
            state_ms: passed(Milestone::Transferred),
            replay_ms: passed(Milestone::Replayed),
        });
        Outcome {
            code,
            ranks: self.ranks,
            hashes: self.hashes,
            accuracy: self.accuracy,
            survivor_errors: self.survivor_errors,
            kill_in_flight: self.kill_in_flight,
            times,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx::core::bitmap::Bitmap;
    use phalanx::core::ids::{Attempt, CommId, Epoch, OpId, OpSeq};
    use phalanx::core::spec::{Algorithm, Dtype, ReduceOp, Spec};
    use phalanx::core::view::View;
    use phalanx::core::wire::message::{OpDecision, Verdict};

    const KILL: Kill = Kill { rank: Rank(1), step: StepId(5) };

    /// After the kill, with what each rank holds of the step's all-reduce; nothing: no survivor had called it.
    fn decision(committed: u64, held: Vec<Holding>) -> Decision {
        let spec = Spec {
            collective: Collective::AllReduce,
            dtype: Dtype::F32,
            reduction: ReduceOp::Avg,
            count: 130,
            root: Rank(0),
            algorithm: Algorithm::Direct,
        };
        let id = OpId { comm: CommId(0), seq: OpSeq(9) };
        let group = (0..held.len() as u32).map(Rank).collect();
        let op = OpDecision { id, spec, verdict: Verdict::Repair {}, attempt: Attempt(0), group, held };
        Decision {
            view: View { epoch: Epoch(2), seats: Vec::new(), members: Vec::new() },
            losses: Vec::new(),
            newcomers: vec![KILL.rank],
            comms: Vec::new(),
            ops: if op.held.is_empty() { Vec::new() } else { vec![op] },
            committed,
            state: None,
        }
    }

    #[test]
    fn the_one_that_dies_is_never_the_late_one() {
        for (rank, ranks) in (2..6).flat_map(|ranks| (0..ranks).map(move |rank| (rank, ranks))) {
            let late = late_rank(Kill { rank: Rank(rank), ..KILL }, ranks);
            assert!(late != Rank(rank) && late.0 < ranks, "{late} of {ranks}");
        }
    }

    #[test]
    fn a_kill_is_in_flight_if_the_dead_one_was_inside_and_no_survivor_has_the_result() {
        let part = || Holding::Some { chunks: Bitmap::from_words(3, &[1]) };
        let all = || Holding::Everything {};
        let inside = BTreeSet::from([KILL.rank]);
        for held in [vec![], vec![part(), all()], vec![Holding::Nothing {}, part(), part()]] {
            assert!(was_in_flight(&decision(5, held.clone()), KILL, &inside), "{held:?}");
            assert!(!was_in_flight(&decision(6, held.clone()), KILL, &inside), "committed, {held:?}");
            assert!(!was_in_flight(&decision(5, held.clone()), KILL, &BTreeSet::new()), "outside, {held:?}");
        }
        for held in [vec![all(), part()], vec![part(), part(), Holding::Satisfied {}]] {
            assert!(!was_in_flight(&decision(5, held.clone()), KILL, &inside), "{held:?}");
        }
    }
}
