//! Random numbers that are the same on every machine.

/// A splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014): a counter and a mixing function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream number `stream` of `seed`. Different streams of one seed share no visible structure.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        // The stream number goes through the mixer before it meets the seed: else seed 1, stream 0 and seed 0,
        // stream 1 would be neighbours on one and the same sequence.
        Self(seed ^ Self(stream).draw())
    }

    /// The next 64 bits.
    #[must_use]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`; the bias is below `bound / 2^64`.
    ///
    /// # Panics
    /// When `bound` is zero.
    #[must_use]
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "no number is below zero");
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }

    /// A number in `[-1, 1)`, a multiple of 2^-23, exact in f32.
    #[must_use]
    pub fn signed_unit(&mut self) -> f32 {
        (self.draw() >> 40) as f32 * (2.0 / 16_777_216.0) - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first three outputs of splitmix64 from state 1234567, as the reference implementation prints them.
        let mut random = Random(1_234_567);
        let drawn = [random.draw(), random.draw(), random.draw()];
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn bounds_hold_and_streams_differ() {
        let mut random = Random::new(7, 0);
        let mut seen = [false; 10];
        for _ in 0..1_000 {
            seen[random.below(10)] = true;
            let unit = random.signed_unit();
            assert!((-1.0..1.0).contains(&unit), "{unit}");
        }
        assert_eq!(seen, [true; 10]);
        assert_ne!(Random::new(7, 1).draw(), Random::new(7, 0).draw());
        assert_ne!(Random::new(1, 0).draw(), Random::new(0, 1).draw());
    }
}
