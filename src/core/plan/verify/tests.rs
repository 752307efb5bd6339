//! Each fault is caught and called by its name, on plans written by hand.

use super::*;
use crate::spec::{Algorithm, Dtype, ReduceOp};

const K: ChunkId = ChunkId(0);
const R0: Rank = Rank(0);
const R1: Rank = Rank(1);

/// Two ranks, one chunk of rank 0, all-reduce by a star; rank 1 gets the Final from rank 0.
fn two(steps: [Vec<Step>; 2]) -> Vec<Plan> {
    let spec = Spec {
        collective: Collective::AllReduce,
        dtype: Dtype::F32,
        reduction: ReduceOp::Sum,
        count: 4,
        root: R0,
        algorithm: Algorithm::Direct,
    };
    let chunks = vec![Chunk { start: 0, len: 4, owner: R0 }];
    let plan = |(rank, steps)| Plan {
        spec,
        world_size: 2,
        rank: Rank(rank),
        chunks: chunks.clone(),
        spread: Spread::Star,
        steps,
    };
    (0..).zip(steps).map(plan).collect()
}

fn send(from: Place, to: Rank) -> Step {
    Step::Send { chunk: K, from, to }
}

fn take(from: Rank) -> Step {
    Step::Take { chunk: K, from, into: Place::Output }
}

fn fold(from: Rank, with: Place, into: Target) -> Step {
    Step::Fold { chunk: K, from, with, order: Order::OwnFirst, into }
}

fn good() -> [Vec<Step>; 2] {
    [vec![Step::FoldAll { chunk: K }, send(Place::Output, R1)], vec![send(Place::Input, R0), take(R0)]]
}

fn fault(steps: [Vec<Step>; 2]) -> Fault {
    verify(&two(steps), 2, &Initial::fresh(2, 1)).expect_err("a planted fault")
}

#[test]
fn the_good_plan_is_proven_and_measured() {
    let proof = verify(&two(good()), 1, &Initial::fresh(2, 1)).unwrap();
    assert_eq!(proof.messages, [1, 1]);
    assert_eq!(proof.bytes, [16, 16]);
    assert_eq!(proof.rounds, [1, 2]);
    assert!(proof.canonical);
}

#[test]
fn the_association_is_compared_with_the_canonical_one() {
    let [mut a, b] = good();
    a[0] = Step::Fold {
        chunk: K,
        from: R1,
        with: Place::Input,
        order: Order::ArrivalFirst,
        into: Target::Output,
    };
    let proof = verify(&two([a, b]), 2, &Initial::fresh(2, 1)).unwrap();
    assert!(!proof.canonical, "x1 + x0 is not x0 + x1");
}

#[test]
fn two_ranks_that_wait_for_each_other_are_a_deadlock() {
    let [mut a, mut b] = good();
    a.reverse();
    b.reverse();
    a[0] = take(R1);
    let Fault::Deadlock { at, waits_for } = fault([a, b]) else { panic!("no deadlock") };
    assert_eq!((at.rank, at.step), (R0, 0));
    assert_eq!(waits_for, "takes a message that r1 never sends");
}

#[test]
fn a_full_link_holds_the_sender() {
    let [mut a, mut b] = good();
    a.splice(0..0, [send(Place::Input, R1); 3]);
    b.splice(0..0, [send(Place::Input, R0); 3]);
    let Fault::Deadlock { at, waits_for } = fault([a, b]) else { panic!("no deadlock") };
    assert_eq!((at.rank, at.step), (R0, 2));
    assert_eq!(waits_for, "sends to r1, which never takes what fills the link");
}

#[test]
fn contributions_are_counted() {
    let [mut a, b] = good();
    a[0] = Step::Settle { chunk: K, from: Place::Input };
    assert!(matches!(fault([a, b.clone()]), Fault::Incomplete { has: 1, wanted: 2, .. }));

    let double = vec![send(Place::Input, R0), send(Place::Input, R0), take(R0)];
    let a = vec![
        fold(R1, Place::Input, Target::Scratch),
        fold(R1, Place::Scratch, Target::Output),
        send(Place::Output, R1),
    ];
    assert!(matches!(fault([a, double]), Fault::CountedTwice { at: At { rank: R0, step: 1, .. } }));
}

