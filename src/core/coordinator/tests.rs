//! The coordinator with real engines, and no data between them: every message arrives, every write succeeds at once.

use super::*;
use crate::engine::{Action, CallShape, Engine, Retention, WORLD};
use crate::error::OpError;
use crate::ids::DomainId;
use crate::policy::Policy;
use crate::spec::Collective;

struct World {
    coordinator: Coordinator,
    engines: BTreeMap<MemberId, Engine>,
    /// What each engine asked its driver to do.
    actions: Vec<(MemberId, Action)>,
}

impl World {
    /// `ranks` members 1, 2, … with a seat; spares are added.
    fn new(ranks: u32) -> Self {
        let coordinator = Coordinator::new(Rules::new(ranks, Policy::Replace), None, 0);
        let mut world = Self { coordinator, engines: BTreeMap::new(), actions: Vec::new() };
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
            }
            while let Some((to, message)) = self.coordinator.poll_message() {
                if let Some(engine) = self.engines.get_mut(&to) {
                    engine.handle_message(message, 0);
                }
            }
        }
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
}
