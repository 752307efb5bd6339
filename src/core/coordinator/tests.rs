//! The coordinator with real engines, and no data between them: every message arrives, every write succeeds at once.

use super::*;
use crate::engine::{Action, CallShape, Engine, Retention, WORLD};
use crate::error::{CallError, OpError};
use crate::ids::DomainId;
use crate::policy::Policy;
use crate::spec::Collective;

struct World {
    coordinator: Coordinator,
    engines: BTreeMap<MemberId, Engine>,
    /// What each engine asked its driver to do.
    actions: Vec<(MemberId, Action)>,
    /// What was written last.
    record: Option<Record>,
}

impl World {
    /// `ranks` members 1, 2, … with a seat; spares are added.
    fn new(ranks: u32) -> Self {
        let coordinator = Coordinator::new(Rules::new(ranks, Policy::Replace), None, 0);
        let mut world = Self { coordinator, engines: BTreeMap::new(), actions: Vec::new(), record: None };
        for rank in 0..ranks {
            world.add(u64::from(rank) + 1, Some(Rank(rank)));
        }
        world
    }

    fn add(&mut self, member: u64, wants: Option<Rank>) -> MemberId {
        let id = MemberId(member);
        let domain = DomainId(member);
        let info = MemberInfo { member: id, host: member, domain, tcp: None, shm: None, pid: 1, wants };
        self.engines.insert(id, Engine::new(info, 0));
        id
    }

    fn kill(&mut self, member: MemberId) {
        self.engines.remove(&member);
        self.coordinator.handle_lost(member, "killed", 0);
    }

    fn drive(&mut self, member: MemberId) {
        let Some(engine) = self.engines.get_mut(&member) else { return };
        while let Some(action) = engine.poll_action() {
            if matches!(action, Action::Revoke { .. }) {
                engine.handle_revoked();
            }
            self.actions.push((member, action));
        }
        while let Some(message) = engine.poll_message() {
            self.coordinator.handle_message(member, message, 0);
        }
    }

    /// Until nobody has anything to say; `writes`: the store takes so many records, the rest stays unwritten.
    fn pump(&mut self, mut writes: usize) {
        for _ in 0..50 {
            for member in self.engines.keys().copied().collect::<Vec<_>>() {
                self.drive(member);
            }
            while writes > 0
                && let Some(record) = self.coordinator.poll_store()
            {
                writes -= 1;
                self.coordinator.handle_stored(&record, 0);
                self.record = Some(record);
            }
            while let Some((to, message)) = self.coordinator.poll_message() {
                if let Some(engine) = self.engines.get_mut(&to) {
                    engine.handle_message(message, 0);
                }
            }
        }
    }

    /// Another process takes the coordinator's place.
    fn restart(&mut self) {
        let rules = self.coordinator.rules().clone();
        self.coordinator = Coordinator::new(rules, self.record.clone(), 0);
        self.engines.values_mut().for_each(Engine::handle_connected);
    }

    /// The link between two members breaks, and both ends say so.
    fn break_link(&mut self, one: MemberId, two: MemberId, now_ms: u64) {
        for (at, other) in [(one, two), (two, one)] {
            let engine = self.engines.get_mut(&at).unwrap();
            engine.handle_link_fault(other, "connection reset".to_owned());
            while let Some(message) = engine.poll_message() {
                self.coordinator.handle_message(at, message, now_ms);
            }
        }
    }

    fn losses(&mut self) -> Vec<Loss> {
        let events = std::iter::from_fn(|| self.coordinator.poll_event());
        events.filter_map(|e| if let WorldEvent::Lost(loss) = e { Some(loss) } else { None }).collect()
    }

    fn begun(&self, member: MemberId) -> bool {
        self.actions.iter().any(|(m, a)| *m == member && matches!(a, Action::StepBegun { .. }))
    }
}

const ALL: usize = usize::MAX;

