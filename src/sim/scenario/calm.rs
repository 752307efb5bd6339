//! The draw of fences that nobody died for: a coordinator that is started again, links that break. A repair then hands
//! results on between ranks that all live, and the one death within the promise is still to come.

use phalanx_core::policy::Policy;
use phalanx_core::units::LINK_SLOTS;

use super::{Fault, Scenario, Trap, When};
use crate::sim::random::{Random, mix};

/// Seeds from here on have this draw on top of the wide one.
pub const CALM_FROM: u64 = 300_000_000;

impl Scenario {
    pub(super) fn disturb_calmly(&mut self) {
        let pauses = [None, Some(LINK_SLOTS), Some(LINK_SLOTS), Some(LINK_SLOTS + 2)];
        self.pause_at = Random::new(mix(&[self.seed, 13])).pick(&pauses);
        let mut r = Random::new(mix(&[self.seed, 12]));
        if r.chance(50) {
            self.rules.retain_bytes = 0;
        }
        self.trees = r.chance(40);
        self.reduces = self.rules.policy != Policy::Replace && r.chance(50);
        if self.odd.is_none() {
            self.asynchronous |= r.chance(30);
            self.waits = self.asynchronous && r.chance(60);
        }
        if r.chance(60) {
            self.faults.clear();
            self.traps.clear();
        }
        let n = u64::from(self.rules.world_size);
        let horizon = self.think_us_max * u64::from(self.steps) * 3 + self.delay_us_max * 60 + 2_000;
        for k in 0..r.pick(&[1u64, 1, 1, 2]) {
            let one = r.below(n);
            let other = (one + 1 + r.below(n.max(2) - 1)) % n;
            let fault = r.pick(&[Fault::RestartCoordinator, Fault::BreakLink(one as u32, other as u32)]);
            if r.chance(50) {
                self.faults.push((500 + r.below(horizon), fault));
            } else {
                let when = r.pick(&[When::Result(1), When::Ahead, When::Midway, When::Midway]);
                self.traps.push(Trap { when, epoch_min: k + 1, after_us: 0, fault });
            }
        }
        if r.chance(70) {
            let when = r.pick(&[When::Ahead, When::Ahead, When::Ahead, When::Midway]);
            let any = Fault::KillRank(r.below(n) as u32);
            let fault = r.pick(&[Fault::KillHolder, Fault::KillHolder, any]);
            let after_us = r.pick(&[0, 0, self.delay_us_max * 5]);
            self.traps.push(Trap { when, epoch_min: 2, after_us: r.below(after_us + 1), fault });
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }
}
