//! A rank that waits for another one costs next to nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::ffi::OsString;
use std::time::{Duration, Instant};

use phalanx::Communicator;
use phalanx::core::ids::Rank;
use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{World, WorldSpec};

const RANKS: u32 = 4;
/// How long rank 0 keeps the others waiting.
const WAIT: Duration = Duration::from_secs(3);
/// Part of a core that a waiting rank may use. Measured: below 0.01; the bound leaves room for a busy machine.
const SHARE_MAX: f64 = 0.10;
const ROLE: &str = "IDLE_TEST_RANK";

/// Seconds of processor time of this process, all threads.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // After the name, which may have spaces: state is field 3, utime and stime are 14 and 15, in ticks of 10 ms.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// What each rank runs: everybody warms up; rank 0 stays away from a barrier for a while.
#[test]
fn rank_of_the_test() {
    if std::env::var_os(ROLE).is_none() {
        return; // Only a child of the tests below has something to do.
    }
    let mut comm = Communicator::from_env().unwrap();
    for _ in 0..10 {
        comm.barrier().unwrap();
    }
    if comm.rank() == Some(Rank(0)) {
        std::thread::sleep(WAIT);
        comm.barrier().unwrap();
        return;
    }
    let (before, begun) = (processor_seconds(), Instant::now());
    comm.barrier().unwrap();
    let (used, waited) = (processor_seconds() - before, begun.elapsed().as_secs_f64());
    let share = used / waited;
    println!("{:?}: {used:.2} s of {waited:.2} s", comm.rank());
    assert!(waited > WAIT.as_secs_f64() / 2.0, "rank 0 did not keep this one waiting: {waited} s");
    assert!(share < SHARE_MAX, "a blocked rank used {:.1} % of a core", share * 100.0);
}

fn blocked_ranks_sleep(transport: &str) {
    let me = std::env::current_exe().unwrap().into_os_string();
    let args = ["rank_of_the_test", "--exact", "--nocapture"].map(OsString::from);
    let command = std::iter::once(me).chain(args).collect();
    let mut spec = WorldSpec::new(RANKS, Rules::new(RANKS, Policy::Abort), command);
    spec.transport = Some(transport.to_owned());
    spec.envs = vec![(OsString::from(ROLE), OsString::from("1"))];
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait(), 0, "a rank failed; what it said stands above");
}

#[test]
fn blocked_ranks_sleep_over_shared_memory() {
    blocked_ranks_sleep("shm");
}

#[test]
fn blocked_ranks_sleep_over_tcp() {
    blocked_ranks_sleep("tcp");
}
