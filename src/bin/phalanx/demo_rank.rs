//! `phalanx demo-rank`: what each process of the demo runs. Started by `phalanx demo`, which reads its reports.

use std::ffi::OsString;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use phalanx::core::ids::{Epoch, Rank, StepId};
use phalanx::demo::alone::BATCH;
use phalanx::demo::digits::Digits;
use phalanx::demo::network::{Network, ParamsHash, accuracy};
use phalanx::demo::protocol::{Milestone, Report};
use phalanx::demo::sampling::Sampling;
use phalanx::{Buffer, Communicator, Error, ReduceOp, Regions, RegionsMut, State, Step};

use crate::options::{self, Takes};

const USAGE: &str =
    "phalanx demo-rank --steps K --seed N [--kill-step S --late-rank R] (started by `phalanx demo`)";

const OPTIONS: &[options::Option_] = &[
    ("steps", Takes::Value, "steps of the run"),
    ("seed", Takes::Value, "seed of the network and of the sampling"),
    ("kill-step", Takes::Value, "the step whose all-reduce somebody will be killed in"),
    ("late-rank", Takes::Value, "the rank that comes to that all-reduce only when the death is known"),
];

/// A kill that never comes must not hold the run for ever.
const LATE_AT_MOST: Duration = Duration::from_secs(10);
/// How often the late rank looks whether the death is known.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

struct Orders {
    steps: u64,
    seed: u64,
    kill_step: Option<u64>,
    late_rank: Option<u32>,
}

/// What a step starts from. A newcomer gets exactly this, byte for byte.
struct Model(Network);

impl State for Model {
    fn regions(&self) -> Regions<'_> {
        Regions::new().with(&self.0.params).with(&self.0.velocity)
    }

    fn regions_mut(&mut self) -> RegionsMut<'_> {
        RegionsMut::new().with(&mut self.0.params).with(&mut self.0.velocity)
    }
}

/// What one step brings.
struct Learned {
    step: u64,
    loss: f32,
    gradient: Buffer<f32>,
}

/// Trains as one rank, or waits as a spare; 1 after an error, which is reported.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, OPTIONS, args)? else { return Ok(0) };
    let some = |name| options.text(name).map(|_| options.get(name, 0u64)).transpose();
    let orders = Orders {
        steps: options.get("steps", 0)?,
        seed: options.get("seed", 0)?,
        kill_step: some("kill-step")?,
        late_rank: options.text("late-rank").map(|_| options.get("late-rank", 0u32)).transpose()?,
    };
    let mut comm = Communicator::from_env().map_err(|e| e.to_string())?;
    match train(&mut comm, &orders) {
        Ok(()) => Ok(0),
        Err(error) => {
            let rank = comm.rank().unwrap_or(Rank(u32::MAX));
            say(&Report::Error { rank, step: StepId(comm.steps_committed()), text: told(&error) });
            Ok(1)
        }
    }
}

fn train(comm: &mut Communicator, orders: &Orders) -> Result<(), Error> {
    let digits = Digits::load();
    let member = comm.member();
    let was_spare = comm.rank().is_none();
    if was_spare {
        say(&Report::Spare { member });
    }
    let Some(rank) = comm.wait_seated()? else { return Ok(()) };
    say(&Report::Seated { rank, member, step: StepId(comm.steps_committed()) });
    let mut model = Model(Network::new(orders.seed));
    let (mut last, mut stall) = (Instant::now(), Duration::ZERO);
    let body = |step: &mut Step<'_>, model: &Model| learn(step, model, &digits, orders, was_spare);
    while let Some(learned) = comm.step(orders.steps, &mut model, body)? {
        model.0.grads.copy_from_slice(learned.gradient.as_slice());
        model.0.descend();
        stall = stall.max(last.elapsed());
        last = Instant::now();
        say(&Report::Step { step: StepId(learned.step), rank, loss: learned.loss });
    }
    say(&Report::Done {
        rank,
        steps: comm.steps_committed(),
        accuracy: accuracy(&model.0.params, &digits.held_out),
        hash: ParamsHash::of(&model.0.params),
        stall_us: stall.as_micros() as u64,
    });
    Ok(())
}

/// A function of the state, the step's number and the rank: a newcomer computes the same. Only when things happen
/// differs in the step of the kill, never what is computed.
fn learn(
    step: &mut Step<'_>,
    model: &Model,
    digits: &Digits,
    orders: &Orders,
    was_spare: bool,
) -> Result<Learned, Error> {
    let index = step.index();
    let rank = step.comm.rank().unwrap_or_default();
    let sampling = Sampling {
        seed: orders.seed,
        images: digits.train.len(),
        world_size: step.comm.world_size(),
        batch: BATCH,
    };
    let mut learner = model.0.clone();
    let loss = learner.learn(&digits.train, &sampling.shard(StepId(index), rank));
    let is_kill_step = orders.kill_step == Some(index);
    if is_kill_step && orders.late_rank == Some(rank.0) && !was_spare {
        come_late(step.comm);
    }
    let work = step.comm.start_all_reduce(Buffer::from_slice(&learner.grads), ReduceOp::Avg)?;
    if is_kill_step {
        say(&Report::InFlight { step: StepId(index), rank });
    }
    let (gradient, _) = work.wait()?;
    if is_kill_step {
        say(&Report::Milestone { milestone: Milestone::Resumed, rank, at_us: now_us() });
    }
    Ok(Learned { step: index, loss, gradient })
}

/// Keeps the others' all-reduce open until the death is known here: no all-reduce is over while a rank has not come.
fn come_late(comm: &Communicator) {
    // The world forms in the first epoch. Compared with the epoch of now, a death that is known already would be waited
    // for in vain.
    let since = Instant::now();
    while comm.epoch() <= Epoch(1) && since.elapsed() < LATE_AT_MOST {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// One write a line: a process that is killed leaves no half of one.
fn say(report: &Report) {
    // Nobody reads any more: the demo is gone, and this process is about to be.
    let _ = std::io::stdout().lock().write_all(format!("{report}\n").as_bytes());
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// The error with its sources.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
