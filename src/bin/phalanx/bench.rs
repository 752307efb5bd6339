//! `phalanx bench`: measures a collective on this machine and prints a table or one JSON object a line.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use phalanx::core::policy::Policy;
use phalanx::core::spec::{Algorithm, Collective, Dtype};
use phalanx::launch::{Line, Output, Stream, World, WorldSpec};

use crate::options::{self, Options, Takes};
use crate::{bench_overhead, world};

const USAGE: &str = "phalanx bench all_reduce|all_gather|reduce_scatter|broadcast|barrier|overhead [OPTIONS]";

/// Options of the measurement itself.
pub const OPTIONS: &[options::Option_] = &[
    ("ops-per-step", Takes::Value, "ops, each on its own buffer, between two commits (16)"),
    ("algo", Takes::Value, "algorithm (chosen by size); a barrier has no choice"),
    ("min", Takes::Value, "smallest size in bytes, K M G are understood (8)"),
    ("max", Takes::Value, "largest size (64M)"),
    ("factor", Takes::Value, "each size is the one before times this (4)"),
    ("dtype", Takes::Value, "element type (f32)"),
    ("seconds", Takes::Value, "time a size is measured for, at least three steps, overhead: one (0.5)"),
    ("rounds", Takes::Value, "overhead: pairs of runs (15)"),
    ("pin", Takes::Flag, "rank r stays on core r modulo cores"),
    ("json", Takes::Flag, "one JSON object a line instead of a table"),
];

/// What is measured one by one.
const MEASURED: &[Collective] = &[
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Barrier,
];
/// All-reduce under two policies.
const OVERHEAD: &str = "overhead";

/// Steps measured at least, whatever the time they take.
const STEPS_MIN: u64 = 3;

/// One measured size.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Algorithm that ran.
    pub algorithm: String,
    /// Bytes of the larger of a rank's two buffers.
    pub bytes: u64,
    /// Elements of it.
    pub count: u64,
    /// Microseconds of an op: a step's time by its ops, mean over ranks, median over steps.
    pub median_us: f64,
    /// The 99th percentile over steps.
    pub p99_us: f64,
    /// Elements with a wrong value, over all ranks.
    pub wrong: u64,
}

impl Row {
    /// As a rank tells it to the launcher.
    pub fn to_line(&self) -> String {
        let Self { algorithm, bytes, count, median_us, p99_us, wrong } = self;
        format!("row {algorithm} {bytes} {count} {median_us} {p99_us} {wrong}")
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("row ")?.split(' ');
        Some(Self {
            algorithm: words.next()?.to_owned(),
            bytes: words.next()?.parse().ok()?,
            count: words.next()?.parse().ok()?,
            median_us: words.next()?.parse().ok()?,
            p99_us: words.next()?.parse().ok()?,
            wrong: words.next()?.parse().ok()?,
        })
    }

    /// Bytes by time, in GB/s (10^9).
    fn algorithm_bandwidth(&self) -> f64 {
        if self.median_us > 0.0 { self.bytes as f64 / self.median_us / 1e3 } else { 0.0 }
    }

    /// What each link would have to carry at the least, in GB/s: comparable between collectives and numbers of ranks.
    fn bus_bandwidth(&self, collective: Collective, ranks: u32) -> f64 {
        let n = f64::from(ranks);
        let factor = match collective {
            Collective::AllReduce => 2.0 * (n - 1.0) / n,
            Collective::AllGather | Collective::ReduceScatter => (n - 1.0) / n,
            Collective::Broadcast
            | Collective::Reduce
            | Collective::Barrier
            | Collective::Commit
            | Collective::State => 1.0,
        };
        self.algorithm_bandwidth() * factor
    }
}

/// What is measured, and in which world.
#[derive(Debug, Clone)]
pub struct Task {
    /// The collective.
    pub collective: Collective,
    /// Its elements.
    pub dtype: Dtype,
    /// A named algorithm, or the one the runtime chooses.
    pub algorithm: Option<Algorithm>,
    /// Sizes in bytes.
    pub sizes: Vec<u64>,
    /// Ops between two commits.
    pub ops_per_step: u32,
    /// Seconds for a size.
    pub seconds: f64,
    /// Steps measured at least.
    pub steps_min: u64,
    /// Each rank stays on one core.
    pub pin: bool,
    /// Ranks, policy, transport.
    pub world: WorldSpec,
    /// Name of the transport between these ranks.
    pub transport: &'static str,
}

