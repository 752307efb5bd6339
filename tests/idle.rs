//! A member that waits, for other ranks, for its own program or for a seat, costs less than 1 % of a core.
//!
//! Processor time is read from the scheduler, in nanoseconds: it is what the threads ran, however busy the machine is
//! with other work, and no tick rounds it.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::Communicator;
use phalanx::core::ids::Rank;
use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{Line, Output, World, WorldSpec};

const RANKS: u32 = 3;
/// How long a member is watched; long against what it does at the begin of a wait.
const WATCHED: Duration = Duration::from_secs(4);
/// Far more than a world needs; only a failure gets near it.
const LONG: Duration = Duration::from_secs(120);
/// Part of a core that a member may use. Measured: see docs/testing.md.
const SHARE_MAX: f64 = 0.01;
const ROLE: &str = "IDLE_TEST_RANK";

/// Time that all threads of this process have run so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Does `what`, and says how much of a core this process used meanwhile.
fn watch(who: &str, what: impl FnOnce()) {
    let (before, begun) = (processor_time(), Instant::now());
    what();
    let (used, passed) = (processor_time() - before, begun.elapsed());
    println!("watched: {who} {} {}", used.as_nanos(), passed.as_nanos());
}

/// What each member runs: everybody warms up, then rank 0 keeps the others waiting, rank 1 does not even call, and the
/// others are inside a barrier. A spare waits for a seat all the while.
#[test]
fn member_of_the_test() {
    if std::env::var_os(ROLE).is_none() {
        return; // Only a child of the tests below has something to do.
    }
    let mut comm = Communicator::from_env().unwrap();
    let Some(rank) = comm.rank() else {
        watch("spare", || assert_eq!(comm.wait_seated().unwrap(), None, "nobody dies here"));
        return;
    };
    for _ in 0..10 {
        comm.barrier().unwrap();
    }
    match rank {
        Rank(0) => std::thread::sleep(WATCHED + WATCHED / 2),
        Rank(1) => watch("rank that calls nothing", || std::thread::sleep(WATCHED)),
        _ => {
            watch("rank in a barrier", || drop(comm.barrier().unwrap()));
            return;
        }
    }
    comm.barrier().unwrap();
}

/// Starts a world of the role above, and judges what its members say.
fn waiting_costs_nothing(transport: &str) {
    let me = std::env::current_exe().unwrap().into_os_string();
    let args = ["member_of_the_test", "--exact", "--nocapture"].map(OsString::from);
    let command = std::iter::once(me).chain(args).collect();
    let mut spec = WorldSpec::new(RANKS, Rules::new(RANKS, Policy::Replace), command);
    spec.spares = 1;
    spec.transport = Some(transport.to_owned());
    spec.envs = vec![(OsString::from(ROLE), OsString::from("1"))];
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lines);
    spec.output = Output::Pipe(Arc::new(move |line: Line| {
        println!("[{}] {}", line.label, line.text);
        told.lock().unwrap().push(line.text);
    }));
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait_within(LONG), Some(0), "a member failed; what it said stands above");
    drop(world);
    let lines = lines.lock().unwrap();
    let mut watched = 0;
    // The harness of the child prints its own words in front of the first line.
    for (_, report) in lines.iter().filter_map(|line| line.split_once("watched: ")) {
        let mut words = report.rsplitn(3, ' ');
        let mut number = || words.next().unwrap().parse::<f64>().unwrap();
        let (passed, used) = (number(), number());
        let share = used / passed;
        let who = words.next().unwrap();
        println!("{transport}, {who}: {:.3} % of a core over {:.1} s", share * 100.0, passed / 1e9);
        assert!(passed >= WATCHED.as_nanos() as f64, "{who} was not kept waiting: {report}");
        assert!(share <= SHARE_MAX, "over {transport}, a {who} used {:.2} % of a core", share * 100.0);
        watched += 1;
    }
    assert_eq!(watched, 3, "one report a case: {lines:?}");
}

#[test]
fn waiting_costs_nothing_over_shared_memory() {
    waiting_costs_nothing("shm");
}

#[test]
fn waiting_costs_nothing_over_tcp() {
    waiting_costs_nothing("tcp");
}
