//! The world that is attacked: a coordinator and four ranks of this process over real sockets, which reduce all the
//! time and compare every element.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use phalanx::auth::JobKey;
use phalanx::config::TransportChoice;
use phalanx::control::{MemoryStore, Server, ServerConfig, ServerHandle};
use phalanx::core::coordinator::WorldEvent;
use phalanx::core::ids::{Epoch, MemberId};
use phalanx::core::policy::{Policy, Rules};
use phalanx::core::view::MemberInfo;
use phalanx::{Buffer, Communicator, ReduceOp};

pub const KEY: JobKey = JobKey::from_bytes([0x5a; 32]);
/// Ranks that go on; one more lends its name to the attacker.
pub const HONEST: u32 = 3;
/// Far more than anything here takes; only a failure gets near it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What all threads of the world look at.
#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    rounds: AtomicU64,
    /// What the coordinator declared lost.
    losses: Mutex<Vec<String>>,
}

/// A running world.
pub struct World {
    server: ServerHandle,
    shared: Arc<Shared>,
    ranks: Vec<JoinHandle<()>>,
}

impl World {
    /// Forms it. All ranks are in one world-wide all-reduce that the last of them calls only at the end; the others
    /// reduce among themselves meanwhile.
    pub fn form(transport: TransportChoice) -> Self {
        let shared = Arc::new(Shared::default());
        // A machine that is busy with the attack may let a member wait: that is not what is tested here.
        let rules = Rules { lease_ms: 60_000, ..Rules::new(HONEST + 1, Policy::Abort) };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = ServerConfig { listen, key: KEY, rules, store: Box::new(MemoryStore::default()) };
        let losses = Arc::clone(&shared);
        let server = Server::start(config, move |event, _| {
            if let WorldEvent::Lost(loss) = event {
                losses.losses.lock().unwrap().push(format!("{loss:?}"));
            }
        })
        .unwrap();
        let address = server.address().to_string();
        let ranks = (0..=HONEST).map(|rank| {
            let (shared, address) = (Arc::clone(&shared), address.clone());
            std::thread::spawn(move || live(rank, &address, transport, &shared))
        });
        let world = Self { ranks: ranks.collect(), shared, server };
        world.until("the first rounds", |world| world.rounds() > 10);
        world
    }

    /// The coordinator's listener.
    pub fn coordinator(&self) -> SocketAddr {
        self.server.address()
    }

    /// All-reduces that rank 0 has seen complete and exact.
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    pub fn epoch(&self) -> Epoch {
        self.server.snapshot().view.epoch
    }

    /// What is public about the occupant of a seat.
    pub fn info(&self, rank: u32) -> MemberInfo {
        let view = self.server.snapshot().view;
        let member = view.seats[rank as usize].unwrap();
        view.info(member).unwrap().clone()
    }

    /// The member that takes no part in the rounds: the attacker speaks in its name.
    pub fn lent(&self) -> MemberId {
        self.info(HONEST).member
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < PATIENCE, "no end of waiting for {what}");
            self.assert_unharmed();
            std::thread::yield_now();
        }
    }

    /// Rounds go on, and nobody was lost.
    #[track_caller]
    pub fn assert_alive(&self) {
        let before = self.rounds();
        self.until("another round", |world| world.rounds() > before + 2);
    }

    #[track_caller]
    fn assert_unharmed(&self) {
        let snapshot = self.server.snapshot();
        assert_eq!(snapshot.stopped, None);
        assert_eq!(*self.shared.losses.lock().unwrap(), Vec::<String>::new());
        assert!(self.shared.is_over.load(Ordering::Relaxed) || self.ranks.iter().all(|r| !r.is_finished()));
    }

    /// The last rank calls what the others wait for; everybody leaves.
    pub fn end(self) {
        self.assert_unharmed();
        self.shared.is_over.store(true, Ordering::Relaxed);
        for rank in self.ranks {
            rank.join().unwrap();
        }
        assert_eq!(*self.shared.losses.lock().unwrap(), Vec::<String>::new());
        self.server.shutdown();
    }
}

fn live(rank: u32, address: &str, transport: TransportChoice, shared: &Shared) {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let builder = Communicator::builder(address, KEY).rank(rank).transport(transport).bind(here);
    let mut world = builder.join().unwrap();
    let mut among = world.split(u32::from(rank == HONEST)).unwrap();
    let mine: Vec<u64> = (0..10_000).map(|at| at * u64::from(rank + 1)).collect();
    if rank < HONEST {
        let whole = world.start_all_reduce(Buffer::from_slice(&mine), ReduceOp::Sum).unwrap();
        reduce(rank, &mut among, shared);
        let (sums, _) = whole.wait().unwrap_or_else(|failure| panic!("{}", failure.error()));
        assert!((0..10_000).zip(sums.as_slice()).all(|(at, sum)| *sum == at * 10), "the open op");
        return;
    }
    while !shared.is_over.load(Ordering::Relaxed) {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let mut values = mine;
    world.all_reduce(&mut values, ReduceOp::Sum).unwrap();
    assert!((0..10_000).zip(&values).all(|(at, sum)| *sum == at * 10), "the open op");
}

/// Rounds of sizes that take different ways, until rank 0 has seen the end and all have heard of it in a round.
fn reduce(rank: u32, among: &mut Communicator, shared: &Shared) {
    for round in 0u64.. {
        let elements = [3, 40, 3000, 70_000][round as usize % 4];
        let seed = round.wrapping_mul(0x9e37_79b9) >> 3;
        let mut values: Vec<u64> = (0..elements).map(|at| (at ^ seed) * u64::from(rank + 1)).collect();
        values.push(u64::from(rank == 0 && shared.is_over.load(Ordering::Relaxed)));
        among.all_reduce(&mut values, ReduceOp::Sum).unwrap_or_else(|e| panic!("rank {rank}: {e}"));
        let is_last = values.pop() == Some(1);
        assert!((0..elements).zip(&values).all(|(at, sum)| *sum == (at ^ seed) * 6), "round {round}");
        if rank == 0 {
            shared.rounds.fetch_add(1, Ordering::Relaxed);
        }
        if is_last {
            return;
        }
    }
}
