//! Every collective and element type between real processes, on both transports: ranks are this test binary again.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{World, WorldSpec};
use phalanx::{Buffer, Communicator, Element, Rank, ReduceOp};

const RANKS: u32 = 3;
const BODY: &str = "rank_body";

/// Starts the ranks and waits for their exit code.
fn run(transport: &str, policy: Policy, spares: u32) {
    let me = std::env::current_exe().unwrap().into_os_string();
    let command = vec![me, BODY.into(), "--exact".into(), "--nocapture".into(), "--include-ignored".into()];
    let mut spec = WorldSpec::new(RANKS, Rules::new(RANKS, policy), command);
    spec.spares = spares;
    spec.transport = Some(transport.to_owned());
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait_within(std::time::Duration::from_secs(120)), Some(0), "{transport} {policy}");
}

#[test]
fn every_collective_over_shared_memory() {
    run("shm", Policy::Abort, 0);
}

#[test]
fn every_collective_over_tcp() {
    run("tcp", Policy::Abort, 0);
}

#[test]
fn every_collective_under_replace_with_an_idle_spare() {
    run("shm", Policy::Replace, 1);
}

/// What a rank does; as a test of its own it has no world and nothing to do.
#[test]
fn rank_body() {
    let config = match phalanx::config::Config::from_env() {
        Ok(config) => config,
        Err(phalanx::config::ConfigError::Missing { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    let mut comm = Communicator::join(config).unwrap();
    if comm.rank().is_none() {
        assert!(
            comm.step(1, &mut (), |step, ()| check_all(step.comm)).unwrap().is_none(),
            "no rank has died"
        );
        return;
    }
    let mut state = vec![7u8; 100];
    comm.step(1, &mut state, |step, state| {
        // A step inside a step is refused, and the open one keeps its state.
        let inner = step.comm.step(9, &mut vec![1u8; 100], |_, _| Ok(()));
        assert!(inner.unwrap_err().to_string().contains("begin_step inside a step"));
        check_all(step.comm)?;
        assert_eq!(state, &[7u8; 100]);
        Ok(())
    })
    .unwrap();
}

fn check_all(comm: &mut Communicator) -> Result<(), phalanx::Error> {
    let rank = comm.rank().unwrap_or_default();
    macro_rules! each {
        ($($t:ty),*) => {$( check::<$t>(comm, rank, |v| <$t>::try_from(v).unwrap())?; )*};
    }
    each!(i8, u8, i32, u32, i64, u64);
    check::<f32>(comm, rank, f32::from)?;
    check::<f64>(comm, rank, f64::from)?;
    check::<half::f16>(comm, rank, |v| half::f16::from_f32(f32::from(v)))?;
    check::<half::bf16>(comm, rank, |v| half::bf16::from_f32(f32::from(v)))?;
    started(comm, rank)?;
    sizes(comm, rank)?;
    half_of_us(comm, rank)
}

/// Small values: `10 * rank + i mod 3 + 1`, so that every sum and product of three fits an `i8`.
fn value(rank: Rank, i: usize) -> i8 {
    i8::try_from(rank.0 * 2).unwrap() + i8::try_from(i % 3).unwrap() + 1
}

fn check<T: Element + PartialEq + std::fmt::Debug>(
    comm: &mut Communicator,
    rank: Rank,
    of: impl Fn(i8) -> T,
) -> Result<(), phalanx::Error> {
    let n = RANKS as usize;
    let mine = |len: usize| (0..len).map(|i| of(value(rank, i))).collect::<Vec<T>>();
    let all = |i: usize| (0..RANKS).map(move |r| value(Rank(r), i));
    let reduced = |op: ReduceOp, i: usize| {
        of(match op {
            ReduceOp::Sum => all(i).sum(),
            ReduceOp::Prod => all(i).product(),
            ReduceOp::Min => all(i).min().unwrap(),
            ReduceOp::Max => all(i).max().unwrap(),
            ReduceOp::Avg => all(i).sum::<i8>() / 3,
        })
    };
    for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Avg] {
        let mut values = mine(7);
        assert_eq!(comm.all_reduce(&mut values, op)?, [Rank(0), Rank(1), Rank(2)]);
        assert_eq!(values, (0..7).map(|i| reduced(op, i)).collect::<Vec<_>>(), "{op} {}", T::DTYPE);
        let mut out = mine(7);
        comm.all_reduce_into(&mine(7), &mut out, op)?;
        assert_eq!(out, values, "{op} {} out of place", T::DTYPE);
        let mut part = mine(2);
        comm.reduce_scatter(&mine(2 * n), &mut part, op)?;
        assert_eq!(part, (0..2).map(|i| reduced(op, i + 2 * rank.index())).collect::<Vec<_>>());
        let mut rooted = mine(5);
        comm.reduce(&mut rooted, op, Rank(1))?;
        let want = if rank == Rank(1) { (0..5).map(|i| reduced(op, i)).collect() } else { mine(5) };
        assert_eq!(rooted, want, "{op} {} reduce", T::DTYPE);
    }
    let mut gathered = vec![of(0); 4 * n];
    comm.all_gather(&mine(4), &mut gathered)?;
    assert_eq!(gathered, (0..4 * n).map(|i| of(value(Rank((i / 4) as u32), i % 4))).collect::<Vec<_>>());
    let mut sent = mine(9);
    comm.broadcast(&mut sent, Rank(2))?;
    assert_eq!(sent, (0..9).map(|i| of(value(Rank(2), i))).collect::<Vec<_>>());
    comm.barrier()?;
    Ok(())
}

/// All kinds at once, started before the first is waited for; what is refused gives its buffers back.
fn started(comm: &mut Communicator, rank: Rank) -> Result<(), phalanx::Error> {
    let n = RANKS as usize;
    let mine = |len: usize| Buffer::from_slice(&(0..len as u32).map(|i| i + 10 * rank.0).collect::<Vec<_>>());
    let zeroed = Buffer::<u32>::zeroed;
    let sum = |i: usize| 3 * i as u32 + 30;
    let sums = |range: std::ops::Range<usize>| range.map(sum).collect::<Vec<_>>();

    let reduce_all = comm.start_all_reduce(mine(5), ReduceOp::Sum)?;
    let reduce_into = comm.start_all_reduce_into(mine(40_000), zeroed(40_000), ReduceOp::Sum)?;
    let gather = comm.start_all_gather(mine(2), zeroed(2 * n))?;
    let scatter = comm.start_reduce_scatter(mine(4 * n), zeroed(4), ReduceOp::Sum)?;
    let send = comm.start_broadcast(mine(3), Rank(1))?;
    let reduce = comm.start_reduce(mine(6), ReduceOp::Sum, Rank(2))?;
    let barrier = comm.start_barrier()?;

    barrier.wait()?;
    let (input, rooted) = (mine(6), reduce.wait()?.0);
    let want = if rank == Rank(2) { sums(0..6) } else { input.as_slice().to_vec() };
    assert_eq!(rooted.as_slice(), want, "reduce");
    assert_eq!(send.wait()?.0.as_slice(), [10, 11, 12], "broadcast");
    let ((input, part), contributors) = scatter.wait()?;
    assert_eq!((input.as_slice()[1], contributors.len()), (1 + 10 * rank.0, n));
    assert_eq!(part.as_slice(), sums(4 * rank.index()..4 * rank.index() + 4), "reduce_scatter");
    assert_eq!(gather.wait()?.0.1.as_slice(), [0, 1, 10, 11, 20, 21], "all_gather");
    assert_eq!(reduce_into.wait()?.0.1.as_slice(), sums(0..40_000), "all_reduce_into");
    assert_eq!(reduce_all.wait()?.0.as_slice(), sums(0..5), "all_reduce");

    let refused = comm.start_all_gather(mine(2), zeroed(2)).unwrap_err();
    assert!(refused.to_string().contains("output has 2 elements, the call needs 6"), "{refused}");
    let (_, (input, output)) = refused.into_parts();
    assert_eq!((input.as_slice(), output.len()), (mine(2).as_slice(), 2), "given back");
    let refused = comm.start_broadcast(mine(3), Rank(7)).unwrap_err();
    assert_eq!(refused.into_parts().1.as_slice(), mine(3).as_slice(), "given back");
    Ok(())
}

/// Nothing, one element, and more than fits the slots of a link; started before it is waited for.
fn sizes(comm: &mut Communicator, rank: Rank) -> Result<(), phalanx::Error> {
    for len in [0usize, 1, 2, 1000, 3_000_001] {
        let mine: Vec<u64> = (0..len as u64).map(|i| i * 3 + u64::from(rank.0)).collect();
        let work = comm.start_all_reduce(Buffer::from_slice(&mine), ReduceOp::Sum)?;
        let (buffer, _) = work.wait()?;
        let right = buffer.as_slice().iter().enumerate().all(|(i, v)| *v == i as u64 * 9 + 3);
        assert!(right, "all_reduce of {len} elements");
    }
    let wrong = comm.all_gather(&[1u8], &mut [0u8; 2]).unwrap_err().to_string();
    assert!(wrong.contains("output has 2 elements, the call needs 3"), "{wrong}");
    Ok(())
}

/// Ranks 0 and 2 together, rank 1 alone.
fn half_of_us(comm: &mut Communicator, rank: Rank) -> Result<(), phalanx::Error> {
    let mut group = comm.split(rank.0 % 2)?;
    let mut sum = [u32::from(rank.0 == 0) + 10];
    group.all_reduce(&mut sum, ReduceOp::Sum)?;
    assert_eq!((group.world_size(), sum[0]), if rank == Rank(1) { (1, 10) } else { (2, 21) });
    // Splits of different parents are different communicators, also where they are made in the same order.
    let (mut all, mut reversed) = (comm.split(0)?, comm.split(rank.0 / 2)?);
    let (mut pair, mut alone) = (all.split(rank.0 % 2)?, reversed.split(rank.0)?);
    let mut sum = [1u32];
    pair.all_reduce(&mut sum, ReduceOp::Sum)?;
    assert_eq!(sum[0], if rank == Rank(1) { 1 } else { 2 });
    let mut own = [5u32];
    alone.all_reduce(&mut own, ReduceOp::Sum)?;
    assert_eq!((alone.world_size(), own[0]), (1, 5));
    comm.barrier()?;
    Ok(())
}