impl Task {
    /// What the options ask for.
    pub fn new(collective: Collective, options: &Options) -> Result<Self, String> {
        let (min, max) = (options.bytes("min", 8)?, options.bytes("max", 64 << 20)?);
        let factor: u64 = options.get("factor", 4)?;
        if factor < 2 || min == 0 || min > max {
            return Err("sizes go from --min to --max (min 1) by --factor (2 or more)".to_owned());
        }
        let sizes = if collective == Collective::Barrier {
            vec![0]
        } else {
            std::iter::successors(Some(min), |s| s.checked_mul(factor).filter(|s| *s <= max)).collect()
        };
        if collective == Collective::Barrier && options.text("algo").is_some() {
            return Err("--algo: a barrier runs by the algorithm that the number of ranks chooses".to_owned());
        }
        let ops_per_step: u32 = options.get("ops-per-step", 16)?;
        if ops_per_step == 0 {
            return Err("--ops-per-step 0: at least one op makes a step".to_owned());
        }
        let (transport, world) = (world::transport_here(options)?.name(), world::spec(options, Vec::new())?);
        Ok(Self {
            collective,
            dtype: options.get("dtype", Dtype::F32)?,
            algorithm: options.text("algo").map(|_| options.get("algo", Algorithm::Direct)).transpose()?,
            sizes,
            ops_per_step,
            seconds: options.get("seconds", 0.5)?,
            steps_min: STEPS_MIN,
            pin: options.has("pin"),
            world,
            transport,
        })
    }

    /// Runs the world once; `tell` gets every row as it comes.
    pub fn measure(&self, tell: impl Fn(&Row) + Send + Sync + 'static) -> Result<Vec<Row>, String> {
        let mut spec = self.world.clone();
        spec.respawn = false;
        spec.command = self.rank_command()?;
        let rows = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&rows);
        spec.output = Output::Pipe(Arc::new(move |line: Line| match Row::from_line(&line.text) {
            Some(row) if line.stream == Stream::Out => {
                tell(&row);
                if let Ok(mut rows) = taken.lock() {
                    rows.push(row);
                }
            }
            Some(_) | None => eprintln!("[{}] {}", line.label, line.text),
        }));
        let world = World::spawn(spec, |_, _| {}).map_err(|e| e.to_string())?;
        let code = world.wait();
        // Its threads have handed on every line once the world is dropped.
        drop(world);
        let rows = rows.lock().map(|rows| rows.clone()).unwrap_or_default();
        match code {
            0 if rows.len() == self.sizes.len() => Ok(rows),
            0 => Err(format!("the ranks told {} of {} sizes", rows.len(), self.sizes.len())),
            code => Err(format!("a rank ended with code {code}; its last words stand above")),
        }
    }

    fn rank_command(&self) -> Result<Vec<OsString>, String> {
        let sizes = self.sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let (ops, seconds) = (self.ops_per_step.to_string(), self.seconds.to_string());
        let steps_min = self.steps_min.to_string();
        let mut args = vec!["bench-rank", self.collective.name(), "--dtype", self.dtype.name()];
        args.extend([
            "--sizes",
            &sizes,
            "--ops-per-step",
            &ops,
            "--seconds",
            &seconds,
            "--steps-min",
            &steps_min,
        ]);
        if let Some(algorithm) = self.algorithm {
            args.extend(["--algo", algorithm.name()]);
        }
        if self.pin {
            args.push("--pin");
        }
        if self.world.rules.policy == Policy::Replace {
            args.push("--steps");
        }
        world::own_command(&args)
    }

    fn print_head(&self) {
        println!(
            "# {} {} ranks {} transport {} policy {} ops-per-step {}",
            self.collective,
            self.dtype,
            self.world.ranks,
            self.transport,
            self.world.rules.policy,
            self.ops_per_step
        );
        println!(
            "{:>12} {:>12} {:>6} {:>17} {:>11} {:>11} {:>9} {:>9} {:>7}",
            "bytes", "count", "type", "algorithm", "time us", "p99 us", "algbw", "busbw", "#wrong"
        );
    }

    fn print_row(&self, row: &Row) {
        println!(
            "{:>12} {:>12} {:>6} {:>17} {:>11.2} {:>11.2} {:>9.3} {:>9.3} {:>7}",
            row.bytes,
            row.count,
            self.dtype.name(),
            row.algorithm,
            row.median_us,
            row.p99_us,
            row.algorithm_bandwidth(),
            row.bus_bandwidth(self.collective, self.world.ranks),
            row.wrong
        );
    }

    fn print_json(&self, row: &Row) {
        println!(
            "{{\"op\":\"{}\",\"dtype\":\"{}\",\"ranks\":{},\"transport\":\"{}\",\"policy\":\"{}\",\"algo\":\"{}\",\
             \"bytes\":{},\"median_us\":{:.3},\"p99_us\":{:.3},\"algbw_gb_per_s\":{:.4},\"busbw_gb_per_s\":{:.4},\
             \"wrong\":{}}}",
            self.collective,
            self.dtype,
            self.world.ranks,
            self.transport,
            self.world.rules.policy,
            row.algorithm,
            row.bytes,
            row.median_us,
            row.p99_us,
            row.algorithm_bandwidth(),
            row.bus_bandwidth(self.collective, self.world.ranks),
            row.wrong
        );
    }
}

