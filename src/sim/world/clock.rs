//! The clock of one process: it begins anywhere and runs a little fast or slow.

use crate::sim::random::Random;

/// A local clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    begins_ms: u64,
    /// Millionths by which it is fast; negative: slow.
    drift_ppm: i64,
}

impl Clock {
    /// Any clock that is at most so much fast or slow; without drift the clock of the world.
    pub(super) fn draw(drift_ppm_max: u64, random: &mut Random) -> Self {
        if drift_ppm_max == 0 {
            return Self::default();
        }
        let drift_ppm = random.between(0, 2 * drift_ppm_max) as i64 - drift_ppm_max as i64;
        Self { begins_ms: random.below(1_000_000_000), drift_ppm }
    }

    /// What it shows.
    pub(super) fn ms(self, now_us: u64) -> u64 {
        self.begins_ms + (u128::from(now_us) * self.rate() / 1_000_000 / 1_000) as u64
    }

    /// When it shows so much, at the earliest.
    pub(super) fn at_us(self, ms: u64) -> u64 {
        let us = u128::from(ms.saturating_sub(self.begins_ms)) * 1_000;
        (us * 1_000_000).div_ceil(self.rate()).min(u128::from(u64::MAX)) as u64
    }

    fn rate(self) -> u128 {
        u128::from(1_000_000_u64.saturating_add_signed(self.drift_ppm).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_shows_at_a_time_is_the_time_asked_for() {
        let mut random = Random::new(1);
        for drift in [0, 100, 50_000] {
            let clock = Clock::draw(drift, &mut random);
            for ms in [0, 1, 7, 1_000, 123_456] {
                let ms = clock.begins_ms + ms;
                assert_eq!(clock.ms(clock.at_us(ms)), ms, "{clock:?}");
            }
            let seconds = clock.ms(10_000_000) - clock.begins_ms;
            assert!(seconds.abs_diff(10_000) <= 10_000 * drift / 1_000_000 + 1, "{clock:?} {seconds}");
        }
    }
}
