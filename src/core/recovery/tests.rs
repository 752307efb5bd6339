//! Decisions from ledgers written by hand.

use super::*;
use crate::ids::DomainId;
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};
use crate::view::MemberInfo;
use crate::wire::message::StepReport;

const RANKS: u32 = 4;

/// Four ranks, members 1 to 4 and a spare 9, in a world under replace.
struct World {
    view: View,
    reports: BTreeMap<Rank, Report>,
    losses: Vec<Loss>,
    expired: BTreeSet<OpId>,
    left: BTreeSet<MemberId>,
    rules: Rules,
    last: Option<Decision>,
}

fn info(member: u64) -> MemberInfo {
    let id = MemberId(member);
    MemberInfo {
        member: id,
        host: member,
        domain: DomainId(member),
        tcp: None,
        shm: None,
        pid: 1,
        wants: None,
    }
}

fn id(seq: u64) -> OpId {
    OpId { comm: CommId(0), seq: OpSeq(seq) }
}

fn broadcast() -> Spec {
    let (dtype, reduction, algorithm) = (Dtype::U64, ReduceOp::Sum, Algorithm::Kary);
    Spec { collective: Collective::Broadcast, dtype, reduction, count: 8, root: Rank(0), algorithm }
}

/// `Some(true)`: called and released, its result kept. `Some(false)`: called, nothing of it here.
fn row(seq: u64, is_done: bool) -> OpReport {
    OpReport {
        seq: OpSeq(seq),
        spec: broadcast(),
        attempt: Attempt(0),
        group: (0..RANKS).map(Rank).collect(),
        held: if is_done { Holding::Everything {} } else { Holding::Nothing {} },
        lost: Holding::Nothing {},
        released: is_done,
        done: is_done,
        failed: None,
    }
}

impl World {
    /// Each rank's rows: op 0 first.
    fn new(rows: [&[Option<bool>]; RANKS as usize]) -> Self {
        let view = View {
            epoch: Epoch(1),
            seats: (1..=u64::from(RANKS)).map(|m| Some(MemberId(m))).collect(),
            members: (1..=u64::from(RANKS)).map(info).collect(),
        };
        let report = |rows: &[Option<bool>]| {
            let ops = (0..).zip(rows).filter_map(|(seq, r)| r.map(|done| row(seq, done)));
            let ops: Vec<OpReport> = ops.collect();
            let group = (0..RANKS).map(Rank).collect();
            let next = OpSeq(ops.len() as u64);
            let comm =
                CommReport { comm: CommId(0), group, next, ops, step_first: OpSeq(0), begins: OpSeq(0) };
            let step =
                StepReport { committed: 0, open: true, state_bytes: 8, state_gone: false, state_held: None };
            Report { epoch: Epoch(2), comms: vec![comm], step }
        };
        let reports = (0..).map(Rank).zip(rows.iter().map(|r| report(r))).collect();
        Self {
            view,
            reports,
            losses: Vec::new(),
            expired: BTreeSet::new(),
            left: BTreeSet::new(),
            rules: Rules::new(RANKS, Policy::Replace),
            last: None,
        }
    }

    fn lose(mut self, rank: u32) -> Self {
        let member = MemberId(u64::from(rank) + 1);
        self.reports.remove(&Rank(rank));
        self.losses.push(Loss { rank: Rank(rank), member, cause: "killed".to_owned() });
        self
    }

    fn decide(&self) -> Result<Decision, Undecided> {
        let members: Vec<MemberInfo> = (1..=u64::from(RANKS)).map(info).chain([info(9)]).collect();
        decide(&Evidence {
            view: &self.view,
            epoch: Epoch(2),
            losses: &self.losses,
            reports: &self.reports,
            spares: &[MemberId(9)],
            members: &members,
            last: self.last.as_ref(),
            expired: &self.expired,
            left: &self.left,
            rules: &self.rules,
            fall_back: false,
        })
    }
}

const DONE: Option<bool> = Some(true);
const CALLED: Option<bool> = Some(false);

#[test]
fn a_result_that_is_held_is_handed_on_and_one_that_is_not_is_made_again() {
    let decision = World::new([&[DONE], &[CALLED], &[CALLED], &[]]).lose(2).decide().unwrap();
    assert_eq!(decision.ops[0].verdict, Verdict::Repair {});
    let nothing = Holding::Nothing {};
    assert_eq!(decision.ops[0].held, [Holding::Everything {}, nothing.clone(), nothing.clone(), nothing]);
    let nobody = World::new([&[CALLED], &[CALLED], &[CALLED], &[]]).lose(2).decide().unwrap();
    assert_eq!(nobody.ops[0].verdict, Verdict::Repair {});
    let all = World::new([&[DONE], &[DONE], &[DONE], &[DONE]]).decide().unwrap();
    assert_eq!(all.ops[0].verdict, Verdict::Keep {});
}

/// Found by the simulator (draw 20001418): a rank that was given an error at an earlier op made a later one fail for
/// the rest, though somebody had gone on with its result.
#[test]
fn a_rank_that_was_given_an_error_does_not_take_a_result_from_the_others() {
    let mut world = World::new([&[DONE, DONE], &[DONE, CALLED], &[CALLED], &[DONE, CALLED]]);
    let cause = FailCause::Expired { missing: vec![Rank(2)] };
    let mut failed = World::new([&[CALLED], &[CALLED], &[CALLED], &[CALLED]]).decide().unwrap();
    failed.ops[0].verdict = Verdict::Fail { cause: cause.clone() };
    failed.comms[0].broken = Some(cause);
    world.last = Some(failed);
    let decision = world.decide().unwrap();
    let later = decision.ops.iter().find(|o| o.id == id(1)).unwrap();
    assert_eq!(later.verdict, Verdict::Repair {});
    assert_eq!(later.held[2], Holding::Satisfied {});
    // Where nobody has gone on with it, it ends with the same error for all.
    let mut unreleased = World::new([&[DONE, CALLED], &[DONE, CALLED], &[CALLED], &[DONE, CALLED]]);
    unreleased.last = world.last;
    let later = unreleased.decide().unwrap().ops.into_iter().find(|o| o.id == id(1)).unwrap();
    assert!(matches!(later.verdict, Verdict::Fail { .. }), "{later:?}");
}

