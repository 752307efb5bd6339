//! `phalanx bench overhead`: what it costs that a rank can be replaced. Worlds with policy replace (a commit after
//! every step) and with policy abort take turns; the ratio is taken pair by pair.

use std::time::{Duration, Instant};

use phalanx::core::policy::{Policy, Rules};
use phalanx::core::spec::Collective;

use crate::bench::{Row, Task};
use crate::options::Options;

/// Sizes that are compared unless named.
const SIZES: [u64; 3] = [1 << 10, 1 << 20, 64 << 20];
/// A round that takes longer says that it is over.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Resamples of the bootstrap.
const RESAMPLES: usize = 4000;

/// Measures and prints.
pub fn run(options: &Options) -> Result<i32, String> {
    let rounds: usize = options.get("rounds", 15)?;
    if rounds == 0 {
        return Err("--rounds 0: one pair of runs at least".to_owned());
    }
    let mut replace = Task::new(Collective::AllReduce, options)?;
    // Rounds are what is repeated; a step of large ops is long enough by itself.
    replace.steps_min = 1;
    if options.text("min").is_none() && options.text("max").is_none() {
        replace.sizes = SIZES.to_vec();
    }
    replace.world.rules = Rules { policy: Policy::Replace, ..replace.world.rules.clone() };
    replace.world.spares = replace.world.spares.max(1);
    // Where the kernel puts the ranks matters more than what is measured here; so they stay where they are put, and
    // both worlds have the same processes.
    replace.pin = true;
    let mut abort = replace.clone();
    abort.world.rules = Rules { policy: Policy::Abort, ..abort.world.rules.clone() };
    let mut overheads = vec![Vec::with_capacity(rounds); replace.sizes.len()];
    for round in 0..rounds {
        let begun = Instant::now();
        // Whoever goes first finds the other state of the machine: take turns.
        let (with, without) = if round % 2 == 0 {
            let with = replace.measure(|_| {})?;
            (with, abort.measure(|_| {})?)
        } else {
            let without = abort.measure(|_| {})?;
            (replace.measure(|_| {})?, without)
        };
        for (list, (with, without)) in overheads.iter_mut().zip(with.iter().zip(&without)) {
            list.push(overhead(with, without)?);
        }
        if begun.elapsed() > SILENCE_MAX {
            eprintln!("round {} of {rounds}: {:.1} s", round + 1, begun.elapsed().as_secs_f64());
        }
    }
    let json = options.has("json");
    for (bytes, list) in replace.sizes.iter().zip(&mut overheads) {
        print(&replace, *bytes, list, json);
    }
    Ok(0)
}

/// How much longer an op takes, as a part of the time without.
fn overhead(with: &Row, without: &Row) -> Result<f64, String> {
    if with.wrong + without.wrong > 0 {
        return Err(format!("{} values were wrong", with.wrong + without.wrong));
    }
    Ok(with.median_us / without.median_us - 1.0)
}

fn print(task: &Task, bytes: u64, list: &mut [f64], json: bool) {
    let (low, high) = interval(list);
    let middle = median(list);
    let (ranks, transport, rounds) = (task.world.ranks, task.transport, list.len());
    let ops = task.ops_per_step;
    if json {
        println!(
            "{{\"bench\":\"overhead\",\"op\":\"all_reduce\",\"ranks\":{ranks},\"transport\":\"{transport}\",\
             \"bytes\":{bytes},\"ops_per_step\":{ops},\"rounds\":{rounds},\"median\":{middle:.5},\
             \"low\":{low:.5},\"high\":{high:.5}}}"
        );
    } else {
        println!(
            "{bytes:>12} bytes: {:+.2} % of the time without (95 %: {:+.2} to {:+.2}), {rounds} rounds, {ranks} ranks, \
             {transport}, commit every {ops} ops",
            middle * 100.0,
            low * 100.0,
            high * 100.0
        );
    }
}

/// Median; the list is sorted by it.
fn median(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    let middle = list.len() / 2;
    if list.len() % 2 == 1 { list[middle] } else { (list[middle - 1] + list[middle]) / 2.0 }
}

/// The 95 % interval of the median by the percentile bootstrap.
fn interval(list: &[f64]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<f64> =
                (0..list.len()).map(|_| list[(next(&mut state) % list.len() as u64) as usize]).collect();
            median(&mut sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES * 25 / 1000], medians[RESAMPLES * 975 / 1000 - 1])
}

/// Numbers for resampling, the same in every run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_agreement() {
        let mut wide: Vec<f64> = (0..15).map(f64::from).collect();
        let (low, high) = interval(&wide);
        let middle = median(&mut wide);
        assert!((middle - 7.0).abs() < 1e-9);
        assert!(low < middle && middle < high && high - low > 2.0, "{low} {high}");
        assert_eq!(interval(&[2.5; 9]), (2.5, 2.5));
    }
}
