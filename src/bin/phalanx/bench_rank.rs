//! `phalanx bench-rank`: what each rank of `phalanx bench` runs. Not for people.

use std::ffi::OsString;
use std::time::Instant;

use phalanx::core::algorithms::select::{Reproducibility, choose_for};
use phalanx::core::spec::{Algorithm, Collective, Dtype, Spec};
use phalanx::{Buffer, Communicator, Element, Error, Rank, ReduceOp};

use crate::bench::Row;
use crate::options::{self, Takes};

const OPTIONS: &[options::Option_] = &[
    ("dtype", Takes::Value, "element type"),
    ("sizes", Takes::Value, "bytes, separated by commas"),
    ("ops-per-step", Takes::Value, "ops between two commits"),
    ("seconds", Takes::Value, "time for a size"),
    ("steps-min", Takes::Value, "steps measured at least"),
    ("algo", Takes::Value, "algorithm"),
    ("steps", Takes::Flag, "run inside steps"),
    ("pin", Takes::Flag, "stay on one core"),
];
/// Steps measured at most.
const BLOCKS_MAX: u64 = 4000;

/// Takes part in the measurement; rank 0 tells the rows.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse("phalanx bench-rank COLLECTIVE", OPTIONS, args)? else { return Ok(0) };
    if options.has("pin") {
        pin()?;
    }
    let collective = options.words.first().ok_or("no collective")?.parse().map_err(|e| format!("{e}"))?;
    let sizes = options.text("sizes").unwrap_or_default().split(',').map(str::parse::<u64>);
    let task = RankTask {
        collective,
        algorithm: options.text("algo").map(|_| options.get("algo", Algorithm::Direct)).transpose()?,
        sizes: sizes.collect::<Result<_, _>>().map_err(|e| format!("--sizes: {e}"))?,
        ops: options.get("ops-per-step", 16)?,
        seconds: options.get("seconds", 0.5)?,
        steps_min: options.get("steps-min", 1)?,
        in_steps: options.has("steps"),
    };
    let result = match options.get("dtype", Dtype::F32)? {
        Dtype::F32 => task.run::<f32>(),
        Dtype::F64 => task.run::<f64>(),
        Dtype::F16 => task.run::<half::f16>(),
        Dtype::BF16 => task.run::<half::bf16>(),
        Dtype::I8 => task.run::<i8>(),
        Dtype::U8 => task.run::<u8>(),
        Dtype::I32 => task.run::<i32>(),
        Dtype::U32 => task.run::<u32>(),
        Dtype::I64 => task.run::<i64>(),
        Dtype::U64 => task.run::<u64>(),
    };
    result.map(|()| 0).map_err(|e| e.to_string())
}

struct RankTask {
    collective: Collective,
    algorithm: Option<Algorithm>,
    sizes: Vec<u64>,
    ops: usize,
    seconds: f64,
    steps_min: u64,
    in_steps: bool,
}

/// The memory of one op; `input` only where it is not in place.
struct Pair<T> {
    input: Buffer<T>,
    output: Buffer<T>,
}

/// An element made of a small number, the same in every type.
trait Small: Element + PartialEq {
    fn small(value: u8) -> Self;
}

macro_rules! small {
    ($($t:ty => $make:expr),* $(,)?) => {$(
        impl Small for $t {
            fn small(value: u8) -> Self {
                ($make)(value)
            }
        }
    )*};
}
small! {
    f32 => f32::from, f64 => f64::from, u8 => u8::from, i32 => i32::from, u32 => u32::from, i64 => i64::from,
    u64 => u64::from, half::f16 => half::f16::from, half::bf16 => half::bf16::from, i8 => |v: u8| v as i8,
}

impl RankTask {
    fn run<T: Small>(&self) -> Result<(), Error> {
        let mut comm = Communicator::from_env()?;
        if comm.rank().is_none() {
            return stand_by(&mut comm);
        }
        for &bytes in &self.sizes {
            let row = self.measure::<T>(&mut comm, bytes)?;
            if comm.rank() == Some(Rank(0)) {
                println!("{}", row.to_line());
            }
        }
        Ok(())
    }

