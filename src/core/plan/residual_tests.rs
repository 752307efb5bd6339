//! Residual plans are proven by `verify` for every algorithm, whatever the ranks hold and whoever is gone.

use proptest::prelude::*;

use super::*;
use crate::algorithms::{able, build, ring};
use crate::plan::verify::{Initial, verify};
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

/// The fewest slots a link may have for the algorithm.
fn slots(algorithm: Algorithm) -> usize {
    if algorithm == Algorithm::Ring { ring::SLOTS_MIN } else { 2 }
}

fn pairs() -> Vec<(Collective, Algorithm)> {
    Collective::ALL.iter().flat_map(|&c| able(c).iter().map(move |&a| (c, a))).collect()
}

fn plans(which: usize, n: u32, root: u32, per_segment: u64) -> Vec<Plan> {
    let (collective, algorithm) = pairs()[which % pairs().len()];
    let parts = matches!(collective, Collective::AllGather | Collective::ReduceScatter);
    let rooted = matches!(collective, Collective::Broadcast | Collective::Reduce);
    let spec = Spec {
        collective,
        dtype: Dtype::F32,
        reduction: ReduceOp::Sum,
        count: 16 * per_segment * if parts { 1 } else { u64::from(n) },
        root: Rank(if rooted { root % n } else { 0 }),
        algorithm,
    };
    (0..n).map(|r| build(&spec, n, Rank(r), 64).unwrap()).collect()
}

/// A small seeded generator (splitmix64): the shape of the holdings depends on the plan, so proptest gives the seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ a >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (b ^ b >> 31) % end
    }
}

/// Upward closed holdings: whoever holds a chunk, all above it held it too. What the dead held is gone.
fn legal(plans: &[Plan], gone: &[bool], dice: &mut Dice) -> Vec<Bitmap> {
    let (n, chunks) = (plans.len() as u32, &plans[0].chunks);
    let mut held = vec![Bitmap::empty(chunks.len() as u32); n as usize];
    for (id, chunk) in (0..).map(ChunkId).zip(chunks) {
        let eager = dice.below(4);
        let mut open = vec![chunk.owner];
        while let Some(rank) = open.pop() {
            if dice.below(4) <= eager && eager > 0 {
                if !gone[rank.index()] {
                    held[rank.index()].insert(id);
                }
                open.extend(plans[0].spread.children(chunk.owner, rank, n));
            }
        }
    }
    held
}

fn prove(plans: &[Plan], held: &[Bitmap], vacant: &[bool]) -> Result<(), ResidualError> {
    prove_without(plans, held, &vec![false; held.len()], vacant)
}

fn prove_without(
    plans: &[Plan],
    held: &[Bitmap],
    satisfied: &[bool],
    vacant: &[bool],
) -> Result<(), ResidualError> {
    let part = |plan: &Plan| {
        if vacant[plan.rank.index()] {
            Ok(Plan { steps: Vec::new(), ..plan.clone() })
        } else {
            residual(plan, held, satisfied, vacant)
        }
    };
    let rest = plans.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let initial = Initial { held: held.to_vec(), vacant: vacant.to_vec(), satisfied: satisfied.to_vec() };
    verify(&rest, slots(plans[0].spec.algorithm), &initial).unwrap_or_else(|fault| {
        panic!("{fault}\nheld {held:?}\nvacant {vacant:?}\n{}", crate::plan::table(&rest));
    });
    Ok(())
}