/// Found by the simulator (draw 20002994): ranks that had left were waited for in fence after fence.
#[test]
fn a_rank_that_has_left_is_not_waited_for() {
    let mut world = World::new([&[DONE], &[CALLED], &[], &[CALLED]]);
    world.left = [MemberId(3)].into();
    let decision = world.decide().unwrap();
    assert_eq!(decision.ops[0].verdict, Verdict::Repair {});
    assert_eq!(decision.ops[0].held[2], Holding::Satisfied {});
    let mut unreleased = World::new([&[CALLED], &[CALLED], &[], &[CALLED]]);
    unreleased.left = [MemberId(3)].into();
    let fails = Verdict::Fail { cause: FailCause::Expired { missing: vec![Rank(2)] } };
    assert_eq!(unreleased.decide().unwrap().ops[0].verdict, fails);
}

/// Found by review: an op that somebody was released from, and another never calls, was repaired at every deadline.
#[test]
fn whoever_lets_a_deadline_pass_that_others_have_behind_them_is_put_out() {
    let mut world = World::new([&[DONE], &[CALLED], &[], &[CALLED]]);
    assert_eq!(world.decide().unwrap().ops[0].verdict, Verdict::Repair {});
    world.expired = [id(0)].into();
    let overdue = Undecided::Overdue(Overdue { op: id(0), ranks: vec![Rank(2)] });
    assert_eq!(world.decide().unwrap_err(), overdue);
    // Its successor, which has not replayed yet, is not.
    let decision = world.lose(2).decide().unwrap();
    assert_eq!(decision.ops[0].verdict, Verdict::Repair {});
    assert_eq!(decision.view.occupant(Rank(2)), Some(MemberId(9)));
}

/// Found by review: where all were dead and nobody had left, the run was taken for finished.
#[test]
fn where_nobody_is_left_who_has_the_state_there_is_nothing_to_decide() {
    let world = World::new([&[DONE], &[DONE], &[DONE], &[DONE]]).lose(0).lose(1).lose(2).lose(3);
    assert_eq!(world.decide().unwrap_err(), Undecided::NobodyLeft);
    let mut waiting = World::new([&[DONE], &[DONE], &[DONE], &[]]).lose(0).lose(1).lose(2);
    if let Some(newcomer) = waiting.reports.get_mut(&Rank(3)) {
        newcomer.step.state_held = Some(Bitmap::empty(4));
    }
    assert_eq!(waiting.decide().unwrap_err(), Undecided::NobodyLeft);
}

/// Found by review: with the root dead nobody lacked anything, so the reduce ended well at ranks whose parts were lost.
#[test]
fn a_reduce_without_its_root_is_an_error() {
    let mut world = World::new([&[CALLED], &[CALLED], &[CALLED], &[CALLED]]);
    for report in world.reports.values_mut() {
        report.comms[0].ops[0].spec.collective = Collective::Reduce;
        report.step.open = false;
    }
    world.rules = Rules::new(RANKS, Policy::Shrink);
    let decision = world.lose(0).decide().unwrap();
    let cause = |v: &Verdict| matches!(v, Verdict::Fail { cause: FailCause::RankLost { .. } });
    assert!(cause(&decision.ops[0].verdict), "{:?}", decision.ops[0].verdict);
}

/// Found by review: a rank that had left and owed its part to a reduce was waited for.
#[test]
fn a_part_that_will_not_come_ends_the_op() {
    let mut world = World::new([&[CALLED], &[CALLED], &[], &[CALLED]]);
    for op in world.reports.values_mut().flat_map(|r| &mut r.comms[0].ops) {
        op.spec.collective = Collective::Reduce;
    }
    world.left = [MemberId(3)].into();
    let fails = Verdict::Fail { cause: FailCause::Expired { missing: vec![Rank(2)] } };
    assert_eq!(world.decide().unwrap().ops[0].verdict, fails);
}

/// Found by the simulator (draw 23043734): a commit that was decided was forgotten when the ranks that had it died.
#[test]
fn a_commit_that_was_decided_binds() {
    let mut world = World::new([&[CALLED], &[CALLED], &[CALLED], &[CALLED]]);
    let mut last = world.decide().unwrap();
    last.committed = 5;
    world.last = Some(last);
    assert_eq!(world.decide().unwrap().committed, 5);
}

/// What was called before the first step, and is over, a newcomer neither calls nor is waited for at.
#[test]
fn newcomers_begin_where_the_step_of_the_others_began() {
    let mut world = World::new([&[DONE, CALLED], &[DONE, CALLED], &[DONE, CALLED], &[DONE, CALLED]]);
    for report in world.reports.values_mut() {
        report.comms[0].begins = OpSeq(1);
    }
    let decision = world.lose(2).decide().unwrap();
    assert_eq!(decision.comms[0].begins, OpSeq(1));
    assert_eq!((&decision.ops[0].verdict, &decision.ops[0].id), (&Verdict::Keep {}, &id(0)));
    assert_eq!(decision.ops[1].verdict, Verdict::Repair {});
}
