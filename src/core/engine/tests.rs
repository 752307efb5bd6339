//! The engine alone: handles in, actions out, no byte moved.

use super::*;
use crate::engine::op::Retention;
use crate::ids::{Attempt, ChunkId, DomainId};
use crate::policy::Policy;
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp};
use crate::wire::Kind;
use crate::wire::message::{
    CommDecision, Decision, Downward, FailCause, Holding, OpDecision, VERSION, Verdict,
};

fn info(member: u64) -> MemberInfo {
    MemberInfo {
        member: MemberId(member),
        host: member,
        domain: DomainId(member),
        tcp: None,
        shm: None,
        pid: 1,
        wants: None,
    }
}

fn decision(epoch: u64, seats: &[Option<u64>], ops: Vec<OpDecision>) -> Downward {
    let group = (0..seats.len() as u32).map(Rank).collect();
    let view = View {
        epoch: Epoch(epoch),
        seats: seats.iter().map(|s| s.map(MemberId)).collect(),
        members: seats.iter().flatten().map(|m| info(*m)).collect(),
    };
    let comm = CommDecision { comm: WORLD, group, step_first: OpSeq(0), begins: OpSeq(0), broken: None };
    Downward::Decide {
        decision: Decision {
            view,
            losses: Vec::new(),
            newcomers: Vec::new(),
            comms: vec![comm],
            ops,
            committed: 0,
            state: None,
        },
    }
}

/// Rank 0 of four, in the first view, with one large all-reduce called on a ring.
fn with_an_op() -> (Engine, OpId, Spec) {
    let mut engine = Engine::new(info(1), 0);
    let mut rules = Rules::new(4, Policy::Abort);
    rules.chunk_bytes_max = 64;
    rules.retain_bytes = 0;
    rules.op_timeout_ms = 1_000;
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, 0);
    engine.handle_message(decision(1, &[Some(1), Some(2), Some(3), Some(4)], Vec::new()), 0);
    let spec = Spec {
        collective: Collective::AllReduce,
        dtype: Dtype::U64,
        reduction: ReduceOp::Sum,
        count: 32,
        root: Rank(0),
        algorithm: Algorithm::Ring,
    };
    let shape = CallShape { in_place: true, retention: Retention::None };
    let id = engine.handle_post(WORLD, spec, shape, 0).unwrap();
    (engine, id, spec)
}

fn run_steps(engine: &mut Engine, id: OpId) -> usize {
    let mut steps = 0;
    while engine.next_step(WORLD).is_some() {
        engine.handle_step_done(id, None);
        steps += 1;
    }
    steps
}

fn completes(engine: &mut Engine) -> usize {
    std::iter::from_fn(|| engine.poll_action()).filter(|a| matches!(a, Action::Complete { .. })).count()
}

fn fence(engine: &mut Engine, epoch: u64) {
    engine.handle_message(Downward::Fence { epoch: Epoch(epoch), losses: Vec::new() }, 0);
    while engine.poll_action().is_some() {}
    engine.handle_revoked();
}

fn confirm(engine: &mut Engine, id: OpId, from: MemberId) {
    let op = engine.op(id).unwrap();
    let header = Header { epoch: engine.epoch(), ..engine.header(op, Kind::Confirm, ChunkId(0), 0) };
    engine.handle_note(from, &header);
}

/// Takes rank 0 of four in the second view, with state to come from nobody and one op decided.
fn newcomer_with_an_op(verdict: impl Fn(OpId) -> Verdict) -> (Engine, OpId, Spec) {
    let (_, id, spec) = with_an_op();
    let mut engine = Engine::new(info(9), 0);
    let mut rules = Rules::new(4, Policy::Replace);
    rules.chunk_bytes_max = 64;
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, 0);
    engine.handle_begin(0).unwrap();
    let held = [Holding::Nothing {}, Holding::Everything {}, Holding::Everything {}, Holding::Everything {}];
    let op = OpDecision { verdict: verdict(id), ..repair(id, spec, held) };
    let Downward::Decide { mut decision } = decision(2, &[Some(9), Some(2), Some(3), Some(4)], vec![op])
    else {
        unreachable!()
    };
    decision.newcomers = vec![Rank(0)];
    fence(&mut engine, 2);
    engine.handle_message(Downward::Decide { decision }, 0);
    assert!(engine.is_newcomer() || engine.phase() == Phase::Steady);
    while engine.poll_action().is_some() {}
    (engine, id, spec)
}