/// Found by review: the state of nobody was decided to have no bytes, so every spare was refused for having some.
#[test]
fn a_loss_before_the_first_step_lets_the_newcomer_begin_from_its_own_state() {
    let mut world = World::new(2);
    let spare = world.add(9, None);
    world.engines.get_mut(&spare).unwrap().handle_begin(400).unwrap();
    world.pump(ALL);
    world.kill(MemberId(2));
    world.pump(ALL);
    assert_eq!(world.coordinator.view().occupant(Rank(1)), Some(spare));
    assert!(world.begun(spare), "{:?}", world.actions);
    let is_put_out = |(m, a): &(MemberId, Action)| *m == spare && matches!(a, Action::Halt { .. });
    assert!(!world.actions.iter().any(is_put_out), "{:?}", world.actions);
    world.engines.get_mut(&MemberId(1)).unwrap().handle_begin(400).unwrap();
    world.pump(ALL);
    assert!(world.begun(MemberId(1)));
}

/// Found by review: it was seated by the decision, but no longer known, so that its seat was never filled again.
#[test]
fn a_spare_that_leaves_while_its_seat_is_written_is_replaced() {
    let mut world = World::new(2);
    let first = world.add(8, None);
    world.pump(ALL);
    world.kill(MemberId(2));
    world.pump(1); // The fence is written, the decision not yet.
    assert_eq!(world.coordinator.pending.as_ref().and_then(|d| d.view.rank_of(first)), Some(Rank(1)));
    world.engines.get_mut(&first).unwrap().handle_leave();
    world.drive(first);
    let second = world.add(9, None);
    world.pump(ALL);
    assert_eq!(world.coordinator.view().occupant(Rank(1)), Some(second));
}

/// Found by review: it waited for a word that nobody had for it.
#[test]
fn a_spare_that_leaves_without_a_seat_may_go() {
    let mut world = World::new(2);
    let spare = world.add(8, None);
    world.pump(ALL);
    world.engines.get_mut(&spare).unwrap().handle_leave();
    world.pump(ALL);
    assert!(
        world.actions.iter().any(|(m, a)| *m == spare && matches!(a, Action::RunOver)),
        "{:?}",
        world.actions
    );
    assert!(!world.coordinator.is_finished(), "the others go on");
}

/// Found by review: a waiter whose peers had all left waited for ever.
#[test]
fn the_end_of_the_run_ends_what_is_still_open() {
    let mut world = World::new(2);
    world.pump(ALL);
    let spec = Engine::empty_spec(Collective::Barrier, 2);
    let shape = CallShape { in_place: false, retention: Retention::None };
    let one = world.engines.get_mut(&MemberId(1)).unwrap();
    let op = one.handle_post(WORLD, spec, shape, 0).unwrap();
    one.handle_leave();
    world.engines.get_mut(&MemberId(2)).unwrap().handle_leave();
    world.pump(ALL);
    assert!(world.coordinator.is_finished());
    let ended = world.actions.iter().any(
        |(_, a)| matches!(a, Action::Complete { op: o, outcome: Err(OpError::Evicted { .. }) } if *o == op),
    );
    assert!(ended, "{:?}", world.actions);
}

/// Found by review: what is told once was lost with the connection it was told on.
#[test]
fn a_new_connection_hears_again_what_was_told_once() {
    let mut world = World::new(2);
    world.pump(ALL);
    let spec = Engine::empty_spec(Collective::Barrier, 2);
    let shape = CallShape { in_place: false, retention: Retention::None };
    let engine = world.engines.get_mut(&MemberId(1)).unwrap();
    engine.handle_post(WORLD, spec, shape, 0).unwrap();
    let late = engine.rules().unwrap().op_timeout_ms;
    let mut expiries = || {
        engine.handle_message(Downward::BeatSeen { epoch: Epoch(1), stable: Vec::new() }, 0);
        engine.handle_timeout(late);
        let count = std::iter::from_fn(|| engine.poll_message())
            .filter(|m| matches!(m, Upward::Expired { .. }))
            .count();
        engine.handle_connected();
        count
    };
    assert_eq!((expiries(), expiries()), (1, 1));
}

