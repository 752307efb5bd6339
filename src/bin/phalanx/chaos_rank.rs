//! `phalanx chaos-rank`: what each rank of `phalanx chaos` runs. Not for people.
//!
//! A loop of all-reduces over data that follows from seed, op and rank alone. Every rank knows what all others put in,
//! so each checks every element of every result by itself.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use phalanx::core::error::{CallError, OpError};
use phalanx::core::wire::message::FailCause;
use phalanx::demo::random::Random;
use phalanx::{Buffer, Communicator, Error, Rank, ReduceOp};

use crate::chaos_report::{Ending, Report, now_us};
use crate::options::{self, Takes};

const OPTIONS: &[options::Option_] = &[
    ("bytes", Takes::Value, "bytes of an all-reduce"),
    ("seed", Takes::Value, "seed of the data"),
    ("ops", Takes::Value, "ops to run (without end)"),
    ("ops-after-loss", Takes::Value, "ops to run from the first one that lacks a rank (without end)"),
    ("steps", Takes::Flag, "each op is a step of its own"),
];
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// Ops reported when the epoch has changed: the one in which it did may be over before it did, then the next is meant.
const DISTURBED_OPS: u32 = 2;
/// Times kept between two reports.
const TIMES_MAX: usize = 4096;

/// Takes part until told to end, by the parent or by an error.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse("phalanx chaos-rank", OPTIONS, args)? else { return Ok(0) };
    let count = options.bytes("bytes", 1024)? as usize / size_of::<u64>();
    let mut rank_loop = RankLoop::new(options.get("seed", 1)?, count);
    let ops = options.get("ops", u64::MAX)?;
    let mut comm = Communicator::from_env().map_err(|e| e.to_string())?;
    let result = if options.has("steps") {
        rank_loop.run_steps(&mut comm, ops)
    } else {
        rank_loop.run_plain(&mut comm, ops, options.get("ops-after-loss", u64::MAX)?)
    };
    if let Err(error) = &result {
        let how = ending(error);
        let ended = Report::Ended { rank: comm.rank(), op: rank_loop.op, how, text: error.to_string() };
        say(&ended);
        return Ok(i32::from(how != Ending::Aborted));
    }
    rank_loop.report_progress(&comm);
    Ok(0)
}

fn say(report: &Report) {
    println!("{}", report.to_line(std::process::id()));
}

fn ending(error: &Error) -> Ending {
    let (Error::Op(OpError::Failed { cause, .. }) | Error::Call(CallError::Broken { cause, .. })) = error
    else {
        let is_out =
            matches!(error, Error::Op(OpError::Evicted { .. }) | Error::Call(CallError::Evicted { .. }));
        return if is_out { Ending::Evicted } else { Ending::Failed };
    };
    if matches!(cause, FailCause::RankLost { .. }) { Ending::Aborted } else { Ending::Failed }
}

/// What one rank puts into one op: `first + i * stride`, so that a sum over ranks is of the same form and costs one
/// addition an element to check. Both are 64 random bits: a part that is missing, doubled, of another op or at another
/// place changes the sum.
#[derive(Clone, Copy, Default)]
struct Line {
    first: u64,
    stride: u64,
}

impl Line {
    fn of(seed: u64, op: u64, rank: Rank) -> Self {
        let mut random = Random::new(seed ^ op.rotate_left(32), u64::from(rank.0));
        Self { first: random.draw(), stride: random.draw() }
    }

    fn sum(seed: u64, op: u64, ranks: &[Rank]) -> Self {
        ranks.iter().map(|rank| Self::of(seed, op, *rank)).fold(Self::default(), |a, b| Self {
            first: a.first.wrapping_add(b.first),
            stride: a.stride.wrapping_add(b.stride),
        })
    }

    fn at(self, index: usize) -> u64 {
        self.first.wrapping_add(self.stride.wrapping_mul(index as u64))
    }

    fn fill(self, values: &mut [u64]) {
        values.iter_mut().enumerate().for_each(|(i, value)| *value = self.at(i));
    }

    /// Elements that differ, and the first of them.
    fn differs(self, values: &[u64]) -> Option<(u64, usize)> {
        // One pass without branches: what is right must be cheap.
        let bits = values.iter().enumerate().fold(0, |bits, (i, value)| bits | (value ^ self.at(i)));
        if bits == 0 {
            return None;
        }
        let wrong = || values.iter().enumerate().filter(|(i, value)| **value != self.at(*i));
        wrong().next().map(|(first, _)| (wrong().count() as u64, first))
    }
}

struct RankLoop {
    seed: u64,
    op: u64,
    values: Buffer<u64>,
    epoch: Option<u64>,
    /// Ops still to report since the epoch changed.
    disturbed: u32,
    contributors: Vec<Rank>,
    times_us: Vec<u64>,
    reported: Instant,
}

/// One op that is over.
struct Done {
    at_us: u64,
    fill_us: u64,
    op_us: u64,
    contributors: Vec<Rank>,
}

impl RankLoop {
    fn new(seed: u64, count: usize) -> Self {
        let mut values = Buffer::zeroed(count);
        // Written once: a spare's first op must not be the first to touch the memory. Nothing is retained yet.
        if let Ok(fresh) = values.as_mut_slice() {
            Line { first: 1, stride: 1 }.fill(fresh);
        }
        let (contributors, times_us) = (Vec::new(), Vec::new());
        Self {
            seed,
            op: 0,
            values,
            epoch: None,
            disturbed: 0,
            contributors,
            times_us,
            reported: Instant::now(),
        }
    }

