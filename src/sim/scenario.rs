//! What one seed draws: the shape of the world, what is called, what goes wrong.

use std::collections::BTreeSet;

use phalanx_core::engine::Retention;
use phalanx_core::ids::CommId;
use phalanx_core::policy::{Policy, Rules};
use phalanx_core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use phalanx_core::{ids::Rank, plan};

use super::random::{Random, mix};

mod calm;
mod words;

pub use calm::CALM_FROM;

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
    /// So many ranks in a row are killed at once.
    KillRun(u32, u32),
    /// The links between two ranks break; both live.
    BreakLink(u32, u32),
    /// The control connection of a rank is gone for a while, its links to other ranks are not.
    Cut(u32),
    /// The lowest rank that holds a chunk of an op which another one lacks is killed.
    KillHolder,
}

/// What some rank must come to before a trap is sprung; the first that does so springs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It gets a result and has so many then.
    Result(u32),
    /// It has given the buffer of an op back that another live rank still lacks a part of.
    Ahead,
    /// An op of it has a part of its chunks Final.
    Midway,
}

/// A fault that strikes when a rank has come to some point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// What happens.
    pub when: When,
    /// In this epoch or a later one; 2 is the first after a loss.
    pub epoch_min: u64,
    /// How much later it strikes.
    pub after_us: u64,
    /// What strikes; its rank counts from the rank that sprang the trap.
    pub fault: Fault,
}

/// Links that are slower than the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlowLinks {
    /// How many of them, in percent.
    pub percent: u64,
    /// How much slower.
    pub factor: u64,
}

/// A moment of a recovery at which a second fault may strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A loss is declared: the fence is being written.
    Declared,
    /// Every survivor has answered the fence.
    Fenced,
    /// The next view is written.
    Decided,
    /// A newcomer has the state.
    StateHeld,
    /// A newcomer has replayed.
    Replayed,
}

/// One rank's program differs from the others' at one all-reduce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OddCall {
    /// It calls another count.
    Other(u32),
    /// It never calls it.
    Never(u32),
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
    /// A second death when a recovery gets so far: the occupant of a rank.
    pub follow: Option<(Moment, u32)>,
    /// When a rank has got its so manieth result, it and the ranks after it die: (rank, results, ranks).
    pub after_release: Option<(u32, u32, u32)>,
    /// World ranks of a second communicator; empty: there is none.
    pub split: Vec<Rank>,
    /// A rank whose program is wrong.
    pub odd: Option<OddCall>,
    /// Some ops of a step are not retained: `Replace` cannot serve those.
    pub unretained: bool,
    /// Faults that wait for what a rank does.
    pub traps: Vec<Trap>,
    /// Some links are slower.
    pub slow_links: SlowLinks,
    /// Longest time that a program computes between two calls.
    pub think_us_max: u64,
    /// Ops that the first ranks call before their first step.
    pub prelude: u32,
    /// No op but a barrier has fewer elements a rank.
    pub count_min: u64,
    /// Where a tree can do an op, one does.
    pub trees: bool,
    /// Reduces are called under shrink and abort too.
    pub reduces: bool,
    /// A program that starts ops before it waits for earlier ones also waits for some while it leaves others open.
    pub waits: bool,
    /// Ops that are not called, by step and place in it; what is drawn for the others stays the same.
    pub left_out: BTreeSet<(u64, usize)>,
    /// No op has more elements a rank.
    pub count_max: u64,
    /// I4 is looked at after every so manieth event.
    pub holders_every: u64,
    /// Early messages of one sender and communicator at which it is asked to pause; `None`: as in a real run.
    pub pause_at: Option<usize>,
}

impl Scenario {
    /// Draws the scenario of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut s = Self::plain(seed);
        if s.is_wide() {
            s.widen();
        }
        if seed >= CALM_FROM {
            s.disturb_calmly();
        }
        s
    }

    /// Whether the seed belongs to the wide draw.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.seed >= WIDE_FROM
    }

    /// What seeds below [`WIDE_FROM`] mean.
    fn plain(seed: u64) -> Self {
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
        let mut s = Self::draw(seed);
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

    /// More of everything that a thin moment of a recovery is made of: several losses, hosts of several ranks, links
    /// and programs of unequal speed, faults that wait for what a rank does.
    fn widen(&mut self) {
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

    fn trap(&self, r: &mut Random, epoch: u64) -> Trap {
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
        }
    }

    /// The same calls with nothing going wrong.
    #[must_use]
    pub fn undisturbed(&self) -> Self {
        Self { faults: Vec::new(), follow: None, after_release: None, traps: Vec::new(), ..self.clone() }
    }

    /// The fault of a trap that `rank` sprang.
    #[must_use]
    pub fn counted_from(&self, fault: Fault, rank: Rank) -> Fault {
        let at = |offset: u32| (rank.0 + offset) % self.rules.world_size;
        match fault {
            Fault::KillRank(offset) => Fault::KillRank(at(offset)),
            Fault::KillRun(offset, count) => Fault::KillRun(at(offset), count),
            Fault::KillHost(offset) => Fault::KillHost(at(offset) / self.ranks_per_host),
            Fault::Stop(offset) => Fault::Stop(at(offset)),
            Fault::Cut(offset) => Fault::Cut(at(offset)),
            Fault::BreakLink(one, two) => Fault::BreakLink(at(one), at(two)),
            Fault::KillSpare(_) | Fault::RestartCoordinator | Fault::KillHolder => fault,
        }
    }

    /// World ranks of a communicator.
    #[must_use]
    pub fn group(&self, comm: CommId) -> Vec<Rank> {
        if comm == SECOND { self.split.clone() } else { (0..self.rules.world_size).map(Rank).collect() }
    }

    /// What a rank calls in a step, in its own order: communicators are interleaved differently by each rank where it
    /// does not wait for each op.
    #[must_use]
    pub fn program(&self, step: u64, rank: Rank) -> Vec<(usize, PlannedOp)> {
        let mut ops: Vec<(usize, PlannedOp)> = self.ops(step).into_iter().enumerate().collect();
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
    pub fn ops(&self, step: u64) -> Vec<PlannedOp> {
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
                    let other = if self.reduces { Collective::Reduce } else { Collective::AllReduce };
                    r.pick(&[Collective::AllReduce, other, Collective::Broadcast, Collective::Barrier])
                };
                let (dtype, reduction) = r.pick(&[
                    (Dtype::U64, ReduceOp::Sum),
                    (Dtype::U64, ReduceOp::Max),
                    (Dtype::F32, ReduceOp::Sum),
                    (Dtype::F32, ReduceOp::Avg),
                ]);
                let count = r.pick(&[0u64, 1, 3, 17, 64, 200, 900]);
                let count = if count > 200 && !r.chance(20) { 33 } else { count };
                let count = count.max(self.count_min).min(self.count_max);
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
}

/// Seeds from here on have the wide draw; below it a seed keeps the meaning it had.
pub const WIDE_FROM: u64 = 100_000_000;

/// The second communicator.
pub const SECOND: CommId = CommId(1);

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