fn repair(id: OpId, spec: Spec, held: [Holding; 4]) -> OpDecision {
    OpDecision {
        id,
        spec,
        verdict: Verdict::Repair {},
        attempt: Attempt(0),
        group: (0..4).map(Rank).collect(),
        held: held.to_vec(),
    }
}

/// Found by review: everybody it waited for was dead, so the op was released, and the caller's memory given back, while
/// the last survivor was still to be served from it.
#[test]
fn an_op_is_not_released_before_its_last_send_after_a_fence() {
    let (mut engine, id, spec) = with_an_op();
    run_steps(&mut engine, id);
    assert!(engine.op(id).unwrap().done && !engine.op(id).unwrap().released, "two confirmations are awaited");
    completes(&mut engine);
    fence(&mut engine, 2);
    let held = [Holding::Everything {}, Holding::Nothing {}, Holding::Nothing {}, Holding::Nothing {}];
    engine.handle_message(decision(2, &[Some(1), None, None, Some(4)], vec![repair(id, spec, held)]), 0);
    assert_eq!(completes(&mut engine), 0, "released with sends to r3 pending");
    assert!(run_steps(&mut engine, id) > 0, "r3 is to be served");
    // Found by review: whom it waits for was settled before the fence, by the view of then.
    assert_eq!(completes(&mut engine), 0, "released before the one it served has confirmed");
    confirm(&mut engine, id, MemberId(4));
    assert_eq!(completes(&mut engine), 1, "through with its sends, and confirmed");
}

/// Found by review: a head is served by the lowest holder, which need not wait for it by rule R2; a fence between the
/// send and its arrival found the chunk nowhere.
#[test]
fn whoever_hands_a_chunk_on_keeps_it_until_its_taker_confirms() {
    let (mut engine, id, spec) = with_an_op();
    run_steps(&mut engine, id);
    completes(&mut engine);
    fence(&mut engine, 2);
    // Rank 3 is the head of some chunks' paths, and above rank 0 on all others: rank 0 waits for 1 and 2 alone.
    let held = [Holding::Everything {}, Holding::Everything {}, Holding::Everything {}, Holding::Nothing {}];
    let seats = [Some(1), Some(2), Some(3), Some(9)];
    engine.handle_message(decision(2, &seats, vec![repair(id, spec, held)]), 0);
    assert!(run_steps(&mut engine, id) > 0, "rank 0 is the lowest holder");
    assert_eq!(completes(&mut engine), 0, "released before rank 3 has confirmed");
    confirm(&mut engine, id, MemberId(9));
    assert_eq!(completes(&mut engine), 1);
}

/// Found by review: a newcomer's caller got its memory back with the error, but the op went on to write there.
#[test]
fn a_replay_that_differs_ends_with_a_typed_error_and_moves_nothing() {
    let (mut engine, id, spec) = newcomer_with_an_op(|_| Verdict::Repair {});
    let other = Spec { count: spec.count + 1, ..spec };
    let shape = CallShape { in_place: true, retention: Retention::ByReference };
    engine.handle_post(WORLD, other, shape, 0).unwrap();
    assert_eq!(run_steps(&mut engine, id), 0);
    let ended = std::iter::from_fn(|| engine.poll_action()).any(
        |a| matches!(a, Action::Complete { outcome: Err(OpError::ReplayMismatch { .. }), op } if op == id),
    );
    assert!(ended);
    let op = engine.op(id).unwrap();
    assert!(op.done && op.released && !op.retained, "{op:?}");
}

/// Found by review: where the others were given an error a newcomer was told that its replay differs.
#[test]
fn whatever_a_newcomer_calls_where_the_others_failed_fails_alike() {
    let cause = FailCause::Expired { missing: vec![Rank(2)] };
    let (mut engine, id, spec) = newcomer_with_an_op(|_| Verdict::Fail { cause: cause.clone() });
    let other = Spec { count: spec.count + 1, ..spec };
    let shape = CallShape { in_place: true, retention: Retention::None };
    engine.handle_post(WORLD, other, shape, 0).unwrap();
    let ends: Vec<_> = std::iter::from_fn(|| engine.poll_action())
        .filter_map(|a| if let Action::Complete { outcome, .. } = a { Some(outcome) } else { None })
        .collect();
    assert!(
        matches!(&ends[..], [Err(OpError::Failed { cause: c, op, .. })] if *c == cause && *op == id),
        "{ends:?}"
    );
}