    /// Elements of the input and of the output of one rank, for a size.
    fn lengths<T>(&self, bytes: u64, n: usize) -> (usize, usize) {
        let elements = bytes as usize / size_of::<T>();
        let part = elements / n;
        match self.collective {
            Collective::AllGather => (part, part * n),
            Collective::ReduceScatter => (part * n, part),
            Collective::AllReduce | Collective::Broadcast | Collective::Reduce => (0, elements),
            Collective::Barrier | Collective::Commit | Collective::State => (0, 0),
        }
    }

    fn measure<T: Small>(&self, comm: &mut Communicator, bytes: u64) -> Result<Row, Error> {
        let n = comm.world_size();
        let (input, output) = self.lengths::<T>(bytes, n as usize);
        let mut pairs: Vec<Pair<T>> = (0..self.ops).map(|_| Pair::written(input, output)).collect();
        let mut warm = [self.block(comm, &mut pairs)?];
        comm.all_reduce(&mut warm, ReduceOp::Max)?;
        if warm[0] < self.seconds {
            // The first block also made the links; where a block takes long, that is no part of it worth a second one.
            warm[0] = warm[0].min(self.block(comm, &mut pairs)?);
            comm.all_reduce(&mut warm, ReduceOp::Max)?;
        }
        let wanted = (self.seconds / warm[0].max(1e-9)) as u64;
        let blocks = wanted.clamp(self.steps_min.min(BLOCKS_MAX), BLOCKS_MAX);
        comm.barrier()?;
        let mut times = Vec::with_capacity(blocks as usize);
        for _ in 0..blocks {
            times.push(self.block(comm, &mut pairs)?);
        }
        comm.all_reduce(&mut times, ReduceOp::Avg)?;
        let per_op = |seconds: f64| seconds * 1e6 / self.ops as f64;
        times.sort_by(f64::total_cmp);
        let last = times.len() - 1;
        let count = input.max(output) as u64;
        let wrong = self.count_wrong(comm, &mut pairs)?;
        let used = count * size_of::<T>() as u64;
        let spec = Spec {
            collective: self.collective,
            dtype: T::DTYPE,
            reduction: ReduceOp::Sum,
            // As the spec has it: of one rank's part where ranks have parts.
            count: if self.collective == Collective::AllGather { input } else { output } as u64,
            root: Rank(0),
            algorithm: Algorithm::Direct,
        };
        let chosen = choose_for(&spec, n, Reproducibility::Canonical);
        Ok(Row {
            algorithm: self.algorithm.unwrap_or(chosen).name().to_owned(),
            bytes: used,
            count,
            median_us: per_op(times[last / 2]),
            p99_us: per_op(times[(last * 99).div_ceil(100)]),
            wrong,
        })
    }