/// The collective that a word names, if it is measured.
fn named(word: &str) -> Result<Collective, String> {
    MEASURED.iter().copied().find(|collective| collective.name() == word).ok_or_else(|| {
        let names: Vec<_> = MEASURED.iter().map(|c| c.name()).chain([OVERHEAD]).collect();
        format!("`{word}` is not measured; use one of: {}", names.join(", "))
    })
}

/// Measures and prints; exit code 1 when a value was wrong.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, &world::with(OPTIONS), args)? else { return Ok(0) };
    let [word] = options.words.as_slice() else {
        return Err(format!("name one collective; usage: {USAGE}"));
    };
    if word == OVERHEAD {
        return bench_overhead::run(&options);
    }
    let collective = named(word)?;
    let task = Task::new(collective, &options)?;
    let json = options.has("json");
    if !json {
        task.print_head();
    }
    let printer = task.clone();
    let rows =
        task.measure(move |row| if json { printer.print_json(row) } else { printer.print_row(row) })?;
    Ok(i32::from(rows.iter().any(|row| row.wrong > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_through_its_line_and_other_lines_are_none() {
        let row = Row {
            algorithm: "direct".to_owned(),
            bytes: 1024,
            count: 256,
            median_us: 12.25,
            p99_us: 99.5,
            wrong: 3,
        };
        assert_eq!(Row::from_line(&row.to_line()), Some(row));
        for line in ["", "row", "row direct 1 2 3", "rows direct 1 2 3 4 5", "row direct 1 2 x 4 5"] {
            assert_eq!(Row::from_line(line), None, "{line}");
        }
    }

    fn options(words: &[&str]) -> Options {
        let args = words.iter().map(OsString::from).collect();
        options::parse(USAGE, &world::with(OPTIONS), args).unwrap().unwrap()
    }

    #[test]
    fn the_words_that_are_offered_are_those_that_are_taken() {
        let said = named("foo").unwrap_err();
        let (_, offered) = said.split_once("use one of: ").unwrap();
        let offered: Vec<&str> = offered.split(", ").collect();
        let shown: Vec<&str> = USAGE.split([' ', '|']).collect();
        for collective in Collective::ALL.iter().map(|c| c.name()) {
            let is_taken = named(collective).is_ok();
            assert_eq!(offered.contains(&collective), is_taken, "{collective} in {said}");
            assert_eq!(shown.contains(&collective), is_taken, "{collective} in {USAGE}");
        }
        assert_eq!(offered.last(), Some(&OVERHEAD));
    }

    #[test]
    fn a_barrier_takes_no_algorithm_and_the_others_do() {
        let named = options(&["--algo", "direct"]);
        for collective in MEASURED {
            let refused = Task::new(*collective, &named).is_err();
            assert_eq!(refused, *collective == Collective::Barrier, "{collective}");
        }
        assert!(Task::new(Collective::Barrier, &options(&[])).is_ok());
    }

    #[test]
    fn the_transport_that_is_printed_is_the_one_the_ranks_are_told() {
        let task = Task::new(Collective::AllReduce, &options(&["--transport", "tcp"])).unwrap();
        assert_eq!((task.transport, task.world.transport.as_deref()), ("tcp", Some("tcp")));
        let task = Task::new(Collective::AllReduce, &options(&["--transport", "auto"])).unwrap();
        assert_eq!((task.transport, task.world.transport.as_deref()), ("shm", Some("auto")));
        assert!(Task::new(Collective::AllReduce, &options(&["--transport", "pigeon"])).is_err());
    }

    #[test]
    fn bandwidth_counts_what_each_link_carries() {
        let row = Row {
            algorithm: String::new(),
            bytes: 4_000_000,
            count: 1,
            median_us: 1000.0,
            p99_us: 0.0,
            wrong: 0,
        };
        assert!((row.algorithm_bandwidth() - 4.0).abs() < 1e-9);
        assert!((row.bus_bandwidth(Collective::AllReduce, 4) - 6.0).abs() < 1e-9);
        assert!((row.bus_bandwidth(Collective::AllGather, 4) - 3.0).abs() < 1e-9);
        assert!((row.bus_bandwidth(Collective::Broadcast, 4) - 4.0).abs() < 1e-9);
    }
}