/// Whether some chunk that a live rank is due is held by no live rank that may serve it.
fn some_chunk_is_gone(plans: &[Plan], held: &[Bitmap], vacant: &[bool]) -> bool {
    let single = plans[0].spread == Spread::Single;
    (0..).map(ChunkId).zip(&plans[0].chunks).any(|(id, chunk)| {
        let is_due = !single || !vacant[chunk.owner.index()];
        is_due
            && !(0..plans.len())
                .any(|r| held[r].has(id) && !vacant[r] && (!single || r == chunk.owner.index()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn survivors_and_newcomers_finish_from_any_legal_state(
        which in 0usize..64, n in 1u32..=12, root: u32, per_segment in 0u64..4, lost in 0u32..4, seed: u64,
    ) {
        let plans = plans(which, n, root, per_segment);
        let mut dice = Dice(seed);
        let mut gone = vec![false; n as usize];
        (0..lost).for_each(|_| gone[dice.below(u64::from(n)) as usize] = true);
        let held = legal(&plans, &gone, &mut dice);
        // Spares took the seats: nobody is vacant, newcomers hold nothing.
        prop_assert_eq!(prove(&plans, &held, &vec![false; n as usize]), Ok(()));
    }

    #[test]
    fn survivors_alone_finish_if_and_only_if_every_chunk_is_held(
        which in 0usize..64, n in 2u32..=12, root: u32, per_segment in 0u64..3, lost in 1u32..4, full: bool, seed: u64,
    ) {
        let plans = plans(which, n, root, per_segment);
        let mut dice = Dice(seed);
        let mut gone = vec![false; n as usize];
        (0..lost.min(n - 1)).for_each(|_| gone[dice.below(u64::from(n)) as usize] = true);
        let mut held = legal(&plans, &gone, &mut dice);
        if full {
            // One live rank holds all, as when a released one is left.
            let keeper = gone.iter().position(|g| !g).unwrap();
            held[keeper] = Bitmap::full(held[keeper].len());
        }
        let outcome = prove(&plans, &held, &gone);
        if some_chunk_is_gone(&plans, &held, &gone) {
            prop_assert!(matches!(outcome, Err(ResidualError::Lost { .. })), "{:?}", outcome);
        } else {
            prop_assert_eq!(outcome, Ok(()));
        }
    }

    #[test]
    fn whoever_was_released_and_keeps_nothing_is_passed_over(
        which in 0usize..64, n in 2u32..=12, root: u32, per_segment in 0u64..4, vacate: bool, seed: u64,
    ) {
        let plans = plans(which, n, root, per_segment);
        prop_assume!(plans[0].spread != Spread::Single);
        let mut dice = Dice(seed);
        let chunks = plans[0].chunks.len() as u32;
        let keeper = dice.below(u64::from(n)) as usize;
        let mut vacant = vec![false; n as usize];
        if vacate { vacant[dice.below(u64::from(n)) as usize] = true; }
        vacant[keeper] = false;
        let satisfied: Vec<bool> = (0..n as usize).map(|r| !vacant[r] && dice.below(3) == 0).collect();
        let mut held = vec![Bitmap::empty(chunks); n as usize];
        held[keeper] = Bitmap::full(chunks);
        for (rank, id) in (0..n as usize).flat_map(|r| (0..chunks).map(move |c| (r, ChunkId(c)))) {
            if !vacant[rank] && dice.below(4) == 0 { held[rank].insert(id); }
        }
        prop_assert_eq!(prove_without(&plans, &held, &satisfied, &vacant), Ok(()));
    }

    #[test]
    fn holdings_in_any_disorder_never_count_twice_nor_get_stuck(
        which in 0usize..64, n in 1u32..=12, root: u32, per_segment in 0u64..4, vacate: bool, seed: u64,
    ) {
        let plans = plans(which, n, root, per_segment);
        let mut dice = Dice(seed);
        let chunks = plans[0].chunks.len() as u32;
        let single = plans[0].spread == Spread::Single;
        let mut vacant = vec![false; n as usize];
        if vacate { vacant[dice.below(u64::from(n)) as usize] = n > 1; }
        let mut held = vec![Bitmap::empty(chunks); n as usize];
        for (rank, id) in (0..n).flat_map(|r| (0..chunks).map(move |c| (Rank(r), ChunkId(c)))) {
            let may = !single || plans[0].chunks[id.index()].owner == rank;
            if may && dice.below(3) == 0 { held[rank.index()].insert(id); }
        }
        let outcome = prove(&plans, &held, &vacant);
        if outcome.is_err() {
            prop_assert!(some_chunk_is_gone(&plans, &held, &vacant) && vacant.contains(&true), "{:?}", outcome);
        }
    }
}

#[test]
fn an_op_that_nobody_began_is_the_plan_itself_and_a_finished_one_is_empty() {
    for which in 0..pairs().len() {
        let plans = plans(which, 5, 1, 2);
        let chunks = plans[0].chunks.len() as u32;
        for plan in &plans {
            let fresh = residual(plan, &vec![Bitmap::empty(chunks); 5], &[false; 5], &[false; 5]).unwrap();
            assert_eq!(&fresh, plan);
            let over = residual(plan, &vec![Bitmap::full(chunks); 5], &[false; 5], &[false; 5]).unwrap();
            assert_eq!(over.steps, []);
        }
    }
}

#[test]
fn tables_of_another_op_and_vacant_ranks_are_refused() {
    let plan = &plans(0, 3, 0, 1)[0];
    let chunks = plan.chunks.len() as u32;
    let err = residual(plan, &vec![Bitmap::empty(chunks); 2], &[false; 3], &[false; 3]).unwrap_err();
    assert!(matches!(err, ResidualError::Shape { given: 2, wanted: 3, .. }), "{err}");
    let err = residual(plan, &vec![Bitmap::empty(chunks + 1); 3], &[false; 3], &[false; 3]).unwrap_err();
    assert!(matches!(err, ResidualError::Shape { what: "a rank's holdings", .. }), "{err}");
    let err = residual(plan, &vec![Bitmap::empty(chunks); 3], &[false; 3], &[false; 2]).unwrap_err();
    assert!(matches!(err, ResidualError::Shape { given: 2, wanted: 3, .. }), "{err}");
    let err =
        residual(plan, &vec![Bitmap::empty(chunks); 3], &[false; 3], &[true, false, false]).unwrap_err();
    assert_eq!(err, ResidualError::VacantRank { rank: Rank(0) });
}

fn releases(spread: Spread, owner: u32, rank: u32, domains: &[u64], vacant: &[u32], f: u32) -> Vec<u32> {
    let n = domains.len() as u32;
    let chunks = [Chunk { start: 0, len: 1, owner: Rank(owner) }];
    let domains: Vec<_> = domains.iter().copied().map(DomainId).collect();
    let vacant: Vec<_> = (0..n).map(|r| vacant.contains(&r)).collect();
    release_set(spread, &chunks, Rank(rank), n, &domains, &vacant, f).into_iter().map(Rank::get).collect()
}

#[test]
fn on_a_ring_f_plus_one_domains_downstream_must_hold() {
    let each: Vec<u64> = (0..8).collect();
    assert_eq!(releases(Spread::Chain, 0, 0, &each, &[], 1), [1, 2]);
    assert_eq!(releases(Spread::Chain, 0, 0, &each, &[], 2), [1, 2, 3]);
    // The path ends before the owner.
    assert_eq!(releases(Spread::Chain, 0, 6, &each, &[], 2), [7]);
    assert_eq!(releases(Spread::Chain, 3, 2, &each, &[], 1), [] as [u32; 0]);
    // Two ranks a host: up to the first rank of the second host downstream, this host's own ranks counted once.
    let hosts = [0, 0, 1, 1, 2, 2, 3, 3];
    assert_eq!(releases(Spread::Chain, 0, 1, &hosts, &[], 1), [2, 3, 4]);
    assert_eq!(releases(Spread::Chain, 0, 0, &hosts, &[], 1), [1, 2]);
    // Vacant ranks are no hops and hold nothing.
    assert_eq!(releases(Spread::Chain, 0, 0, &each, &[1], 1), [2, 3]);
}

#[test]
fn on_a_tree_grandchildren_must_hold_and_top_ranks_wait_for_one_another() {
    let each: Vec<u64> = (0..15).collect();
    let tree = Spread::Kary(2);
    // The root is a top rank: its children are the others.
    assert_eq!(releases(tree, 0, 0, &each, &[], 1), [1, 2, 3, 4, 5, 6]);
    assert_eq!(releases(tree, 0, 1, &each, &[], 1), [0, 2, 3, 4, 7, 8, 9, 10]);
    // A grandchild of the root has two ancestors: not a top rank for f = 1, but for f = 2.
    assert_eq!(releases(tree, 0, 3, &each, &[], 1), [7, 8]);
    assert_eq!(releases(tree, 0, 3, &each, &[], 2), [0, 1, 2, 4, 5, 6, 7, 8]);
    // With the root gone its children are heads, and theirs are top ranks.
    assert_eq!(releases(tree, 0, 3, &each, &[0], 1), [1, 2, 4, 5, 6, 7, 8]);
    // A star is a tree of top ranks: everybody waits for everybody.
    assert_eq!(releases(Spread::Star, 2, 0, &each[..4], &[], 1), [1, 2, 3]);
}

#[test]
fn where_only_the_owner_holds_everybody_waits_for_all() {
    assert_eq!(releases(Spread::Single, 0, 2, &[0, 1, 2, 3], &[1], 1), [0, 3]);
}

/// The reason for R2, by brute force: whoever holds a chunk and has been released, and whichever `f` domains die, a
/// live unreleased rank holds it, or no live rank lacks it.
#[test]
fn after_any_allowed_loss_an_unreleased_holder_is_left() {
    let shapes = [Spread::Chain, Spread::Kary(2), Spread::Binomial, Spread::Doubling, Spread::Star];
    let mut dice = Dice(7);
    for spread in shapes {
        for n in 2..=9u32 {
            for _ in 0..200 {
                one_loss(spread, n, &mut dice);
            }
        }
    }
}

fn one_loss(spread: Spread, n: u32, dice: &mut Dice) {
    let owner = Rank(dice.below(u64::from(n)) as u32);
    let hosts = 1 + dice.below(2);
    let domains: Vec<_> = (0..u64::from(n)).map(|r| DomainId(r / hosts)).collect();
    let (nobody, chunk) = (vec![false; n as usize], [Chunk { start: 0, len: 1, owner }]);
    let mut held = vec![false; n as usize];
    let mut open = vec![owner];
    while let Some(rank) = open.pop() {
        held[rank.index()] = true;
        open.extend(spread.children(owner, rank, n).into_iter().filter(|_| dice.below(5) > 0));
    }
    let f = 1 + dice.below(2) as u32;
    let released: Vec<bool> = (0..n)
        .map(|r| {
            let waits = release_set(spread, &chunk, Rank(r), n, &domains, &nobody, f);
            held[r as usize] && waits.iter().all(|d| held[d.index()])
        })
        .collect();
    let dead: Vec<_> = (0..f).map(|_| domains[dice.below(u64::from(n)) as usize]).collect();
    let live = |r: &usize| !dead.contains(&domains[*r]);
    let ranks = || (0..n as usize).filter(live);
    let gone = ranks().any(|r| released[r]) && ranks().any(|r| !held[r]);
    let left = ranks().any(|r| held[r] && !released[r]);
    assert!(!gone || left, "{spread} n={n} {owner} f={f} held {held:?} released {released:?} dead {dead:?}");
}