#[test]
fn input_is_gone_after_output_and_output_is_written_once() {
    let [mut a, b] = good();
    a.push(send(Place::Input, R1));
    assert!(matches!(fault([a, b]), Fault::InputGone { at: At { rank: R0, step: 2, .. } }));

    let [mut a, mut b] = good();
    a.push(send(Place::Output, R1));
    b.push(take(R0));
    assert!(matches!(fault([a, b]), Fault::Rewritten { at: At { rank: R1, step: 2, .. } }));
}

#[test]
fn nothing_may_be_left_over_or_missing() {
    let [mut a, b] = good();
    a.push(send(Place::Output, R1));
    assert!(matches!(fault([a, b]), Fault::LeftInLink { from: R0, to: R1, .. }));

    let [a, mut b] = good();
    b.pop();
    let mut cut = a.clone();
    cut.pop();
    assert_eq!(fault([cut, b]), Fault::NotFinal { rank: R1, chunk: K });

    let kept = Step::Take { chunk: K, from: R0, into: Place::Scratch };
    let a = vec![send(Place::Input, R1), Step::FoldAll { chunk: K }, send(Place::Output, R1)];
    let b = vec![kept, send(Place::Input, R0), take(R0)];
    assert_eq!(fault([a, b]), Fault::LeftInScratch { rank: R1, chunk: K });
}

#[test]
fn kinds_places_and_peers_are_checked() {
    let [mut a, b] = good();
    a[1] = send(Place::Scratch, R1);
    assert!(matches!(fault([a, b]), Fault::NoValue { place: Place::Scratch, .. }));

    let [mut a, b] = good();
    a[0] = take(R1);
    assert!(matches!(fault([a, b]), Fault::WrongMessage { from: R1, .. }));

    let [mut a, b] = good();
    a.push(send(Place::Output, R0));
    assert!(matches!(fault([a, b]), Fault::Step { .. }));

    let [a, mut b] = good();
    b[0] = Step::Settle { chunk: K, from: Place::Input };
    assert!(matches!(fault([a, b]), Fault::Step { what: "only the owner makes a chunk Final", .. }));
}

#[test]
fn a_held_chunk_is_handed_on_by_the_path_and_never_made_again() {
    let mut initial = Initial::fresh(2, 1);
    initial.held[0].insert(K);
    let hand_on = [vec![send(Place::Output, R1)], vec![take(R0)]];
    assert!(verify(&two(hand_on), 1, &initial).is_ok());
    let again = verify(&two(good()), 1, &initial).unwrap_err();
    assert!(matches!(again, Fault::InputGone { .. }), "{again}");

    // Rank 1 holds it alone: the head, rank 0, is served by it, and must not add its input to it.
    let mut initial = Initial::fresh(2, 1);
    initial.held[1].insert(K);
    assert!(verify(&two([vec![take(R1)], vec![send(Place::Output, R0)]]), 1, &initial).is_ok());
    let alone = two([vec![Step::Settle { chunk: K, from: Place::Input }], vec![]]);
    assert!(verify(&alone, 1, &initial).is_err());
}

#[test]
fn a_final_off_the_path_is_refused() {
    let mut plans = two(good());
    for plan in &mut plans {
        plan.spread = Spread::Single;
    }
    let fault = verify(&plans, 1, &Initial::fresh(2, 1)).unwrap_err();
    assert!(matches!(fault, Fault::OffPath { from: R0, wanted: None, .. }), "{fault}");
}

#[test]
fn plans_of_different_ops_and_wrong_cuts_are_refused() {
    let mut plans = two(good());
    plans[1].spec.count = 5;
    assert!(matches!(verify(&plans, 1, &Initial::fresh(2, 1)), Err(Fault::Shape { rank: R1, .. })));
    let mut plans = two(good());
    for plan in &mut plans {
        plan.chunks[0].len = 3;
    }
    assert!(matches!(verify(&plans, 1, &Initial::fresh(2, 1)), Err(Fault::Cut { .. })));
}