/// Found by review: a repaired op past its deadline was told overdue again in the same turn, and fenced for ever.
#[test]
fn the_deadline_of_a_repaired_op_runs_anew() {
    let (mut engine, id, spec) = with_an_op();
    let told = |engine: &mut Engine, now_ms| {
        engine.handle_message(Downward::BeatSeen { epoch: Epoch(1), stable: Vec::new() }, now_ms);
        engine.handle_timeout(now_ms);
        std::iter::from_fn(|| engine.poll_message()).filter(|m| matches!(m, Upward::Expired { .. })).count()
    };
    assert_eq!(told(&mut engine, 1_000), 1);
    fence(&mut engine, 2);
    let nothing = || Holding::Nothing {};
    let op = repair(id, spec, [nothing(), nothing(), nothing(), nothing()]);
    engine.handle_message(decision(2, &[Some(1), Some(2), Some(3), Some(4)], vec![op]), 1_100);
    assert_eq!(told(&mut engine, 1_101), 0, "a fence for every turn");
    assert_eq!(told(&mut engine, 2_100), 1, "but it still ends");
}

/// Found by review: a rank whose step body had failed was made a provider of state that it had taken back.
#[test]
fn a_rank_that_gave_its_step_up_serves_no_state() {
    use crate::wire::message::StateDecision;
    let mut engine = Engine::new(info(1), 0);
    engine.handle_message(Downward::Welcome { version: VERSION, rules: Rules::new(2, Policy::Replace) }, 0);
    engine.handle_message(decision(1, &[Some(1), Some(2)], Vec::new()), 0);
    engine.handle_begin(100).unwrap();
    engine.handle_state_gone();
    fence(&mut engine, 2);
    assert!(engine.report().step.state_gone);
    let Downward::Decide { decision: mut next } = decision(2, &[Some(1), Some(3)], Vec::new()) else {
        return;
    };
    next.newcomers = vec![Rank(1)];
    let newcomers = vec![(Rank(1), Holding::Nothing {})];
    next.state = Some(StateDecision { committed: 0, providers: vec![Rank(0)], bytes: 100, newcomers });
    engine.handle_message(Downward::Decide { decision: next }, 0);
    assert!(engine.next_step(WORLD).is_none(), "it would send memory that is the caller's again");
}

/// Found by review: nested splits of different parents had one id, and a replay counted otherwise than the first run.
#[test]
fn split_ids_follow_from_parent_and_place_alone() {
    let mut seen = BTreeSet::from([WORLD, STATE_COMM]);
    for parent in [WORLD, Engine::split_id(WORLD, OpSeq(1), 0), Engine::split_id(WORLD, OpSeq(2), 0)] {
        for (at, index) in (0..50).flat_map(|at| (0..4).map(move |i| (OpSeq(at), i))) {
            seen.insert(Engine::split_id(parent, at, index));
        }
    }
    assert_eq!(seen.len(), 2 + 3 * 200);
    let (mut engine, ..) = with_an_op();
    engine.handle_split(CommId(5), vec![Rank(0)]).unwrap();
    engine.handle_split(CommId(5), vec![Rank(0)]).unwrap();
    let clash = engine.handle_split(CommId(5), vec![Rank(0), Rank(1)]).unwrap_err();
    assert!(matches!(clash, CallError::SplitClash { .. }), "{clash}");
}

/// Found by review: a rank that had missed the decision of a new attempt kept what it had of the old one, in a buffer
/// that was never restored.
#[test]
fn a_rank_that_missed_a_new_attempt_begins_it_from_its_inputs() {
    let (mut engine, id, spec) = with_an_op();
    run_steps(&mut engine, id);
    assert!(engine.op(id).unwrap().held.count() > 0);
    fence(&mut engine, 3);
    let shrunk = OpDecision {
        attempt: Attempt(1),
        group: vec![Rank(0), Rank(1), Rank(3)],
        held: vec![Holding::Nothing {}; 3],
        ..repair(id, spec, [const { Holding::Nothing {} }; 4])
    };
    engine.handle_message(decision(3, &[Some(1), Some(2), None, Some(4)], vec![shrunk]), 0);
    let op = engine.op(id).unwrap();
    assert_eq!((op.held.count(), op.done, op.attempt), (0, false, Attempt(1)));
    let restores =
        std::iter::from_fn(|| engine.poll_action()).any(|a| matches!(a, Action::Restore { op } if op == id));
    assert!(restores, "its buffer holds results of the old attempt");
}

