//! What the ranks call: communicators, steps, ops.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use phalanx_core::engine::Retention;
use phalanx_core::ids::{CommId, Rank};
use phalanx_core::plan;
use phalanx_core::policy::{Policy, Rules};
use phalanx_core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

use super::Scenario;
use crate::sim::random::{Random, mix};

/// The second communicator.
pub const SECOND: CommId = CommId(1);

/// So many elements one op of the swarm has at most, over all ranks.
const ELEMENTS_MAX: u64 = 900;

/// Ops that were drawn, by step. A copy of a scenario may be changed: it draws anew.
#[derive(Default)]
pub struct Drawn(RefCell<BTreeMap<u64, Rc<[PlannedOp]>>>);

impl Clone for Drawn {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

fn is_tree(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Binomial | Algorithm::Kary)
}

fn rules_chunk(rules: &Rules) -> usize {
    rules.chunk_bytes_max as usize
}

/// One call of a step.
#[derive(Clone, Copy, Debug)]
pub struct PlannedOp {
    /// On which communicator.
    pub comm: CommId,
    /// What is called.
    pub spec: Spec,
    /// Input and output are the same memory (where both exist and have one size).
    pub in_place: bool,
    /// How it is retained until the commit.
    pub retention: Retention,
}

impl Scenario {
    /// World ranks of a communicator.
    #[must_use]
    pub fn group(&self, comm: CommId) -> Vec<Rank> {
        if comm == SECOND { self.split.clone() } else { (0..self.rules.world_size).map(Rank).collect() }
    }

    /// What a rank calls in a step, in its own order: communicators are interleaved differently by each rank where it
    /// does not wait for each op.
    #[must_use]
    pub fn program(&self, step: u64, rank: Rank) -> Vec<(usize, PlannedOp)> {
        let mut ops: Vec<(usize, PlannedOp)> = self.ops(step).iter().copied().enumerate().collect();
        ops.retain(|(index, _)| !self.left_out.contains(&(step, *index)));
        let (second, first): (Vec<_>, Vec<_>) = ops.iter().copied().partition(|(_, o)| o.comm == SECOND);
        let second = if self.split.contains(&rank) { second } else { Vec::new() };
        if !self.asynchronous {
            return ops.into_iter().filter(|(_, o)| o.comm != SECOND || !second.is_empty()).collect();
        }
        let mut r = Random::new(mix(&[self.seed, 4, step, u64::from(rank.0)]));
        let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
        let mut out = Vec::new();
        while first.peek().is_some() || second.peek().is_some() {
            let from = if second.peek().is_none() || r.chance(50) { &mut first } else { &mut second };
            out.extend(from.next());
        }
        out
    }

    /// How many ops a step has that some rank calls.
    #[must_use]
    pub fn called(&self, step: u64) -> usize {
        (0..self.ops(step).len()).filter(|index| !self.left_out.contains(&(step, *index))).count()
    }

    /// What a rank of the first hour calls before its first step; nobody replays it.
    #[must_use]
    pub fn before_steps(&self) -> Vec<PlannedOp> {
        let mut ops = self.world_ops(u64::MAX);
        ops.truncate(self.prelude as usize);
        ops
    }

    /// Ops of a step.
    #[must_use]
    pub fn ops(&self, step: u64) -> Rc<[PlannedOp]> {
        Rc::clone(self.drawn.0.borrow_mut().entry(step).or_insert_with(|| self.draw_ops(step).into()))
    }

    fn draw_ops(&self, step: u64) -> Vec<PlannedOp> {
        let mut ops = self.world_ops(step);
        let mut r = Random::new(mix(&[self.seed, 3, step]));
        for op in &mut ops {
            let n = self.split.len() as u32;
            let root = Rank(op.spec.root.0 % n.max(1));
            let spec = Spec { root, ..op.spec };
            let able = n > 0 && plan::build(&spec, n, Rank(0), rules_chunk(&self.rules)).is_ok();
            if r.chance(40) && able {
                (op.comm, op.spec) = (SECOND, spec);
            }
            if r.chance(50) && self.unretained {
                op.retention = Retention::None;
            }
        }
        ops
    }

    fn world_ops(&self, step: u64) -> Vec<PlannedOp> {
        let mut r = Random::new(mix(&[self.seed, 1, step]));
        let world_size = self.rules.world_size;
        (0..r.between(1, 4))
            .map(|_| {
                let collective = self.kind(&mut r);
                let (dtype, reduction) = r.pick(&[
                    (Dtype::U64, ReduceOp::Sum),
                    (Dtype::U64, ReduceOp::Max),
                    (Dtype::F32, ReduceOp::Sum),
                    (Dtype::F32, ReduceOp::Avg),
                ]);
                let count = r.pick(&[0u64, 1, 3, 17, 64, 200, 900]);
                let count = if count > 200 && !r.chance(20) { 33 } else { count };
                let count = count.max(self.count_min).min(self.count_max);
                let count = if self.is_swarm { count.min(self.count_max(collective)) } else { count };
                let mut able: Vec<Algorithm> = Algorithm::ALL
                    .iter()
                    .copied()
                    .filter(|a| {
                        let spec = Spec { collective, dtype, reduction, count, root: Rank(0), algorithm: *a };
                        plan::build(&spec, world_size, Rank(0), rules_chunk(&self.rules)).is_ok()
                    })
                    .collect();
                if self.trees && able.iter().any(is_tree) {
                    able.retain(is_tree);
                }
                let root = Rank(r.below(u64::from(world_size)) as u32);
                let root = if matches!(collective, Collective::Broadcast | Collective::Reduce) {
                    root
                } else {
                    Rank(0)
                };
                let algorithm = r.pick(&able);
                let count = if collective == Collective::Barrier { 0 } else { count };
                let spec = Spec { collective, dtype, reduction, count, root, algorithm };
                let in_place = r.chance(50);
                let retention = if r.chance(40) { Retention::Copy } else { Retention::ByReference };
                PlannedOp { comm: phalanx_core::engine::WORLD, spec, in_place, retention }
            })
            .collect()
    }

    /// A large world is there for its ranks, not for its bytes.
    fn count_max(&self, collective: Collective) -> u64 {
        let n = u64::from(self.rules.world_size);
        match collective {
            Collective::AllGather | Collective::ReduceScatter => ELEMENTS_MAX / n,
            Collective::AllReduce
            | Collective::Broadcast
            | Collective::Reduce
            | Collective::Barrier
            | Collective::Commit
            | Collective::State => ELEMENTS_MAX * 4 / n.max(4),
        }
    }

    fn kind(&self, r: &mut Random) -> Collective {
        if let Some(kind) = self.favourite.filter(|_| r.chance(50)) {
            return kind;
        }
        // Before the swarm, shapes that change with the contributor set were left to replace, where it never changes.
        if self.rules.policy == Policy::Replace || self.is_swarm {
            return r.pick(&[
                Collective::AllReduce,
                Collective::AllReduce,
                Collective::AllGather,
                Collective::ReduceScatter,
                Collective::Broadcast,
                Collective::Reduce,
                Collective::Barrier,
            ]);
        }
        let other = if self.reduces { Collective::Reduce } else { Collective::AllReduce };
        r.pick(&[Collective::AllReduce, other, Collective::Broadcast, Collective::Barrier])
    }
}
