//! What one seed draws: the shape of the world, what is called, what goes wrong.

use phalanx_core::policy::{Policy, Rules};
use phalanx_core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use phalanx_core::{ids::Rank, plan};

use super::random::{Random, mix};

/// A fault and when it strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The occupant of a rank is killed.
    KillRank(u32),
    /// The n-th spare is killed.
    KillSpare(u32),
    /// All members of a host are killed.
    KillHost(u32),
    /// The occupant of a rank stops for longer than its eviction, then goes on.
    Stop(u32),
    /// The coordinator dies and comes back from its store.
    RestartCoordinator,
}

/// Everything a run depends on.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// What everybody agrees on.
    pub rules: Rules,
    /// Ranks on one host: its failure domain.
    pub ranks_per_host: u32,
    /// Spares at the start.
    pub spares: u32,
    /// Steps (policy replace) or groups of ops.
    pub steps: u32,
    /// Words of the replicated state.
    pub state_words: usize,
    /// Longest delay of a data message.
    pub delay_us_max: u64,
    /// Ops are started before earlier ones are waited for.
    pub asynchronous: bool,
    /// Faults by virtual time in microseconds.
    pub faults: Vec<(u64, Fault)>,
}

impl Scenario {
    /// Draws the scenario of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut r = Random::new(seed);
        let world_size = r.pick(&[1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 9, 12]) as u32;
        let policy = r.pick(&[Policy::Replace, Policy::Replace, Policy::Replace, Policy::Shrink, Policy::Abort]);
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
        }
    }

    /// Ops of a step.
    #[must_use]
    pub fn ops(&self, step: u64) -> Vec<PlannedOp> {
        let mut r = Random::new(mix(&[self.seed, 1, step]));
        let world_size = self.rules.world_size;
        (0..r.between(1, 4))
            .map(|_| {
                // Shapes that change with the contributor set are left to replace, where the set never changes.
                let collective = if self.rules.policy == Policy::Replace {
                    r.pick(&[
                        Collective::AllReduce,
                        Collective::AllReduce,
                        Collective::AllGather,
                        Collective::ReduceScatter,
                        Collective::Broadcast,
                        Collective::Reduce,
                        Collective::Barrier,
                    ])
                } else {
                    r.pick(&[Collective::AllReduce, Collective::AllReduce, Collective::Broadcast, Collective::Barrier])
                };
                let (dtype, reduction) = r.pick(&[
                    (Dtype::U64, ReduceOp::Sum),
                    (Dtype::U64, ReduceOp::Max),
                    (Dtype::F32, ReduceOp::Sum),
                    (Dtype::F32, ReduceOp::Avg),
                ]);
                let count = r.pick(&[0u64, 1, 3, 17, 64, 200, 1 << 14]);
                let count = if count > 200 && !r.chance(10) { 33 } else { count };
                let able: Vec<Algorithm> = Algorithm::ALL
                    .iter()
                    .copied()
                    .filter(|a| {
                        let spec = Spec { collective, dtype, reduction, count, root: Rank(0), algorithm: *a };
                        plan::build(&spec, world_size, Rank(0), rules_chunk(&self.rules)).is_ok()
                    })
                    .collect();
                let root = Rank(r.below(u64::from(world_size)) as u32);
                let root = if matches!(collective, Collective::Broadcast | Collective::Reduce) { root } else { Rank(0) };
                let algorithm = r.pick(&able);
                let count = if collective == Collective::Barrier { 0 } else { count };
                let spec = Spec { collective, dtype, reduction, count, root, algorithm };
                PlannedOp { spec, in_place: r.chance(50), by_copy: r.chance(40) }
            })
            .collect()
    }
}

fn rules_chunk(rules: &Rules) -> usize {
    rules.chunk_bytes_max as usize
}

/// One call of a step.
#[derive(Clone, Copy, Debug)]
pub struct PlannedOp {
    /// What is called.
    pub spec: Spec,
    /// Input and output are the same memory (where both exist and have one size).
    pub in_place: bool,
    /// Retained by copy, else by reference.
    pub by_copy: bool,
}
