//! Seeded randomness: one seed gives one run on any machine.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; different seeds give unrelated sequences.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.bits() % bound }
    }

    /// A number in `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `percent` of the calls.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `values`.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<V: Copy>(&mut self, values: &[V]) -> V {
        values[self.below(values.len() as u64) as usize]
    }
}

/// A value that depends on all of `parts`, for data that every rank can compute again.
#[must_use]
pub fn mix(parts: &[u64]) -> u64 {
    let mut random = Random::new(0x5bd1_e995);
    for part in parts {
        random = Random::new(random.bits() ^ part.wrapping_mul(0x2545_f491_4f6c_dd1d));
    }
    random.bits()
}
