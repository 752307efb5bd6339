//! Every algorithm is proven over all ranks, for many world sizes and sizes, and costs what its header says.

use proptest::prelude::*;

use super::{able, build, kary, ring};
use crate::ids::{ChunkId, Rank};
use crate::plan::leaves::Leaves;
use crate::plan::verify::{Fault, Initial, Proof, verify};
use crate::plan::{Plan, PlanError, Step};
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

/// The fewest slots a link may have for the algorithm.
fn slots(algorithm: Algorithm) -> usize {
    if algorithm == Algorithm::Ring { ring::SLOTS_MIN } else { 2 }
}

fn spec(collective: Collective, algorithm: Algorithm, count: u64, root: u32) -> Spec {
    let root = match collective {
        Collective::Broadcast | Collective::Reduce => Rank(root),
        Collective::AllReduce
        | Collective::AllGather
        | Collective::ReduceScatter
        | Collective::Barrier
        | Collective::Commit
        | Collective::State => Rank(0),
    };
    Spec { collective, dtype: Dtype::F32, reduction: ReduceOp::Sum, count, root, algorithm }
}

fn plans(spec: &Spec, n: u32, chunk_bytes_max: usize) -> Vec<Plan> {
    (0..n).map(|r| build(spec, n, Rank(r), chunk_bytes_max).unwrap()).collect()
}

fn prove(spec: &Spec, n: u32, chunk_bytes_max: usize) -> Proof {
    let plans = plans(spec, n, chunk_bytes_max);
    let chunks = plans[0].chunks.len() as u32;
    verify(&plans, slots(spec.algorithm), &Initial::fresh(n, chunks)).unwrap_or_else(|fault| {
        panic!("{spec} n={n}: {fault}\n{}", crate::plan::table(&plans));
    })
}

fn pairs() -> impl Iterator<Item = (Collective, Algorithm)> {
    Collective::ALL.iter().flat_map(|&c| able(c).iter().map(move |&a| (c, a)))
}

/// Whether `reproducible.md` puts the algorithm into the canonical set.
fn is_canonical(collective: Collective, algorithm: Algorithm, n: u32) -> bool {
    let reduces = !matches!(collective, Collective::AllGather | Collective::Broadcast);
    match algorithm {
        Algorithm::HalvingDoubling | Algorithm::Binomial | Algorithm::Direct => true,
        Algorithm::Ring => !reduces || n <= 2,
        Algorithm::Kary => !reduces || n <= 3,
    }
}