    /// All buffers once, and the commit; the seconds it took here.
    fn block<T: Small>(&self, comm: &mut Communicator, pairs: &mut [Pair<T>]) -> Result<f64, Error> {
        let begun = Instant::now();
        if self.in_steps {
            comm.step(u64::MAX, &mut (), |step, ()| self.each(step.comm, pairs))?;
        } else {
            self.each(comm, pairs)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn each<T: Small>(&self, comm: &mut Communicator, pairs: &mut [Pair<T>]) -> Result<(), Error> {
        pairs.iter_mut().try_for_each(|pair| self.one(comm, pair))
    }

    fn one<T: Small>(&self, comm: &mut Communicator, pair: &mut Pair<T>) -> Result<(), Error> {
        let Pair { input, output } = pair;
        let contributors = match (self.collective, self.algorithm) {
            (Collective::AllReduce, None) => comm.all_reduce_buffer(output, ReduceOp::Sum),
            (Collective::AllReduce, Some(by)) => comm.all_reduce_by(output, ReduceOp::Sum, by),
            (Collective::AllGather, None) => comm.all_gather_buffer(input, output),
            (Collective::AllGather, Some(by)) => comm.all_gather_by(input, output, by),
            (Collective::ReduceScatter, None) => comm.reduce_scatter_buffer(input, output, ReduceOp::Sum),
            (Collective::ReduceScatter, Some(by)) => comm.reduce_scatter_by(input, output, ReduceOp::Sum, by),
            (Collective::Broadcast, None) => comm.broadcast_buffer(output, Rank(0)),
            (Collective::Broadcast, Some(by)) => comm.broadcast_by(output, Rank(0), by),
            (Collective::Barrier | Collective::Reduce | Collective::Commit | Collective::State, _) => {
                comm.barrier()
            }
        };
        contributors.map(drop)
    }

    /// Runs the op once on known values; elements that are not what they should be, over all ranks.
    fn count_wrong<T: Small>(&self, comm: &mut Communicator, pairs: &mut [Pair<T>]) -> Result<u64, Error> {
        let n = comm.world_size() as usize;
        let rank = comm.rank().map_or(0, Rank::index);
        let own = pattern(|at| given(rank, at, n), n);
        for pair in &mut *pairs {
            let values = if pair.input.is_empty() { &mut pair.output } else { &mut pair.input };
            writable(values)?.iter_mut().zip(own.iter().cycle()).for_each(|(value, own)| *value = *own);
        }
        self.block(comm, pairs)?;
        let sum = |at: usize| (0..n).map(|r| given(r, at, n)).sum::<u8>();
        let mut wrong = 0;
        for pair in &*pairs {
            let output = pair.output.as_slice();
            // Runs of the output, each with what repeats in it.
            let (run, patterns) = match self.collective {
                Collective::AllReduce | Collective::Reduce => (output.len(), vec![pattern(sum, n)]),
                Collective::ReduceScatter => {
                    let start = rank * output.len();
                    (output.len(), vec![pattern(|at| sum(start + at), n)])
                }
                Collective::AllGather => {
                    (pair.input.len(), (0..n).map(|r| pattern(|at| given(r, at, n), n)).collect())
                }
                Collective::Broadcast | Collective::Barrier | Collective::Commit | Collective::State => {
                    (output.len(), vec![pattern(|at| given(0, at, n), n)])
                }
            };
            for (run, pattern) in output.chunks(run.max(1)).zip(&patterns) {
                let pairs = run.iter().zip(pattern.iter().cycle());
                wrong += pairs.filter(|(value, expected)| value != expected).count() as u64;
            }
        }
        let mut total = [wrong];
        comm.all_reduce(&mut total, ReduceOp::Sum)?;
        for pair in pairs {
            // Sums of sums would run out of the type's range.
            writable(&mut pair.output)?.fill(T::small(0));
        }
        Ok(total[0])
    }
}

/// Largest number that a rank puts in: small enough for a sum over all ranks to be exact in every type.
fn given_max(n: usize) -> usize {
    (100 / n.max(1)).clamp(1, 7)
}

/// What a rank puts in.
fn given(rank: usize, at: usize, n: usize) -> u8 {
    ((rank * 3 + at) % (given_max(n) + 1)) as u8
}

/// One period of what is given, or made of it.
fn pattern<T: Small>(value: impl Fn(usize) -> u8, n: usize) -> Vec<T> {
    (0..=given_max(n)).map(|at| T::small(value(at))).collect()
}

impl<T: Small> Pair<T> {
    /// Zeroes, written once, so that no page is one that the kernel has yet to find.
    fn written(input: usize, output: usize) -> Self {
        let mut pair = Self { input: Buffer::zeroed(input), output: Buffer::zeroed(output) };
        for buffer in [&mut pair.input, &mut pair.output] {
            // A buffer that no op has seen is not retained.
            if let Ok(values) = buffer.as_mut_slice() {
                values.fill(T::small(0));
            }
        }
        pair
    }
}

fn writable<T: Small>(buffer: &mut Buffer<T>) -> Result<&mut [T], Error> {
    buffer.as_mut_slice().map_err(|e| Error::Size { call: "bench", what: e.to_string() })
}

/// Binds this process, and the threads it starts from now on, to core `rank % cores`; a spare stays free.
fn pin() -> Result<(), String> {
    let rank = phalanx::config::Config::from_env().ok().and_then(|c| c.rank).map(|rank| rank as usize);
    let (Some(rank), Ok(cores)) = (rank, std::thread::available_parallelism()) else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    set.set(rank % cores);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|e| format!("cannot stay on core {}: {e}", rank % cores))
}

/// A spare waits until the run is over.
fn stand_by(comm: &mut Communicator) -> Result<(), Error> {
    let what = "a rank died during the measurement; the numbers are void".to_owned();
    comm.step(u64::MAX, &mut (), |_, ()| Err::<(), _>(Error::Size { call: "bench", what })).map(drop)
}