/// Found by review: with every rank dead and nobody gone by itself, the run was told finished, and its spares ended as
/// if it had succeeded.
#[test]
fn a_world_whose_ranks_all_died_is_not_finished_but_lost() {
    let mut world = World::new(2);
    let spare = world.add(9, None);
    world.pump(ALL);
    world.kill(MemberId(1));
    world.kill(MemberId(2));
    world.pump(ALL);
    let events: Vec<_> = std::iter::from_fn(|| world.coordinator.poll_event()).collect();
    assert!(events.iter().any(|e| matches!(e, WorldEvent::Unrecoverable(_))), "{events:?}");
    assert!(!events.contains(&WorldEvent::Finished));
    let is_told = |(m, a): &(MemberId, Action)| *m == spare && matches!(a, Action::Halt { .. });
    assert!(world.actions.iter().any(is_told), "{:?}", world.actions);
    // Who came after that was told that the run had finished.
    let late = world.add(10, None);
    world.pump(ALL);
    let is_told = |(m, a): &(MemberId, Action)| *m == late && matches!(a, Action::Halt { .. });
    assert!(world.actions.iter().any(is_told), "{:?}", world.actions);
}

/// Found by review: every clean exit after the end was told as a loss.
#[test]
fn who_goes_after_the_end_is_not_lost() {
    let mut world = World::new(2);
    world.pump(ALL);
    world.engines.values_mut().for_each(Engine::handle_leave);
    world.pump(ALL);
    assert!(world.coordinator.is_finished());
    let ranks = [MemberId(1), MemberId(2)];
    ranks.into_iter().for_each(|member| world.kill(member));
    let told: Vec<WorldEvent> = std::iter::from_fn(|| world.coordinator.poll_event()).collect();
    assert!(!told.iter().any(|e| matches!(e, WorldEvent::Lost(_))), "{told:?}");
    assert_eq!(told.last(), Some(&WorldEvent::Finished));
}

/// Ranks that name states of different sizes: a provider was asked for bytes that it does not have, and panicked.
#[test]
fn a_state_is_taken_from_providers_of_one_size() {
    let mut world = World::new(3);
    let spare = world.add(9, None);
    world.pump(ALL);
    for (member, bytes) in [(MemberId(1), 400), (MemberId(2), 800)] {
        world.engines.get_mut(&member).unwrap().handle_begin(bytes).unwrap();
    }
    world.pump(ALL);
    world.kill(MemberId(3));
    world.pump(ALL);
    assert_eq!(world.coordinator.view().occupant(Rank(2)), Some(spare));
    let state = world.coordinator.last.as_ref().and_then(|d| d.state.clone()).unwrap();
    assert_eq!((state.bytes, state.providers), (400, vec![Rank(0)]));
}

#[test]
fn a_provider_that_gives_its_step_up_while_it_serves_is_replaced_by_the_others() {
    let mut world = World::new(3);
    let spare = world.add(9, None);
    world.pump(ALL);
    for member in [MemberId(1), MemberId(2), spare] {
        world.engines.get_mut(&member).unwrap().handle_begin(400).unwrap();
    }
    world.kill(MemberId(3));
    world.pump(ALL);
    let state = |world: &World| world.coordinator.last.as_ref().and_then(|d| d.state.clone()).unwrap();
    assert_eq!((world.coordinator.epoch(), state(&world).providers), (Epoch(2), vec![Rank(0), Rank(1)]));
    assert!(world.engines.get_mut(&MemberId(1)).unwrap().handle_state_gone(), "the others are to be told");
    world.pump(ALL);
    let after = state(&world);
    assert_eq!((world.coordinator.epoch(), after.bytes, after.providers), (Epoch(3), 400, vec![Rank(1)]));
    assert_eq!(world.coordinator.view().occupant(Rank(2)), Some(spare));
    assert!(world.losses().iter().all(|l| l.member == MemberId(3)), "nobody else is put out");
}

