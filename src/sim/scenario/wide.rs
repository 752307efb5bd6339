//! More of everything that a thin moment of a recovery is made of.

use std::collections::BTreeSet;

use phalanx_core::policy::Policy;

use super::{Fault, Scenario, SlowLinks, Trap, When};
use crate::sim::random::{Random, mix};

impl Scenario {
    /// More of everything that a thin moment of a recovery is made of: several losses, hosts of several ranks, links
    /// and programs of unequal speed, faults that wait for what a rank does.
    pub(super) fn widen(&mut self) {
        let mut r = Random::new(mix(&[self.seed, 10]));
        if r.chance(25) {
            self.rules.policy = Policy::Shrink;
        }
        if r.chance(30) {
            self.rules.world_size = self.rules.world_size.max(r.between(5, 8) as u32);
        }
        let n = self.rules.world_size;
        if n >= 4 && r.chance(40) {
            self.ranks_per_host = r.pick(&[2u32, 2, 3, 4]);
        }
        if n >= 4 && r.chance(30) {
            self.rules.domains_lost_max = 2;
        }
        // What is promised for `f` domains needs more of them.
        if n.div_ceil(self.ranks_per_host) <= self.rules.domains_lost_max {
            self.ranks_per_host = 1;
        }
        let hosts: BTreeSet<u32> = self.split.iter().map(|k| k.0 / self.ranks_per_host).collect();
        if hosts.len() <= self.rules.domains_lost_max as usize {
            self.split.clear();
        }
        self.unretained |= self.rules.policy == Policy::Replace && r.chance(10);
        self.count_min = r.pick(&[0u64, 0, 0, 70, 200]);
        let (percent, factor) = r.pick(&[(0u64, 1u64), (20, 10), (20, 10), (40, 30)]);
        self.slow_links = SlowLinks { percent, factor };
        self.think_us_max = r.pick(&[0u64, 0, 500, 20_000, 60_000]);
        self.prelude = Random::new(mix(&[self.seed, 11])).pick(&[0u32, 0, 0, 1, 2]);
        if r.chance(70) {
            self.faults.clear();
        }
        for k in 0..r.pick(&[0u64, 1, 1, 1, 2, 2, 3]) {
            let trap = self.trap(&mut r, k + 1);
            self.traps.push(trap);
        }
        if r.chance(20) {
            let horizon = self.think_us_max * u64::from(self.steps) * 3 + 5_000;
            self.faults.push((500 + r.below(horizon), Fault::Cut(r.below(u64::from(n)) as u32)));
        }
    }

    pub(super) fn trap(&self, r: &mut Random, epoch: u64) -> Trap {
        let n = self.rules.world_size;
        let results = r.pick(&[1u32, 1, 2, 3, 5]);
        let when = r.pick(&[When::Result(results), When::Ahead, When::Ahead, When::Midway]);
        let epoch_min = if r.chance(60) { epoch } else { r.between(1, 3) };
        let far = r.below(u64::from(n)) as u32;
        let victim = r.pick(&[0, 1, 1, 2, n - 1, far]);
        // What dies together is a host where hosts have several ranks.
        let hosts = if self.ranks_per_host > 1 { 120 } else { 0 };
        let fault = match r.below(100 + hosts) {
            0..55 => Fault::KillRank(victim),
            55..75 => Fault::KillRun(victim, r.pick(&[2u32, 2, 3])),
            75..82 => Fault::Stop(victim),
            82..92 => Fault::Cut(victim),
            92..100 => Fault::RestartCoordinator,
            _ => Fault::KillHost(r.pick(&[victim, 1, self.ranks_per_host])),
        };
        let after_us = r.pick(&[0, 0, 0, self.delay_us_max, self.delay_us_max * 5]);
        Trap { when, epoch_min, after_us: r.below(after_us + 1), fault }
    }
}
