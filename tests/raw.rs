//! The raw calls between real processes: memory by address, in place and not, and what is refused. Ranks are this test
//! binary again.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use phalanx::core::policy::{Policy, Rules};
use phalanx::core::spec::{Collective, Dtype};
use phalanx::launch::{World, WorldSpec};
use phalanx::{Communicator, Rank, RawCall, ReduceOp};

const RANKS: u32 = 3;

#[test]
fn raw_collectives_give_what_the_safe_ones_give() {
    let me = std::env::current_exe().unwrap().into_os_string();
    let command =
        vec![me, "rank_body".into(), "--exact".into(), "--nocapture".into(), "--include-ignored".into()];
    let spec = WorldSpec::new(RANKS, Rules::new(RANKS, Policy::Abort), command);
    let world = World::spawn(spec, |_, _| {}).unwrap();
    assert_eq!(world.wait_within(std::time::Duration::from_secs(120)), Some(0));
}

/// What a rank does; as a test of its own it has no world and nothing to do.
#[test]
fn rank_body() {
    let config = match phalanx::config::Config::from_env() {
        Ok(config) => config,
        Err(phalanx::config::ConfigError::Missing { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    // The builder and the environment name the same world.
    let mut comm = Communicator::builder(config.coordinator, config.key)
        .rank(config.rank.unwrap())
        .transport(config.transport)
        .join()
        .unwrap();
    let rank = comm.rank().unwrap();
    results(&mut comm, rank).unwrap();
    refusals(&mut comm);
    comm.barrier().unwrap();
}

fn call(collective: Collective, count: usize) -> RawCall {
    RawCall { collective, dtype: Dtype::U32, reduction: ReduceOp::Sum, count, root: Rank(1), algorithm: None }
}

fn results(comm: &mut Communicator, rank: Rank) -> Result<(), phalanx::Error> {
    let n = RANKS as usize;
    let mine = |len: usize| (0..len as u32).map(|i| i + 10 * rank.0).collect::<Vec<u32>>();
    let sums = |range: std::ops::Range<usize>| range.map(|i| 3 * i as u32 + 30).collect::<Vec<_>>();

    let mut values = mine(50_000);
    let at = values.as_mut_ptr().cast::<u8>();
    // SAFETY: here and below, the vectors live, and nobody looks at them, until `wait` has returned.
    unsafe { comm.start_raw(call(Collective::AllReduce, values.len()), at, at) }?.wait()?;
    assert_eq!(values, sums(0..50_000), "in place");

    let (input, mut output) = (mine(9), vec![0u32; 9]);
    let (from, to) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: as above.
    let work = unsafe { comm.start_raw(call(Collective::AllReduce, 9), from, to) }?;
    let (scattered_from, mut part) = (mine(2 * n), vec![0u32; 2]);
    let (from, to) = (scattered_from.as_ptr().cast(), part.as_mut_ptr().cast());
    // SAFETY: as above.
    let scatter = unsafe { comm.start_raw(call(Collective::ReduceScatter, 2), from, to) }?;
    scatter.wait()?;
    assert_eq!(work.wait()?, [Rank(0), Rank(1), Rank(2)]);
    assert_eq!((output, input), (sums(0..9), mine(9)), "out of place");
    assert_eq!(part, sums(2 * rank.index()..2 * rank.index() + 2));

    // The own part of the output as the input, as NCCL's users write it.
    let mut gathered = vec![0u32; 2 * n];
    gathered[2 * rank.index()..][..2].copy_from_slice(&mine(2));
    let to = gathered.as_mut_ptr();
    // SAFETY: as above.
    unsafe { comm.start_raw(call(Collective::AllGather, 2), to.add(2 * rank.index()).cast(), to.cast()) }?
        .wait()?;
    assert_eq!(gathered, [0, 1, 10, 11, 20, 21]);

    // Sides that a rank does not have are null.
    let mut sent = if rank == Rank(1) { vec![7u32; 5] } else { vec![0; 5] };
    let to = sent.as_mut_ptr().cast::<u8>();
    let from = if rank == Rank(1) { to.cast_const() } else { std::ptr::null() };
    // SAFETY: as above.
    unsafe { comm.start_raw(call(Collective::Broadcast, 5), from, to) }?.wait()?;
    assert_eq!(sent, [7; 5]);
    let (input, mut output) = (mine(4), vec![0u32; 4]);
    let to = if rank == Rank(1) { output.as_mut_ptr().cast() } else { std::ptr::null_mut() };
    // SAFETY: as above.
    unsafe { comm.start_raw(call(Collective::Reduce, 4), input.as_ptr().cast(), to) }?.wait()?;
    assert_eq!(output, if rank == Rank(1) { sums(0..4) } else { vec![0; 4] });
    Ok(())
}

/// Nothing is sent for a call that is refused: the world goes on.
fn refusals(comm: &mut Communicator) {
    let mut values = vec![0u32; 30];
    let at = values.as_mut_ptr();
    let mut refused = |call: RawCall, from: *const u32, to: *mut u32| {
        // SAFETY: the vector lives, and a call that is refused touches nothing.
        unsafe { comm.start_raw(call, from.cast(), to.cast()) }.unwrap_err().to_string()
    };
    let all_reduce = call(Collective::AllReduce, 10);
    let why = refused(all_reduce, at, at.wrapping_add(4));
    assert!(why.contains("input and output overlap"), "{why}");
    let why = refused(call(Collective::ReduceScatter, 10), at, at.wrapping_add(10));
    assert!(why.contains("input and output overlap"), "{why}");
    let why = refused(all_reduce, std::ptr::null(), at);
    assert!(why.contains("null pointer"), "{why}");
    let why = refused(RawCall { count: usize::MAX / 2, ..all_reduce }, at, at);
    assert!(why.contains("address space"), "{why}");
    let why = refused(call(Collective::Commit, 0), at, at);
    assert!(why.contains("the runtime's own"), "{why}");
    let why = refused(RawCall { root: Rank(3), ..call(Collective::Broadcast, 10) }, at, at);
    assert!(why.contains("rank 3") || why.contains("root"), "{why}");
}
