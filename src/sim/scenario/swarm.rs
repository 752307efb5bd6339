//! The swarm: each seed draws a world of its own kind and a mix of its own of everything that goes wrong (Groce et al.,
//! "Swarm Testing", ISSTA 2012). Half of the seeds aim at one cell of the coverage table.

use std::collections::BTreeSet;

use phalanx_core::ids::Rank;
use phalanx_core::policy::Policy;
use phalanx_core::spec::Collective;
use phalanx_core::units::LINK_SLOTS;

use super::{Aim, Fault, FaultKind, Moment, OddCall, Scenario, SlowLinks};
use crate::sim::coverage::{Cell, OPS, Phase};
use crate::sim::random::{Random, mix};

impl Scenario {
    pub(super) fn swarm(seed: u64) -> Self {
        let mut s = Self::basic(seed);
        let mut r = Random::new(mix(&[seed, 20]));
        s.is_swarm = true;
        s.reduces = true;
        s.faults.clear();
        s.draw_world(&mut r);
        s.draw_time(&mut r);
        s.draw_calls(&mut r);
        match r.below(100) {
            0..3 => {}
            3..60 => s.aim(&mut r),
            60..82 => s.scatter(&mut r),
            _ => s.set_traps(&mut r),
        }
        s
    }

    fn draw_world(&mut self, r: &mut Random) {
        let usual = r.pick(&[1u32, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 12, 12, 14, 16]);
        self.rules.world_size = if r.chance(2) { r.between(17, 64) as u32 } else { usual };
        let n = self.rules.world_size;
        self.rules.policy = r.pick(&[
            Policy::Replace,
            Policy::Replace,
            Policy::Replace,
            Policy::Replace,
            Policy::Replace,
            Policy::Shrink,
            Policy::Shrink,
            Policy::Abort,
            Policy::Abort,
        ]);
        self.rules.domains_lost_max = if n > 3 && r.chance(30) { 2 } else { 1 };
        self.ranks_per_host = if n > 3 { r.pick(&[1, 1, 1, 2, 2, 3, 4, 8]) } else { 1 };
        // What is promised for `f` domains needs more of them.
        if n.div_ceil(self.ranks_per_host) <= self.rules.domains_lost_max {
            self.ranks_per_host = 1;
        }
        self.spares = r.pick(&[0u32, 1, 1, 2, 2, 3, 4]);
        self.shares_hosts = r.chance(20);
        self.split.clear();
        if n >= 3 && r.chance(25) {
            let leave_out = r.below(u64::from(n.div_ceil(2))) as u32;
            let first = r.below(u64::from(n)) as u32;
            self.split = (0..n - leave_out).map(|i| Rank((first + i) % n)).collect();
            self.split.sort_unstable();
            // A communicator is never lost whole within the promise.
            let hosts: BTreeSet<u32> = self.split.iter().map(|k| k.0 / self.ranks_per_host).collect();
            if hosts.len() <= self.rules.domains_lost_max as usize {
                self.split.clear();
            }
        }
        self.is_one_sided = r.chance(50);
        self.link_slots = r.pick(&[LINK_SLOTS, LINK_SLOTS, 2 * LINK_SLOTS, 64]);
        self.pause_at = r.pick(&[None, None, Some(LINK_SLOTS), Some(LINK_SLOTS + 2)]);
        let (percent, factor) = r.pick(&[(0u64, 1u64), (0, 1), (20, 10), (40, 30)]);
        self.slow_links = SlowLinks { percent, factor };
    }

    fn draw_time(&mut self, r: &mut Random) {
        self.rules.lease_ms = r.pick(&[50u64, 100, 100, 200]);
        self.rules.replace_within_ms = r.pick(&[0u64, 50, 400, 2_000]);
        self.rules.op_timeout_ms = r.pick(&[5_000u64, 20_000]);
        self.delay_us_max = r.pick(&[5u64, 50, 500]);
        self.think_us_max = r.pick(&[0u64, 0, 0, 500, 20_000]);
        self.drift_ppm_max = r.pick(&[0u64, 100, 10_000, 50_000]);
    }

    fn draw_calls(&mut self, r: &mut Random) {
        self.rules.retain_bytes = r.pick(&[0u32, 64, 64 * 1024]);
        self.rules.chunk_bytes_max = r.pick(&[64u32, 128, 256]);
        self.steps = r.pick(&[1u32, 2, 2, 3]);
        self.state_words = r.pick(&[0usize, 1, 7, 100]);
        self.prelude = r.pick(&[0u32, 0, 0, 1, 2]);
        self.count_min = r.pick(&[0u64, 0, 0, 70, 200]);
        self.trees = r.chance(20);
        self.asynchronous = r.chance(50);
        self.waits = self.asynchronous && r.chance(50);
        self.unretained = self.rules.policy == Policy::Replace && r.chance(5);
        let n = u64::from(self.rules.world_size);
        if n > 1 && r.chance(4) {
            let rank = r.below(n) as u32;
            self.odd = Some(if r.chance(50) { OddCall::Other(rank) } else { OddCall::Never(rank) });
            self.asynchronous = false;
            self.waits = false;
            self.rules.op_timeout_ms = 5_000;
        }
    }

