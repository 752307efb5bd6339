//! Which images a rank learns from in a step: a pure function of seed, step and rank.

use crate::core::ids::{Rank, StepId};
use crate::demo::random::Random;

/// Deals the training images to steps and ranks: shuffled once per pass over the data, then dealt in order, so within
/// a pass no image is used twice, by whatever rank.
///
/// A newcomer that takes a seat in the middle of the run deals itself the same images as the rank it replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// Seed of the shuffles.
    pub seed: u64,
    /// Training images, at least one.
    pub images: usize,
    /// Ranks that share a step, at least one.
    pub world_size: u32,
    /// Images of one rank in one step, at least one.
    pub batch: usize,
}

impl Sampling {
    /// Indices into the training images, `batch` of them, for one rank in one step; steps count from 0.
    ///
    /// # Panics
    /// When the rank is outside the world, or one of the sizes is zero.
    #[must_use]
    pub fn shard(&self, step: StepId, rank: Rank) -> Vec<usize> {
        assert!(rank.0 < self.world_size, "{rank} outside a world of {}", self.world_size);
        assert!(self.images > 0, "no images to deal");
        assert!(self.batch > 0, "an empty batch has no mean");
        let images = self.images as u64;
        let first = (step.0 * u64::from(self.world_size) + u64::from(rank.0)) * self.batch as u64;
        let mut shuffled = Vec::new();
        let mut shuffled_pass = None;
        (first..first + self.batch as u64)
            .map(|dealt| {
                let (pass, place) = (dealt / images, dealt % images);
                if shuffled_pass != Some(pass) {
                    shuffled = self.shuffle(pass);
                    shuffled_pass = Some(pass);
                }
                shuffled[place as usize]
            })
            .collect()
    }

    /// Fisher and Yates: every order of the images is equally likely.
    fn shuffle(&self, pass: u64) -> Vec<usize> {
        let mut random = Random::new(self.seed, pass);
        let mut order: Vec<usize> = (0..self.images).collect();
        for place in (1..order.len()).rev() {
            order.swap(place, random.below(place + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ranks(sampling: &Sampling, step: u64) -> Vec<usize> {
        (0..sampling.world_size).flat_map(|rank| sampling.shard(StepId(step), Rank(rank))).collect()
    }

    #[test]
    fn a_pass_uses_every_image_once() {
        let sampling = Sampling { seed: 3, images: 120, world_size: 4, batch: 5 };
        let passes: Vec<Vec<usize>> = (0..2)
            .map(|pass| (0..6).flat_map(|step| all_ranks(&sampling, pass * 6 + step)).collect())
            .collect();
        for pass in &passes {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..120).collect::<Vec<_>>());
        }
        assert_ne!(passes[0], passes[1], "each pass has its own order");
    }

    #[test]
    fn a_shard_may_span_passes_and_depends_on_everything() {
        let sampling = Sampling { seed: 3, images: 7, world_size: 2, batch: 5 };
        let dealt: Vec<usize> = (0..7).flat_map(|step| all_ranks(&sampling, step)).collect();
        for pass in dealt.chunks(7) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        let wide = Sampling { images: 1_438, batch: 32, ..sampling };
        let shard = wide.shard(StepId(9), Rank(1));
        assert_eq!(shard, wide.shard(StepId(9), Rank(1)));
        assert_ne!(shard, wide.shard(StepId(9), Rank(0)));
        assert_ne!(shard, wide.shard(StepId(8), Rank(1)));
        assert_ne!(shard, Sampling { seed: 4, ..wide }.shard(StepId(9), Rank(1)));
    }

    #[test]
    #[should_panic(expected = "r2 outside a world of 2")]
    fn a_rank_outside_the_world_is_a_bug() {
        let _ = Sampling { seed: 3, images: 7, world_size: 2, batch: 5 }.shard(StepId(0), Rank(2));
    }
}