#[test]
fn who_is_to_serve_the_state_of_a_step_must_begin_it_with_that_size() {
    let mut world = World::new(3);
    world.add(9, None);
    world.pump(ALL);
    world.engines.get_mut(&MemberId(1)).unwrap().handle_begin(400).unwrap();
    // Nobody who has the state open is left: the other one is to serve it once it has begun.
    world.engines.get_mut(&MemberId(1)).unwrap().handle_state_gone();
    world.pump(ALL);
    world.kill(MemberId(3));
    world.pump(ALL);
    let state = world.coordinator.last.as_ref().and_then(|d| d.state.clone()).unwrap();
    assert_eq!((state.bytes, state.providers), (400, vec![Rank(1)]));
    let late = world.engines.get_mut(&MemberId(2)).unwrap();
    assert_eq!(late.handle_begin(800), Err(CallError::StateSize { here: 800, there: 400 }));
    late.handle_begin(400).unwrap();
}

/// Found by the simulator: the losses of before the last decision were forgotten by the next coordinator, and a rank
/// that had been cut off since the world formed, and so knew of no view, was taken for a new spare.
#[test]
fn who_lost_its_seat_to_an_earlier_coordinator_never_sits_again() {
    let mut world = World::new(3);
    world.add(9, None);
    world.engines.get_mut(&MemberId(3)).unwrap().handle_connected();
    world.drive(MemberId(3));
    let cut_off = world.engines.remove(&MemberId(3)).unwrap();
    world.pump(ALL);
    world.kill(MemberId(3));
    world.pump(ALL);
    assert_eq!(world.coordinator.view().occupant(Rank(2)), Some(MemberId(9)));
    world.kill(MemberId(2)); // Its fence is written without the losses that are decided.
    world.pump(ALL);
    world.restart();
    world.engines.insert(MemberId(3), cut_off);
    world.engines.get_mut(&MemberId(3)).unwrap().handle_connected();
    world.pump(ALL);
    assert_eq!(world.coordinator.spares(), []);
    let is_told = |(m, a): &(MemberId, Action)| *m == MemberId(3) && matches!(a, Action::Halt { .. });
    assert!(world.actions.iter().any(is_told), "{:?}", world.actions);
}

/// It waited until the first lease was checked, six seconds unless set.
#[test]
fn a_coordinator_that_is_started_again_fences_as_soon_as_all_are_back() {
    let mut world = World::new(2);
    world.pump(ALL);
    world.restart();
    assert!(!world.coordinator.is_steady());
    world.pump(ALL);
    assert_eq!((world.coordinator.epoch(), world.coordinator.is_steady()), (Epoch(2), true));
}

/// Found by the swarm: a member that was fenced before it heard the first decision is in no epoch. The next coordinator
/// took that for not being back, and nobody ever fenced again.
#[test]
fn a_member_in_no_epoch_is_back_all_the_same() {
    let mut world = World::new(3);
    world.pump(0);
    world.kill(MemberId(3)); // While the first decision is being written.
    world.pump(ALL);
    assert!(world.engines.values().all(|e| e.epoch() == Epoch(0)), "{:?}", world.coordinator);
    world.restart();
    world.pump(ALL);
    assert!(world.coordinator.epoch() > Epoch(2), "{:?}", world.coordinator);
    assert!(!world.coordinator.is_finished(), "the two that are left have all there is");
    world.add(4, None);
    world.pump(ALL);
    let in_force = world.coordinator.epoch();
    assert!(world.coordinator.is_steady(), "{:?}", world.coordinator);
    assert!(world.engines.values().all(|e| e.epoch() == in_force), "{:?}", world.coordinator);
}

