//! What a spare may call before and after it has a seat: ranks and spares are this test binary again.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use phalanx::core::error::CallError;
use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{World, WorldSpec};
use phalanx::{Communicator, Error, Rank, ReduceOp, Step};

const RANKS: u32 = 2;
const BODY: &str = "member_body";
/// Long enough for any machine; a world that takes so long hangs.
const LONG: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn a_split_of_a_spare_is_an_error_until_its_first_step_and_works_inside_it() {
    let me = std::env::current_exe().unwrap().into_os_string();
    let command = [me, BODY.into(), "--exact".into(), "--nocapture".into()].to_vec();
    let spec = WorldSpec { spares: 1, ..WorldSpec::new(RANKS, Rules::new(RANKS, Policy::Replace), command) };
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait_within(LONG), Some(0));
}

/// What a member does; as a test of its own it has no world and nothing to do.
#[test]
fn member_body() {
    let config = match phalanx::config::Config::from_env() {
        Ok(config) => config,
        Err(phalanx::config::ConfigError::Missing { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    let mut comm = Communicator::join(config).unwrap();
    let is_spare = comm.rank().is_none();
    if is_spare {
        let refused = comm.split(0).unwrap_err();
        assert!(matches!(refused, Error::Call(CallError::NotSeated { .. })), "{refused}");
        assert_eq!(comm.wait_seated().unwrap(), Some(Rank(1)));
        // The others are inside a step: the call must not be taken for one of it.
        let refused = comm.split(0).unwrap_err();
        assert!(matches!(refused, Error::Call(CallError::StepOrder { .. })), "{refused}");
        assert!(refused.to_string().contains("make it inside a step"), "{refused}");
    }
    while comm.step(3, &mut (), |step, ()| run_step(step, is_spare)).unwrap().is_some() {}
}

fn run_step(step: &mut Step<'_>, is_spare: bool) -> Result<(), Error> {
    let rank = step.comm.rank().unwrap_or_default();
    let mut all = step.comm.split(0)?;
    let mut own = step.comm.split(rank.0)?;
    assert_eq!((all.world_size(), own.world_size()), (RANKS, 1));
    if step.index() == 1 && rank == Rank(1) && !is_spare {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
    let mut values = [rank.0 + 1];
    all.all_reduce(&mut values, ReduceOp::Sum)?;
    assert_eq!(values, [3], "over both");
    own.all_reduce(&mut values, ReduceOp::Sum)?;
    assert_eq!(values, [3], "over this one");
    Ok(())
}