/// Found by review: an op called after the ledger was told, of which the decision had left this rank out, never ended.
/// Found by the simulator (draw 200022434): it ended with an error where the others had the result.
#[test]
fn a_rank_that_is_left_out_of_an_op_it_has_called_since_asks_for_it() {
    let (mut engine, id, spec) = with_an_op();
    while engine.poll_action().is_some() {}
    fence(&mut engine, 2);
    let all = Holding::Everything {};
    let left_out = OpDecision {
        verdict: Verdict::Keep {},
        ..repair(id, spec, [Holding::Satisfied {}, all.clone(), all.clone(), all.clone()])
    };
    let seats = [Some(1), Some(2), Some(3), Some(4)];
    while engine.poll_message().is_some() {}
    engine.handle_message(decision(2, &seats, vec![left_out]), 0);
    assert_eq!((completes(&mut engine), run_steps(&mut engine, id)), (0, 0));
    let asks = std::iter::from_fn(|| engine.poll_message())
        .any(|m| matches!(m, Upward::Mismatch { op, epoch: Epoch(2), .. } if op == id));
    assert!(asks);
    fence(&mut engine, 3);
    assert_eq!(engine.report().comms[0].ops.len(), 1, "now the ledger knows of it");
    let held = [Holding::Nothing {}, all.clone(), all.clone(), all];
    engine.handle_message(decision(3, &seats, vec![repair(id, spec, held)]), 0);
    assert!(run_steps(&mut engine, id) > 0);
    assert_eq!(engine.op(id).unwrap().held.count(), engine.op(id).unwrap().held.len());
}

/// Found by the simulator (draw 102007216): the answer to a join renewed the lease of a member that had been put out.
#[test]
fn a_welcome_renews_no_lease_of_a_rank() {
    let (mut engine, id, _) = with_an_op();
    let late = engine.rules().unwrap().lease_ms;
    let rules = engine.rules().unwrap().clone();
    engine.handle_timeout(late);
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, late);
    assert_eq!(run_steps(&mut engine, id), 0, "its lease is over");
}

/// P5: nobody but the coordinator ends an op, but nobody waits for it for ever.
#[test]
fn a_member_whose_coordinator_stays_away_leaves_after_the_deadline_of_an_op() {
    let (mut engine, id, _) = with_an_op();
    let rules = engine.rules().unwrap().clone();
    let last = rules.lease_ms + rules.op_timeout_ms;
    (0..last).step_by(500).for_each(|at| engine.handle_timeout(at));
    engine.handle_timeout(last - 1);
    assert_eq!(completes(&mut engine), 0, "it may still come back");
    engine.handle_timeout(last);
    let ended: Vec<Action> = std::iter::from_fn(|| engine.poll_action()).collect();
    let Some(Action::Complete { op, outcome: Err(error) }) = ended.first() else { panic!("{ended:?}") };
    assert_eq!(*op, id);
    assert!(error.to_string().contains("no word from the coordinator for 6 s"), "{error}");
    assert!(matches!(ended.last(), Some(Action::Halt { .. })), "{ended:?}");
    assert_eq!(engine.poll_timeout(), None);
    while engine.poll_message().is_some() {}
    engine.handle_connected();
    assert_eq!(engine.poll_message(), None, "it has ended its ops, and takes part no more");
}

#[test]
fn a_spare_whose_coordinator_stays_away_leaves_too_and_one_that_hears_of_it_stays() {
    let mut engine = Engine::new(info(9), 0);
    let rules = Rules::new(4, Policy::Replace);
    let last = rules.lease_ms + rules.op_timeout_ms;
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, 0);
    (0..last).step_by(500).for_each(|at| engine.handle_timeout(at));
    // Each answer is one to a beat, in their order.
    for _ in 0..last / 500 {
        engine.handle_message(Downward::BeatSeen { epoch: Epoch(1), stable: Vec::new() }, last);
    }
    engine.handle_timeout(last);
    assert_eq!(engine.poll_action(), None, "it was there");
    (last..=3 * last).step_by(500).for_each(|at| engine.handle_timeout(at));
    assert!(matches!(engine.poll_action(), Some(Action::Halt { .. })));
}

/// A machine that was paused wakes with everybody's deadline behind it; what was said meanwhile is still to be read.
#[test]
fn a_member_that_did_not_run_does_not_take_its_coordinator_for_gone() {
    let (mut engine, _, _) = with_an_op();
    let rules = engine.rules().unwrap().clone();
    let long = 10 * (rules.lease_ms + rules.op_timeout_ms);
    engine.handle_timeout(1);
    engine.handle_timeout(long);
    assert_eq!(completes(&mut engine), 0, "it has only just woken");
    let last = long + rules.lease_ms + rules.op_timeout_ms;
    (long..last).step_by(500).for_each(|at| engine.handle_timeout(at));
    assert_eq!(completes(&mut engine), 0);
    engine.handle_timeout(last);
    assert_eq!(completes(&mut engine), 1, "awake for so long it has heard nothing");
}