#[test]
fn a_link_that_breaks_between_two_that_live_is_repaired_by_a_fence_without_a_loss() {
    let mut world = World::new(3);
    world.pump(ALL);
    let seats = world.coordinator.view().seats.clone();
    world.break_link(MemberId(1), MemberId(2), 1_000);
    assert_eq!(world.coordinator.poll_timeout(), Some(1_000 + links::GRACE_MS));
    world.coordinator.handle_timeout(1_000 + links::GRACE_MS - 1);
    assert!(world.coordinator.is_steady(), "it may be the first sign of a death");
    world.coordinator.handle_timeout(1_000 + links::GRACE_MS);
    assert!(!world.coordinator.is_steady());
    world.pump(ALL);
    assert_eq!((world.coordinator.epoch(), &world.coordinator.view().seats), (Epoch(2), &seats));
    assert!(
        world.engines.values().all(|e| e.epoch() == Epoch(2) && e.phase() == crate::engine::Phase::Steady)
    );
    assert!(world.losses().is_empty());
    // What one end notices only now is old news.
    let late = Upward::Suspect { member: MemberId(1), epoch: Epoch(1), cause: "end of stream".to_owned() };
    world.coordinator.handle_message(MemberId(2), late, 1_300);
    assert!(world.coordinator.link_due().is_none());
}

#[test]
fn a_link_that_broke_by_a_death_is_not_repaired_besides() {
    let mut world = World::new(2);
    let spare = world.add(9, None);
    world.pump(ALL);
    world.break_link(MemberId(1), MemberId(2), 0);
    world.kill(MemberId(2));
    world.pump(ALL);
    world.coordinator.handle_timeout(links::GRACE_MS);
    world.pump(ALL);
    assert_eq!(world.coordinator.epoch(), Epoch(2));
    assert_eq!(world.coordinator.view().occupant(Rank(1)), Some(spare));
    assert!(world.coordinator.link_faults.is_empty());
}

#[test]
fn the_higher_rank_of_a_link_that_does_not_stay_whole_is_put_out() {
    let mut world = World::new(3);
    let spare = world.add(9, None);
    world.pump(ALL);
    let mut now_ms = 0;
    for repairs in 0..=links::REPAIRS_MAX {
        assert_eq!(world.coordinator.epoch(), Epoch(1 + u64::from(repairs)));
        assert!(world.losses().is_empty());
        // Another pair in between does not count for this one.
        if repairs == 1 {
            world.break_link(MemberId(1), MemberId(2), now_ms);
        }
        world.break_link(MemberId(3), MemberId(2), now_ms);
        now_ms += links::GRACE_MS;
        world.coordinator.handle_timeout(now_ms);
        world.pump(ALL);
    }
    let losses = world.losses();
    assert_eq!(losses.iter().map(|l| l.rank).collect::<Vec<_>>(), [Rank(2)]);
    assert!(losses[0].cause.contains("its link with r1 broke again after 3 repairs"), "{losses:?}");
    assert_eq!(world.coordinator.view().occupant(Rank(2)), Some(spare));
}

/// Told once a view, it was lost with the control connection, and nobody repaired the link.
#[test]
fn a_broken_link_is_told_again_on_a_new_connection() {
    let mut world = World::new(2);
    world.pump(ALL);
    let engine = world.engines.get_mut(&MemberId(1)).unwrap();
    engine.handle_link_fault(MemberId(2), "connection reset".to_owned());
    let mut suspects = || {
        let told = std::iter::from_fn(|| engine.poll_message());
        let count = told.filter(|m| matches!(m, Upward::Suspect { .. })).count();
        engine.handle_connected();
        count
    };
    assert_eq!((suspects(), suspects()), (1, 1));
}

