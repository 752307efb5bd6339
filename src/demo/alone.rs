//! The same training in one process: what a distributed run must equal, bit for bit.

use crate::core::ids::{Rank, StepId};
use crate::demo::digits::Digits;
use crate::demo::network::Network;
use crate::demo::sampling::Sampling;

/// Images of one rank in one step of the demo: 1 to 2 ms of work in a release build.
pub const BATCH: usize = 256;

/// The network after `steps` steps of `sampling.world_size` ranks, with no rank and no link involved.
///
/// The gradients are averaged in the canonical order of the library's reproducible mode, so an all-reduce in that
/// mode gives these bits.
#[must_use]
pub fn train_alone(digits: &Digits, sampling: &Sampling, steps: u64) -> Network {
    let mut network = Network::new(sampling.seed);
    for step in (0..steps).map(StepId) {
        step_alone(&mut network, digits, sampling, step);
    }
    network
}

fn step_alone(network: &mut Network, digits: &Digits, sampling: &Sampling, step: StepId) {
    let grads = (0..sampling.world_size)
        .map(|rank| {
            network.learn(&digits.train, &sampling.shard(step, Rank(rank)));
            network.grads.clone()
        })
        .collect();
    network.grads = canonical_mean(grads);
    network.descend();
}

/// The mean of equally long vectors, one a rank: added along the canonical tree over the ranks, divided at the end.
///
/// The tree: with `p` the largest power of two up to `n`, the first `n - p` leaves are sums of two neighbours, the
/// others single ranks; then neighbouring groups are added, level by level, the lower one on the left.
///
/// # Panics
/// When there is no vector, or their lengths differ.
#[must_use]
pub fn canonical_mean(ranks: Vec<Vec<f32>>) -> Vec<f32> {
    assert!(!ranks.is_empty(), "the mean of nothing");
    let count = ranks.len();
    let paired = count - (1 << count.ilog2());
    let mut rest = ranks.into_iter();
    let mut sums: Vec<Vec<f32>> = rest.by_ref().take(2 * paired).collect();
    sums = add_neighbours(sums);
    sums.extend(rest);
    while sums.len() > 1 {
        sums = add_neighbours(sums);
    }
    let mut mean = sums.swap_remove(0);
    for value in &mut mean {
        *value /= count as f32;
    }
    mean
}

fn add_neighbours(sums: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let mut sums = sums.into_iter();
    let mut added = Vec::new();
    while let (Some(mut left), Some(right)) = (sums.next(), sums.next()) {
        assert_eq!(left.len(), right.len(), "ranks bring vectors of one length");
        for (sum, value) in left.iter_mut().zip(right) {
            *sum += value;
        }
        added.push(left);
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::network::{ParamsHash, accuracy};

    #[test]
    fn the_mean_follows_the_tree() {
        let inputs: Vec<f32> =
            (0..7).map(|rank| 1.0 + rank as f32 * 0.123_456_7e-3).map(|x| x * x * 3.3).collect();
        let mean = |n: usize| canonical_mean(inputs[..n].iter().map(|&x| vec![x]).collect())[0];
        let [a, b, c, d, e, f, g] = inputs[..] else { panic!("seven inputs") };
        assert_eq!(mean(1), a);
        assert_eq!(mean(2), (a + b) / 2.0);
        assert_eq!(mean(3), ((a + b) + c) / 3.0);
        assert_eq!(mean(4), ((a + b) + (c + d)) / 4.0);
        assert_eq!(mean(5), (((a + b) + c) + (d + e)) / 5.0);
        assert_eq!(mean(6), (((a + b) + (c + d)) + (e + f)) / 6.0);
        assert_eq!(mean(7), (((a + b) + (c + d)) + ((e + f) + g)) / 7.0);
    }

    #[test]
    fn order_shows_in_the_bits() {
        // 2^24 + 1 is not an f32: which partial sums are formed decides what is left.
        let big = 16_777_216.0;
        assert_eq!(canonical_mean(vec![vec![big], vec![1.0], vec![1.0], vec![1.0]]), [(big + 2.0) / 4.0]);
        assert_eq!(canonical_mean(vec![vec![1.0], vec![big], vec![1.0]]), [big / 3.0]);
        assert_eq!(canonical_mean(vec![vec![1.0], vec![1.0], vec![big]]), [(big + 2.0) / 3.0]);
    }

    #[test]
    fn four_ranks_learn_the_digits() {
        let digits = Digits::load();
        let sampling = Sampling { seed: 1, images: digits.train.len(), world_size: 4, batch: BATCH };
        let network = train_alone(&digits, &sampling, 50);
        let right = accuracy(&network.params, &digits.held_out);
        assert!(right > 0.93, "{right}");
        assert!(
            accuracy(&Network::new(1).params, &digits.held_out) < 0.3,
            "an untrained network knows nothing"
        );
    }

    #[test]
    fn the_bits_are_these() {
        let digits = Digits::load();
        let sampling = Sampling { seed: 1, images: digits.train.len(), world_size: 3, batch: 4 };
        let network = train_alone(&digits, &sampling, 5);
        // Recorded once, in debug and release alike: a change here changes what every recorded run is compared with.
        assert_eq!(ParamsHash::of(&network.params).to_string(), "b991783bbc5958aa");
    }

    #[test]
    fn parameters_velocity_and_step_are_the_whole_state() {
        let digits = Digits::load();
        let sampling = Sampling { seed: 2, images: digits.train.len(), world_size: 2, batch: 4 };
        let half_way = train_alone(&digits, &sampling, 3);
        let mut newcomer = Network { grads: vec![f32::NAN; half_way.grads.len()], ..half_way };
        for step in (3..6).map(StepId) {
            step_alone(&mut newcomer, &digits, &sampling, step);
        }
        assert_eq!(newcomer, train_alone(&digits, &sampling, 6));
    }
}