    /// A fault of a kind, with whom and how long it strikes drawn.
    fn fault(&self, kind: FaultKind, r: &mut Random) -> Fault {
        let n = u64::from(self.rules.world_size);
        let rank = r.below(n) as u32;
        let other = ((u64::from(rank) + 1 + r.below(n.max(2) - 1)) % n) as u32;
        let lease = self.rules.lease_ms;
        // Shorter than a lease as well as longer than an eviction.
        let ms = r.pick(&[lease / 4, lease / 2, lease, lease * 2, lease * 5]);
        let ms = 1 + r.below(ms) as u32;
        match kind {
            FaultKind::KillRank => Fault::KillRank(rank),
            FaultKind::KillRun => Fault::KillRun(rank, r.pick(&[2u32, 2, 3])),
            FaultKind::KillHost => Fault::KillHost(rank / self.ranks_per_host),
            FaultKind::KillHolder => Fault::KillHolder,
            FaultKind::KillNewcomer => Fault::KillNewcomer,
            FaultKind::KillSpare => Fault::KillSpare(r.below(u64::from(self.spares.max(1))) as u32),
            FaultKind::Stop => Fault::Stop(rank),
            FaultKind::Slow => Fault::Slow(rank, ms),
            FaultKind::BreakLink => Fault::BreakLink(rank, other),
            FaultKind::Flap => Fault::Flap(rank, other),
            FaultKind::LinkDown => Fault::LinkDown(rank, other, ms),
            FaultKind::OneWay => Fault::OneWay(rank, other, ms),
            FaultKind::Suspect => Fault::Suspect(rank, other),
            FaultKind::Partition => Fault::Partition(rank, r.between(1, n.div_ceil(2)) as u32, ms),
            FaultKind::Cut => Fault::Cut(rank),
            FaultKind::Mute => Fault::Mute(rank, ms),
            FaultKind::Deaf => Fault::Deaf(rank, ms),
            FaultKind::RestartCoordinator => Fault::RestartCoordinator,
            FaultKind::LoseCoordinator => Fault::LoseCoordinator,
            FaultKind::SlowStore => Fault::SlowStore(ms),
            FaultKind::RefusingStore => Fault::RefusingStore(r.chance(50)),
        }
    }

    fn any_fault(&self, r: &mut Random) -> Fault {
        let deaths = [FaultKind::KillRank, FaultKind::KillRank, FaultKind::KillHost, FaultKind::KillRun];
        let kind = if r.chance(50) { r.pick(&deaths) } else { r.pick(&FaultKind::ALL) };
        self.fault(kind, r)
    }

    /// Faults at any time.
    fn scatter(&mut self, r: &mut Random) {
        let busy = self.think_us_max * 3 + self.delay_us_max * 60;
        let horizon = busy * u64::from(self.steps) + 2_000;
        for _ in 0..r.pick(&[1u64, 1, 2, 3]) {
            let fault = self.any_fault(r);
            self.faults.push((r.below(horizon), fault));
        }
        self.faults.sort_by_key(|(at, _)| *at);
        if r.chance(20) {
            let moments =
                [Moment::Declared, Moment::Fenced, Moment::Decided, Moment::StateHeld, Moment::Replayed];
            self.follow = Some((r.pick(&moments), r.below(u64::from(self.rules.world_size)) as u32));
        }
    }

    /// Faults that wait for what ranks do.
    fn set_traps(&mut self, r: &mut Random) {
        for k in 0..r.pick(&[1u64, 1, 2, 3]) {
            let mut trap = self.trap(r, k + 1);
            if r.chance(40) {
                trap.fault = self.any_fault(r);
            }
            self.traps.push(trap);
        }
    }

