//! A world whose coordinator is inside this process.

use std::sync::Arc;
use std::sync::mpsc::channel;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Rank;
use phalanx_core::policy::Rules;

use super::crew::Crew;
use super::lead::{Lead, News};
use super::living::Living;
use crate::auth::JobKey;
use crate::control::{MemoryStore, Server, ServerConfig, ServerHandle};
use crate::launch::supervisor::{Order, Supervisor};
use crate::launch::{LaunchError, Signal, WorldSpec, member_envs};

/// A running world. Dropping it kills and reaps every child that still lives.
#[derive(Debug)]
pub struct World {
    // Before the server: children that are ended should not first lose their coordinator.
    crew: Crew,
    server: Arc<ServerHandle>,
}

impl World {
    /// Starts the coordinator, then every rank and spare. `observer` is called on the coordinator's thread for every
    /// event, with the milliseconds since the start; it must not block.
    ///
    /// # Errors
    /// When anything cannot be started; what was started by then is ended.
    pub fn spawn(
        spec: WorldSpec,
        mut observer: impl FnMut(&WorldEvent, u64) + Send + 'static,
    ) -> Result<Self, LaunchError> {
        if spec.command.is_empty() {
            return Err(LaunchError::NoCommand);
        }
        if spec.ranks == 0 {
            return Err(LaunchError::NoRanks);
        }
        let spec = WorldSpec { rank_from: 0, ..spec };
        let key = JobKey::random()?;
        let rules = Rules { world_size: spec.ranks, ..spec.rules.clone() };
        let store = Box::new(MemoryStore::default());
        let (orders, taken) = channel();
        let config = ServerConfig { listen: spec.listen, key: key.clone(), rules, store };
        let (telling, living) = (orders.clone(), Living::default());
        let labels = living.clone();
        let server = Server::start(config, move |event, now_ms| {
            if let WorldEvent::Decided(decision) = event {
                // Here, before the process hears of its seat: all that it prints in it has the right name.
                labels.relabel(&decision.view, None);
            }
            observer(event, now_ms);
            if let Some(news) = News::of_event(event) {
                let _ = telling.send(Order::World(news));
            }
        })?;
        let server = Arc::new(server);
        let envs = member_envs(&spec, &reached_at(server.address()), &key, spec.ranks);
        let lead = Lead::Here(Arc::clone(&server));
        let stops = spec.stops_on_interrupt;
        let supervisor = Supervisor::new(spec, envs, lead, living.clone(), orders.clone());
        Ok(Self { crew: Crew::start(supervisor, living, (orders, taken), stops)?, server })
    }

    /// The coordinator: snapshots and events to wait for.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Children that live, with their labels (`r0`, `spare 1`), by process id.
    #[must_use]
    pub fn children(&self) -> Vec<(u32, String)> {
        self.crew.living.list()
    }

    /// Process id of whoever has the seat now.
    ///
    /// # Errors
    /// When nobody has.
    pub fn pid_of(&self, rank: Rank) -> Result<u32, LaunchError> {
        let view = self.server.snapshot().view;
        let info = view.occupant(rank).and_then(|member| view.info(member));
        info.map(|i| i.pid).ok_or(LaunchError::Vacant(rank))
    }

    /// Sends `signal` to the child with id `pid`.
    ///
    /// # Errors
    /// When it is no living child of this world.
    pub fn kill(&self, pid: u32, signal: Signal) -> Result<(), LaunchError> {
        self.crew.living.kill(pid, signal)
    }

    /// Sends `signal` to whoever has the seat, and says which process that was.
    ///
    /// # Errors
    /// When nobody has it, or the process is no child of this one.
    pub fn kill_rank(&self, rank: Rank, signal: Signal) -> Result<u32, LaunchError> {
        let pid = self.pid_of(rank)?;
        self.kill(pid, signal).map(|()| pid)
    }

    /// Blocks until every child has ended. 0 when all seated ranks left by themselves with 0, and when none ever joined
    /// and none failed; else the code of the first that failed and was not replaced (128 plus the signal's number for a
    /// signal).
    #[must_use]
    pub fn wait(&self) -> i32 {
        self.crew.wait()
    }

    /// As [`wait`](Self::wait), for at most `within`; `None` when the world still runs then.
    #[must_use]
    pub fn wait_within(&self, within: std::time::Duration) -> Option<i32> {
        self.crew.living.wait_within(within).map(|over| over.code)
    }

    /// Once every child has ended: which rank failed, how, and what to do; `None` when nothing failed, or it was
    /// interrupted.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.crew.failure()
    }
}

/// The address that children on this host dial.
fn reached_at(mut at: std::net::SocketAddr) -> String {
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    at.to_string()
}