#[test]
fn every_algorithm_is_proven_for_every_world_size() {
    for (collective, algorithm) in pairs() {
        for n in 1..=64 {
            // The sizes are of the whole op, or of one part where every rank has its own.
            let parts = matches!(collective, Collective::AllGather | Collective::ReduceScatter);
            let unit = 16 * if parts { 1 } else { u64::from(n) };
            for count in [0, 1, u64::from(n) - 1, u64::from(n), unit, unit * 3 + 7] {
                let spec = spec(collective, algorithm, count, 0);
                let proof = prove(&spec, n, 64);
                assert_eq!(proof.canonical, is_canonical(collective, algorithm, n), "{spec} n={n}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_size_root_and_chunk_is_proven(
        which in 0usize..64, n in 1u32..=33, root: u32, count in 0u64..3000, chunk in 1usize..300, wide: bool,
    ) {
        let all: Vec<_> = pairs().collect();
        let (collective, algorithm) = all[which % all.len()];
        let mut spec = spec(collective, algorithm, count, root % n);
        spec.dtype = if wide { Dtype::F64 } else { Dtype::U8 };
        let chunk = (chunk.max(spec.dtype.size()), n * 4);
        // Many chunks of many ranks only cost time.
        let chunk = if spec.elements(n) * spec.dtype.size() as u64 / chunk.0 as u64 > u64::from(chunk.1) {
            (spec.elements(n) as usize * spec.dtype.size() / chunk.1 as usize).max(8)
        } else { chunk.0 };
        let proof = prove(&spec, n, chunk);
        if matches!(algorithm, Algorithm::HalvingDoubling | Algorithm::Binomial | Algorithm::Direct) {
            prop_assert!(proof.canonical, "{} n={}", spec, n);
        }
        let plan = build(&spec, n, Rank(0), chunk).unwrap();
        for c in &plan.chunks {
            prop_assert!(c.len as usize * spec.dtype.size() <= chunk, "{} n={}: {:?}", spec, n, c);
        }
    }

    #[test]
    fn a_chunk_renamed_in_any_step_is_caught(
        which in 0usize..64, n in 2u32..=9, rank: u32, step: usize, by in 1u32..7,
    ) {
        let all: Vec<_> = pairs().collect();
        let (collective, algorithm) = all[which % all.len()];
        let spec = spec(collective, algorithm, 16 * u64::from(n) * 2, 0);
        let mut plans = plans(&spec, n, 64);
        let chunks = plans[0].chunks.len() as u32;
        let steps = &mut plans[(rank % n) as usize].steps;
        if chunks > 1 && by % chunks != 0 && !steps.is_empty() {
            let at = step % steps.len();
            let shift = |c: &mut ChunkId| c.0 = (c.0 + by) % chunks;
            match &mut steps[at] {
                Step::Send { chunk, .. } | Step::Fold { chunk, .. } | Step::Take { chunk, .. }
                | Step::FoldAll { chunk } | Step::Settle { chunk, .. } => shift(chunk),
            }
            let outcome = verify(&plans, slots(spec.algorithm), &Initial::fresh(n, chunks));
            prop_assert!(outcome.is_err(), "{} n={} step {}", spec, n, at);
        }
    }

    #[test]
    fn a_step_left_out_is_caught(which in 0usize..64, n in 2u32..=9, rank: u32, step: usize) {
        let all: Vec<_> = pairs().collect();
        let (collective, algorithm) = all[which % all.len()];
        let spec = spec(collective, algorithm, 16 * u64::from(n) * 2, 0);
        let mut plans = plans(&spec, n, 64);
        let chunks = plans[0].chunks.len() as u32;
        let steps = &mut plans[(rank % n) as usize].steps;
        let at = step % steps.len();
        steps.remove(at);
        let outcome = verify(&plans, slots(spec.algorithm), &Initial::fresh(n, chunks));
        prop_assert!(outcome.is_err(), "{} n={} step {}", spec, n, at);
    }
}

/// One chunk a segment, all of equal size.
fn cost(collective: Collective, algorithm: Algorithm, n: u32, segment_bytes: u64, segments: u64) -> Proof {
    let parts = matches!(collective, Collective::AllGather | Collective::ReduceScatter);
    let count = segment_bytes / 4 * if parts { 1 } else { segments };
    prove(&spec(collective, algorithm, count, 0), n, segment_bytes as usize)
}

fn assert_each(proof: &Proof, messages: u64, segment_bytes: u64, what: &str) {
    assert!(proof.messages.iter().all(|&m| m == messages), "{what}: {:?}", proof.messages);
    assert!(proof.bytes.iter().all(|&b| b == messages * segment_bytes), "{what}: {:?}", proof.bytes);
}

#[test]
fn ring_and_direct_cost_what_their_headers_say() {
    for n in 2..=64 {
        let (others, bytes) = (u64::from(n) - 1, 8192);
        for (collective, passes) in
            [(Collective::AllReduce, 2), (Collective::AllGather, 1), (Collective::ReduceScatter, 1)]
        {
            let ring = cost(collective, Algorithm::Ring, n, bytes, u64::from(n));
            assert_eq!(ring.rounds_max(), passes * (n - 1), "ring {collective} n={n}");
            assert_each(&ring, u64::from(passes) * others, bytes, "ring");
            assert!(ring.scratch_chunks.iter().all(|&s| s == 0));
            let direct = cost(collective, Algorithm::Direct, n, bytes, u64::from(n));
            assert_eq!(direct.rounds_max(), passes, "direct {collective} n={n}");
            assert_each(&direct, u64::from(passes) * others, bytes, "direct");
            assert!(direct.scratch_chunks.iter().all(|&s| s == 0));
        }
    }
}

#[test]
fn halving_doubling_costs_what_its_header_says() {
    for n in 2..=64 {
        let leaves = Leaves::new(n);
        let p = u64::from(leaves.count());
        let proof = cost(Collective::AllReduce, Algorithm::HalvingDoubling, n, 4096, p);
        let folded = leaves.count() != n;
        assert_eq!(proof.rounds_max(), 2 * leaves.levels() + if folded { 2 } else { 0 }, "n={n}");
        for rank in (0..n).map(Rank) {
            let wanted = match leaves.partner(rank) {
                None => 2 * (p - 1),
                Some(_) if rank.0 % 2 == 0 => 3 * p - 2,
                Some(_) => p,
            };
            assert_eq!(proof.messages[rank.index()], wanted, "n={n} {rank}");
            assert_eq!(proof.bytes[rank.index()], wanted * 4096, "n={n} {rank}");
            assert!(u64::from(proof.scratch_chunks[rank.index()]) <= p / 2, "n={n} {rank}");
        }
    }
}

#[test]
fn trees_cost_what_their_headers_say() {
    for n in 2..=64 {
        let leaves = Leaves::new(n);
        let binomial = leaves.levels();
        let kary = kary::depth(n);
        for (collective, ways) in
            [(Collective::AllReduce, 2), (Collective::Broadcast, 1), (Collective::Reduce, 1)]
        {
            let proof = cost(collective, Algorithm::Binomial, n, 4096, 1);
            if collective == Collective::Broadcast {
                assert!(proof.rounds_max() <= binomial, "binomial {collective} n={n}");
            } else {
                assert_eq!(proof.rounds_max(), ways * binomial, "binomial {collective} n={n}");
            }
            assert_eq!(proof.messages.iter().sum::<u64>(), u64::from(ways * (n - 1)));
            let proof = cost(collective, Algorithm::Kary, n, 4096, 1);
            assert_eq!(proof.rounds_max(), ways * kary, "kary {collective} n={n}");
            assert_eq!(proof.bytes.iter().sum::<u64>(), u64::from(ways * (n - 1)) * 4096);
        }
    }
}

#[test]
fn tiny_ops_have_few_owners() {
    let tiny = |count| {
        let plan =
            build(&spec(Collective::AllReduce, Algorithm::Direct, count, 0), 8, Rank(3), 1 << 18).unwrap();
        plan.chunks.iter().map(|c| c.len).collect::<Vec<_>>()
    };
    assert_eq!(tiny(2), [2]);
    assert_eq!(tiny(16), [16]);
    assert_eq!(tiny(40), [16, 16, 8]);
    assert_eq!(tiny(1024), [128; 8]);
    let barrier = build(&spec(Collective::Barrier, Algorithm::Direct, 0, 0), 5, Rank(0), 1 << 18).unwrap();
    assert_eq!(barrier.chunks.len(), 1);
}

#[test]
fn pipelines_with_many_chunks_are_proven_with_the_fewest_slots() {
    // Halving and doubling say that they need only one.
    for n in 2..=17 {
        let spec = spec(Collective::AllReduce, Algorithm::HalvingDoubling, 16 * 23 * u64::from(n), 0);
        let plans = plans(&spec, n, 64);
        let chunks = plans[0].chunks.len() as u32;
        verify(&plans, 1, &Initial::fresh(n, chunks)).unwrap_or_else(|fault| panic!("n={n}: {fault}"));
    }
    for (collective, algorithm) in pairs() {
        for n in [2, 3, 4, 5, 7, 8, 13] {
            prove(&spec(collective, algorithm, 16 * 40 * u64::from(n), n - 1), n, 64);
        }
    }
}

#[test]
fn a_ring_with_too_few_slots_is_found_out() {
    let spec = spec(Collective::AllReduce, Algorithm::Ring, 16 * 4 * 5, 0);
    let plans = plans(&spec, 5, 64);
    let chunks = plans[0].chunks.len() as u32;
    let fault = verify(&plans, ring::SLOTS_MIN - 1, &Initial::fresh(5, chunks)).unwrap_err();
    assert!(matches!(fault, Fault::Deadlock { .. }), "{fault}");
}

#[test]
fn cuts_fall_on_cache_lines_and_segments_are_even() {
    let plan =
        build(&spec(Collective::AllReduce, Algorithm::Ring, 1_000_003, 0), 7, Rank(0), 1 << 16).unwrap();
    for chunk in &plan.chunks {
        assert_eq!(chunk.start * 4 % 64, 0, "{chunk:?}");
    }
    let sizes = || plan.chunks.iter().map(|c| c.len);
    assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 32, "{:?}", plan.chunks);
}

#[test]
fn what_cannot_be_planned_is_refused_with_a_way_out() {
    let err = build(&spec(Collective::AllGather, Algorithm::Kary, 1, 0), 2, Rank(0), 64).unwrap_err();
    assert_eq!(err.to_string(), "algorithm kary cannot run all_gather; use one of: ring, direct");
    let err = build(&spec(Collective::Reduce, Algorithm::Binomial, 1, 4), 4, Rank(0), 64).unwrap_err();
    assert_eq!(err, PlanError::NoSuchRoot { root: Rank(4), world_size: 4 });
    assert!(build(&spec(Collective::State, Algorithm::Ring, 1, 0), 4, Rank(0), 64).is_err());
}

#[test]
fn a_wrong_offset_in_the_gathering_half_of_a_ring_is_caught_by_name() {
    let spec = spec(Collective::AllReduce, Algorithm::Ring, 64, 0);
    let mut plans = plans(&spec, 4, 64);
    for plan in &mut plans {
        let shifted = (plan.rank.0 + 2) % 4;
        for step in &mut plan.steps {
            if let Step::Take { chunk, .. } = step {
                chunk.0 = (chunk.0 + shifted) % 4;
            }
        }
    }
    let fault = verify(&plans, ring::SLOTS_MIN, &Initial::fresh(4, 4)).unwrap_err();
    assert!(matches!(fault, Fault::WrongMessage { .. }), "{fault}");
}