    /// A fault for one cell of the table, and before it what brings the world into the cell's phase.
    fn aim(&mut self, r: &mut Random) {
        let policy = self.rules.policy;
        let cell = loop {
            let (phase, fault, op) = (r.pick(&PHASES), r.pick(&FaultKind::ALL), r.pick(&OPS));
            let cell = Cell { policy, phase, fault, op };
            if cell.impossible().is_none() {
                break cell;
            }
        };
        self.favourite = cell.op.filter(|op| !matches!(op, Collective::Commit | Collective::State));
        self.make_room_for(cell, r);
        let first = match cell.phase {
            _ if is_second(cell) => Some(self.fault(FaultKind::KillRank, r)),
            Phase::Forming | Phase::Steady => None,
            Phase::Leaderless => Some(self.fault(FaultKind::RestartCoordinator, r)),
            Phase::Fencing | Phase::Deciding | Phase::Repairing => {
                let calm = [FaultKind::RestartCoordinator, FaultKind::BreakLink, FaultKind::Suspect];
                let deaths = [FaultKind::KillRank, FaultKind::KillRank, FaultKind::KillHost];
                let kind = if r.chance(30) { r.pick(&calm) } else { r.pick(&deaths) };
                Some(self.fault(kind, r))
            }
            Phase::Vacant => {
                let first = r.below(u64::from(self.rules.world_size)) as u32;
                Some(Fault::KillRun(first, self.spares + 1))
            }
            Phase::Reseating => Some(self.fault(FaultKind::KillRank, r)),
        };
        if let Some(fault) = first {
            // A state is under way only after the first loss, and of an op that is in flight in a steady world all
            // that follows is seen.
            let op = cell.op.filter(|op| *op != Collective::State);
            self.aims.push(Aim { phase: Phase::Steady, op, skip: r.pick(&[0u32, 1, 5, 20]), fault });
        }
        // A newcomer that is not done is met in another phase only if a second fence comes upon it.
        if is_second(cell) && cell.phase != Phase::Reseating {
            let is_calm = cell.phase == Phase::Leaderless || cell.phase != Phase::Vacant && r.chance(30);
            let fault = if is_calm { Fault::RestartCoordinator } else { self.fault(FaultKind::KillRank, r) };
            let skip = r.pick(&[0u32, 0, 1, 5]);
            let op = cell.op.filter(|op| *op == Collective::State || r.chance(50));
            self.aims.push(Aim { phase: Phase::Reseating, op, skip, fault });
        }
        let fault = self.fault(cell.fault, r);
        let skip = r.pick(&[0u32, 0, 0, 1, 4, 15]);
        self.aims.push(Aim { phase: cell.phase, op: cell.op, skip, fault });
    }

    /// A world in which the cell can come about.
    fn make_room_for(&mut self, cell: Cell, r: &mut Random) {
        let n = self.rules.world_size;
        if cell.phase != Phase::Forming {
            self.odd = None;
        }
        if n == 1 && cell.phase != Phase::Forming {
            self.rules.world_size = 4;
        }
        if matches!(cell.phase, Phase::Vacant | Phase::Fencing | Phase::Deciding | Phase::Leaderless) {
            self.spares = self.spares.max(u32::from(cell.fault == FaultKind::KillSpare));
        }
        if cell.phase == Phase::Vacant {
            // Two seats may wait for one spare.
            self.spares = if is_second(cell) { 1 } else { self.spares.min(1) };
            self.rules.replace_within_ms = self.rules.replace_within_ms.max(50);
        }
        if cell.phase == Phase::Reseating {
            self.spares = self.spares.max(1 + u32::from(cell.fault == FaultKind::KillSpare));
        }
        if cell.fault == FaultKind::KillSpare {
            self.spares = self.spares.max(1);
        }
        if is_second(cell) {
            self.state_words = self.state_words.max(7);
            self.spares = if cell.phase == Phase::Vacant { 1 } else { self.spares.max(2) };
        }
        if cell.op.is_none() {
            self.think_us_max = 20_000;
            self.asynchronous = false;
            self.waits = false;
        }
        // What only its owner gets nobody waits for: another op must be in flight too.
        if cell.fault == FaultKind::KillHolder && self.odd.is_none() {
            self.asynchronous = true;
        }
        if cell.op.is_some() {
            self.count_min = self.count_min.max(r.pick(&[0u64, 17, 70]));
        }
    }
}

/// Phases by how often they are aimed at: those that pass quickly are missed more often.
const PHASES: [Phase; 14] = [
    Phase::Forming,
    Phase::Steady,
    Phase::Fencing,
    Phase::Fencing,
    Phase::Vacant,
    Phase::Vacant,
    Phase::Deciding,
    Phase::Deciding,
    Phase::Deciding,
    Phase::Reseating,
    Phase::Reseating,
    Phase::Repairing,
    Phase::Leaderless,
    Phase::Leaderless,
];

/// The cell comes about only when a second fence meets a newcomer that is not done.
fn is_second(cell: Cell) -> bool {
    cell.op == Some(Collective::State) || cell.fault == FaultKind::KillNewcomer
}