/// Found by the swarm: the connection broke while the answer to a fence was under way, and the member had missed the
/// decision before it. Told of both, it took its seat in the old epoch, and all others waited for its answer.
#[test]
fn a_decision_older_than_the_answered_fence_changes_nothing_and_the_answer_is_told_again() {
    let mut engine = Engine::new(info(1), 0);
    let rules = Rules::new(4, Policy::Replace);
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, 0);
    fence(&mut engine, 4);
    let told = |engine: &mut Engine| {
        let messages = std::iter::from_fn(|| engine.poll_message());
        messages.filter(|m| matches!(m, Upward::Ledger { report } if report.epoch == Epoch(4))).count()
    };
    assert_eq!((engine.phase(), told(&mut engine)), (Phase::Deciding, 1));
    engine.handle_connected();
    engine.handle_message(decision(1, &[Some(1), Some(2), Some(3), Some(4)], Vec::new()), 0);
    engine.handle_message(Downward::Fence { epoch: Epoch(4), losses: Vec::new() }, 0);
    assert_eq!((engine.phase(), told(&mut engine)), (Phase::Deciding, 1));
    engine.handle_message(decision(4, &[Some(1), Some(2), Some(3), Some(4)], Vec::new()), 0);
    assert_eq!((engine.phase(), engine.epoch()), (Phase::Steady, Epoch(4)));
}

fn note(kind: Kind, comm: u32, seq: u64) -> Header {
    Header {
        kind,
        op: OpId { comm: CommId(comm), seq: OpSeq(seq) },
        attempt: Attempt(0),
        epoch: Epoch(1),
        chunk: ChunkId(0),
        signature: 0,
        payload_bytes: 0,
        stable: OpSeq(0),
        checksum: 0,
    }
}

/// Found by hostile input: each note about something that nobody has was kept until the next fence.
#[test]
fn notes_that_are_made_up_are_not_kept_without_end_and_harm_nobody_elses() {
    let (mut engine, _, _) = with_an_op();
    for made_up in 0..20_000 {
        engine.handle_note(MemberId(2), &note(Kind::Confirm, 0, 100 + made_up));
        engine.handle_note(MemberId(2), &note(Kind::Pause, 7 + made_up as u32, 0));
    }
    assert!(!engine.is_paused(), "of communicators that this rank does not have");
    assert!(engine.early_confirms[&Rank(1)].len() <= 5000);
    engine.handle_note(MemberId(3), &note(Kind::Confirm, 0, 90_000));
    assert_eq!(engine.early_confirms[&Rank(2)].len(), 1, "what another rank says is kept all the same");
    engine.handle_note(MemberId(2), &note(Kind::Pause, 0, 0));
    assert!(engine.is_paused());
}

/// Found by the swarm: a rank was stopped before it read that it is let in, woke when it had just been declared dead,
/// took that answer for a lease, and returned success.
#[test]
fn an_answer_that_was_read_late_gives_no_lease_and_the_first_beat_does() {
    let mut engine = Engine::new(info(1), 0);
    let rules = Rules::new(1, Policy::Abort);
    let late = rules.lease_ms + 10;
    engine.handle_message(Downward::Welcome { version: VERSION, rules }, late);
    engine.handle_message(decision(1, &[Some(1)], Vec::new()), late);
    let spec = Spec {
        collective: Collective::Barrier,
        dtype: Dtype::U64,
        reduction: ReduceOp::Sum,
        count: 0,
        root: Rank(0),
        algorithm: Algorithm::Direct,
    };
    let shape = CallShape { in_place: true, retention: Retention::None };
    engine.handle_post(WORLD, spec, shape, late).unwrap();
    engine.handle_timeout(late);
    assert_eq!(completes(&mut engine), 0);
    let beats = std::iter::from_fn(|| engine.poll_message()).filter(|m| matches!(m, Upward::Beat { .. }));
    assert_eq!(beats.count(), 1, "it asks at once");
    engine.handle_message(Downward::BeatSeen { epoch: Epoch(1), stable: Vec::new() }, late + 1);
    while engine.next_step(WORLD).is_some() {
        let id = engine.op_ids().next().unwrap();
        engine.handle_step_done(id, None);
    }
    assert_eq!(completes(&mut engine), 1);
}