    /// Each op in a step; the state is the number of steps and what follows from it, so that a newcomer that gets
    /// another state is caught.
    fn run_steps(&mut self, comm: &mut Communicator, ops: u64) -> Result<(), Error> {
        let seed = self.seed;
        let state_at = |op: u64| {
            let Line { first, stride } = Line::of(seed, op, Rank(u32::MAX));
            vec![op, first, stride]
        };
        let mut state = state_at(0);
        loop {
            let done = comm.step(ops, &mut state, |step, state| {
                let rank = step.comm.rank().unwrap_or_default();
                self.op = step.index();
                let should = state_at(self.op);
                if let Some(at) = (0..should.len()).find(|i| state[*i] != should[*i]) {
                    self.report_wrong(rank, 1, at, state[at], should[at]);
                }
                let done = self.reduce(step.comm, rank)?;
                self.check(rank, &done);
                Ok(done)
            })?;
            let Some(done) = done else { return Ok(()) };
            state = state_at(self.op + 1);
            self.after(comm, done);
        }
    }

    /// Contributors are the same at every rank, so all end behind the same op, also after a loss.
    fn run_plain(&mut self, comm: &mut Communicator, ops: u64, mut after_loss: u64) -> Result<(), Error> {
        for op in 0..ops {
            if after_loss == 0 {
                break;
            }
            self.op = op;
            let rank = comm.rank().unwrap_or_default();
            let done = self.reduce(comm, rank)?;
            self.check(rank, &done);
            if done.contributors.len() < comm.world_size() as usize {
                after_loss -= 1;
            }
            self.after(comm, done);
        }
        Ok(())
    }

    fn reduce(&mut self, comm: &mut Communicator, rank: Rank) -> Result<Done, Error> {
        let begun = Instant::now();
        let values = self.values.as_mut_slice();
        let values = values.map_err(|e| Error::Size { call: "chaos", what: e.to_string() })?;
        Line::of(self.seed, self.op, rank).fill(values);
        let filled = Instant::now();
        let contributors = comm.all_reduce_buffer(&mut self.values, ReduceOp::Sum)?;
        let op_us = filled.elapsed().as_micros() as u64;
        Ok(Done { at_us: now_us(), fill_us: (filled - begun).as_micros() as u64, op_us, contributors })
    }

    fn check(&self, rank: Rank, done: &Done) {
        let should = Line::sum(self.seed, self.op, &done.contributors);
        if let Some((elements, at)) = should.differs(self.values.as_slice()) {
            self.report_wrong(rank, elements, at, self.values.as_slice()[at], should.at(at));
        }
    }

    fn report_wrong(&self, rank: Rank, elements: u64, at: usize, is: u64, should: u64) {
        let wrong = Report::Wrong { rank, op: self.op, elements, at: at as u64, is, should };
        say(&wrong);
    }

    fn after(&mut self, comm: &Communicator, done: Done) {
        let (rank, op, epoch) = (comm.rank().unwrap_or_default(), self.op, comm.epoch().0);
        if self.epoch.replace(epoch) != Some(epoch) {
            self.disturbed = DISTURBED_OPS;
        }
        if self.disturbed > 0 {
            self.disturbed -= 1;
            let Done { at_us: done_us, fill_us, .. } = done;
            say(&Report::Disturbed { rank, op, epoch, done_us, fill_us });
        } else if self.times_us.len() < TIMES_MAX {
            self.times_us.push(done.op_us);
        }
        if self.contributors != done.contributors {
            self.contributors.clone_from(&done.contributors);
            say(&Report::Contributors { rank, op, ranks: done.contributors });
        }
        if self.reported.elapsed() >= REPORT_EVERY {
            self.report_progress(comm);
        }
    }

    fn report_progress(&mut self, comm: &Communicator) {
        let Some(rank) = comm.rank() else { return };
        self.times_us.sort_unstable();
        let op_us = self.times_us.get(self.times_us.len() / 2).copied().unwrap_or(0);
        say(&Report::Progress { rank, op: self.op, op_us });
        self.times_us.clear();
        self.reported = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_lines_are_what_ranks_add_up_to_and_any_change_is_seen() {
        let ranks: Vec<Rank> = (0..5).map(Rank).collect();
        let mut sums = vec![0u64; 100];
        for rank in &ranks {
            let mut values = vec![0; 100];
            Line::of(3, 17, *rank).fill(&mut values);
            sums.iter_mut().zip(&values).for_each(|(s, v)| *s = s.wrapping_add(*v));
        }
        let should = Line::sum(3, 17, &ranks);
        assert_eq!(should.differs(&sums), None);
        assert!(
            Line::sum(3, 17, &ranks[1..]).differs(&sums).is_some_and(|(n, _)| n > 90),
            "a part is missing"
        );
        assert!(Line::sum(3, 18, &ranks).differs(&sums).is_some_and(|(n, _)| n > 90), "of another op");
        sums[40] ^= 1;
        assert_eq!(should.differs(&sums), Some((1, 40)));
        sums[40] ^= 1;
        sums.swap(3, 9);
        assert_eq!(should.differs(&sums), Some((2, 3)));
    }
}