/// What the tests below spoil: rank 0's answer to a fence, while rank 1 is dead.
fn fenced() -> (World, Report) {
    let mut world = World::new(2);
    world.pump(ALL);
    world.kill(MemberId(2));
    let record = world.coordinator.poll_store().unwrap();
    world.coordinator.handle_stored(&record, 0);
    let report = world.engines[&MemberId(1)].report();
    let epoch = world.coordinator.epoch();
    (world, Report { epoch, ..report })
}

/// Found by hostile input: a ledger that was damaged on its way, or made up, ended the coordinator by a panic, or by
/// all the memory there is.
#[test]
fn a_ledger_that_makes_no_sense_is_the_end_of_its_sender_alone() {
    let (mut world, mut report) = fenced();
    world.add(9, None);
    world.drive(MemberId(9));
    report.comms[0].ops.push(op_report(1, Vec::new()));
    world.coordinator.handle_message(MemberId(1), Upward::Ledger { report }, 0);
    let losses = world.losses();
    assert!(losses[1].cause.contains("its ledger makes no sense"), "{losses:?}");
}

fn op_report(count: u64, group: Vec<Rank>) -> crate::wire::message::OpReport {
    use crate::spec::{Algorithm, Dtype, ReduceOp, Spec};
    use crate::wire::message::{Holding, OpReport};
    let spec = Spec {
        collective: Collective::AllReduce,
        dtype: Dtype::F64,
        reduction: ReduceOp::Sum,
        count,
        root: Rank(0),
        algorithm: Algorithm::Ring,
    };
    OpReport {
        seq: OpSeq(0),
        spec,
        attempt: crate::ids::Attempt(0),
        group,
        held: Holding::Nothing {},
        lost: Holding::Nothing {},
        released: false,
        done: false,
        failed: None,
    }
}

#[test]
fn an_op_that_nobody_could_move_is_an_error_and_no_table() {
    let (mut world, mut report) = fenced();
    world.add(9, None);
    world.drive(MemberId(9));
    report.step.open = true;
    report.comms[0].ops.push(op_report(u64::MAX / 3, vec![Rank(0), Rank(1)]));
    world.coordinator.handle_message(MemberId(1), Upward::Ledger { report }, 0);
    let decision = world.coordinator.pending.clone().unwrap();
    let crate::wire::message::Verdict::Fail { cause } = &decision.ops[0].verdict else {
        panic!("{:?}", decision.ops)
    };
    assert!(format!("{cause:?}").contains("more than one op can move"), "{cause:?}");
}

/// Found by hostile input: what was once named in a beat was kept for good.
#[test]
fn beats_about_ever_other_communicators_are_not_kept() {
    let mut world = World::new(2);
    world.pump(ALL);
    for comm in 1..1000 {
        let done_below = vec![(CommId(0), OpSeq(0)), (CommId(comm), OpSeq(1))];
        world.coordinator.handle_message(MemberId(1), Upward::Beat { epoch: Epoch(1), done_below }, 0);
    }
    assert_eq!(world.coordinator.known[&MemberId(1)].done_below.len(), 2);
}

/// Found by hostile input: what one member says of itself, or of another's end, is in every decision, and one that is
/// longer than a frame reaches nobody.
#[test]
fn long_words_of_one_member_do_not_make_decisions_too_long() {
    let mut world = World::new(2);
    world.pump(ALL);
    let mut info = world.engines[&MemberId(1)].view().members[0].clone();
    (info.member, info.wants, info.shm) = (MemberId(7), None, Some("n".repeat(1 << 20)));
    let join = Upward::Join { version: VERSION, info, epoch: Epoch(0) };
    world.coordinator.handle_message(MemberId(7), join, 0);
    let answer = std::iter::from_fn(|| world.coordinator.poll_message()).last();
    assert!(matches!(answer, Some((MemberId(7), Downward::Refused { .. }))), "{answer:?}");
    assert!(world.coordinator.spares().is_empty());
    world.coordinator.handle_lost(MemberId(2), &"ä".repeat(1 << 20), 0);
    assert!(world.losses()[0].cause.len() <= 1000);
}
