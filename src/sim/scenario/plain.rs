//! The first draws. Seeds that failed once are kept from them, so their meaning stays.

use std::collections::BTreeSet;

use phalanx_core::ids::Rank;
use phalanx_core::policy::{Policy, Rules};
use phalanx_core::units::LINK_SLOTS;

use super::{Fault, Moment, OddCall, Scenario, SlowLinks};
use crate::sim::random::{Random, mix};

impl Scenario {
    /// What seeds below [`WIDE_FROM`](super::WIDE_FROM) meant first.
    pub(super) fn plain(seed: u64) -> Self {
        let mut s = Self::basic(seed);
        let mut r = Random::new(mix(&[seed, 9]));
        let n = s.rules.world_size;
        let rank = r.below(u64::from(n)) as u32;
        // A rank that was given an error calls nothing more; the others must learn of it by a deadline.
        s.rules.op_timeout_ms = 20_000;
        s.rules.retain_bytes = r.pick(&[0u32, 64, 64 * 1024]);
        match r.below(10) {
            0 | 1 => {
                let moments =
                    [Moment::Declared, Moment::Fenced, Moment::Decided, Moment::StateHeld, Moment::Replayed];
                s.follow = Some((r.pick(&moments), rank));
            }
            2..5 => s.after_release = Some((rank, r.between(1, 4) as u32, r.pick(&[1u32, 1, 2, 3]))),
            5 if n > 1 => {
                s.odd = Some(if r.chance(50) { OddCall::Other(rank) } else { OddCall::Never(rank) });
                s.rules.op_timeout_ms = 10_000;
                s.asynchronous = false;
                if r.chance(70) {
                    s.faults.clear();
                }
            }
            6 => s.faults.push((500 + r.below(5_000), Fault::KillRun(rank, r.pick(&[2u32, 2, 3])))),
            _ => {}
        }
        if n >= 3 && r.chance(25) {
            // More than half of the ranks: it is never lost whole within the promise.
            let leave_out = r.below(u64::from(n.div_ceil(2))) as u32;
            let first = r.below(u64::from(n)) as u32;
            s.split = (0..n - leave_out).map(|i| Rank((first + i) % n)).collect();
            s.split.sort_unstable();
        }
        s.unretained = s.rules.policy == Policy::Replace && r.chance(5);
        s
    }

    /// The draw with up to four breaks of links besides, of one pair or of several.
    #[must_use]
    pub fn with_breaks(seed: u64) -> Self {
        let mut s = Self::early(seed);
        let mut r = Random::new(mix(&[seed, 30]));
        let n = u64::from(s.rules.world_size);
        let horizon = s.delay_us_max * 60 * u64::from(s.steps) + 2_000;
        let mut pair = (0, 1);
        for _ in 0..r.between(1, 4) {
            if n > 1 && r.chance(70) {
                let one = r.below(n);
                pair = (one as u32, ((one + r.between(1, n - 1)) % n) as u32);
            }
            // Some long after the others: what they were to stop has gone on by then, or the run is over.
            let later = if r.chance(30) { 1_000 * r.below(600) } else { 0 };
            s.faults.push((500 + r.below(horizon) + later, Fault::BreakLink(pair.0, pair.1)));
        }
        s.faults.sort_by_key(|(at, _)| *at);
        s
    }

    /// The first, plain draw; seeds kept from it stay what they were.
    #[must_use]
    pub fn basic(seed: u64) -> Self {
        let mut r = Random::new(seed);
        let world_size = r.pick(&[1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 9, 12]) as u32;
        let policy =
            r.pick(&[Policy::Replace, Policy::Replace, Policy::Replace, Policy::Shrink, Policy::Abort]);
        let mut rules = Rules::new(world_size, policy);
        rules.chunk_bytes_max = r.pick(&[64u32, 128, 256]);
        rules.lease_ms = 100;
        rules.replace_within_ms = r.pick(&[50u64, 400, 2_000]);
        rules.fallback = r.pick(&[Policy::Abort, Policy::Shrink]);
        let two_losses = r.chance(30) && world_size > 3;
        rules.domains_lost_max = if two_losses { 2 } else { 1 };
        let ranks_per_host = if world_size >= 4 && r.chance(30) { 2 } else { 1 };
        let steps = r.between(1, 3) as u32;
        let delay_us_max = r.pick(&[5u64, 50, 500]);
        let horizon = delay_us_max * 60 * u64::from(steps) + 2_000;
        let mut faults = Vec::new();
        for _ in 0..r.pick(&[0u64, 1, 1, 1, 2, 3]) {
            let rank = r.below(u64::from(world_size)) as u32;
            let kind = match r.below(100) {
                0..60 => Fault::KillRank(rank),
                60..70 => Fault::KillSpare(r.below(3) as u32),
                70..80 => Fault::KillHost(rank / ranks_per_host),
                80..92 => Fault::Stop(rank),
                _ => Fault::RestartCoordinator,
            };
            faults.push((500 + r.below(horizon), kind));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self {
            seed,
            rules,
            ranks_per_host,
            spares: r.between(0, 3) as u32,
            steps,
            state_words: r.pick(&[0usize, 1, 7, 100]),
            delay_us_max,
            asynchronous: r.chance(40),
            faults,
            follow: None,
            after_release: None,
            split: Vec::new(),
            odd: None,
            unretained: false,
            traps: Vec::new(),
            slow_links: SlowLinks::default(),
            think_us_max: 0,
            prelude: 0,
            count_min: 0,
            trees: false,
            reduces: false,
            waits: false,
            left_out: BTreeSet::new(),
            count_max: u64::MAX,
            holders_every: 32,
            pause_at: None,
            is_swarm: false,
            aims: Vec::new(),
            favourite: None,
            is_one_sided: false,
            link_slots: LINK_SLOTS,
            drift_ppm_max: 0,
            shares_hosts: false,
            drawn: super::program::Drawn::default(),
        }
    }
}
