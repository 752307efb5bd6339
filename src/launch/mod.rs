//! Starts a world on this machine: the coordinator inside this process, one child process a rank, spares beside them.
//!
//! Children learn where to go from their environment: `PHALANX_COORDINATOR`, `PHALANX_JOB_KEY`, `PHALANX_WORLD_SIZE`,
//! `PHALANX_RANK` (absent: a spare), `PHALANX_DOMAIN`, `PHALANX_TRANSPORT` (if forced) and `PHALANX_PARENT_PID`. The
//! key is passed that way, not as an argument: arguments are shown to every user of the machine, the environment of
//! a process only to its own user.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Rank;
use phalanx_core::policy::Rules;

use crate::auth::{AuthError, JobKey};
use crate::control::{ControlError, Interrupt, MemoryStore, Server, ServerConfig, ServerHandle};

mod output;
mod parent;
mod supervisor;

pub use output::{Line, Output, Stream};
pub use parent::{Tie, tie_to_parent};
use supervisor::{Living, Order, Supervisor};

/// What dies together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Domain {
    /// Each rank by itself.
    Rank,
    /// All ranks of a host.
    Host,
}

impl Domain {
    /// The name as children and commands spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Host => "host",
        }
    }
}

/// A signal to a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Ends it at once.
    Kill,
    /// Asks it to end.
    Terminate,
    /// Stops it until it is continued.
    Stop,
    /// Lets a stopped one go on.
    Continue,
}

impl Signal {
    fn raw(self) -> rustix::process::Signal {
        match self {
            Self::Kill => rustix::process::Signal::KILL,
            Self::Terminate => rustix::process::Signal::TERM,
            Self::Stop => rustix::process::Signal::STOP,
            Self::Continue => rustix::process::Signal::CONT,
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct WorldSpec {
    /// Processes with a seat.
    pub ranks: u32,
    /// Processes that wait for one.
    pub spares: u32,
    /// What everybody agrees on; its world size is set to `ranks`.
    pub rules: Rules,
    /// The transport all links use; `None`: each link the best it can.
    pub transport: Option<String>,
    /// What dies together.
    pub domain: Domain,
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Set in every child besides what this process has itself.
    pub envs: Vec<(OsString, OsString)>,
    /// Whether a new spare is started for every member that was lost and for every spare that a signal ended.
    pub respawn: bool,
    /// Where what the children print goes.
    pub output: Output,
    /// Where the coordinator listens; port 0 lets the system choose.
    pub listen: SocketAddr,
}

impl WorldSpec {
    /// `ranks` processes of `command` on this machine, no spares, labelled output.
    #[must_use]
    pub fn new(ranks: u32, rules: Rules, command: Vec<OsString>) -> Self {
        Self {
            ranks,
            spares: 0,
            rules,
            transport: None,
            domain: Domain::Rank,
            command,
            envs: Vec::new(),
            respawn: false,
            output: Output::Labelled,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// Why a world cannot be started or acted on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Nothing to run.
    #[error("no command was given; say what each rank runs")]
    NoCommand,
    /// A world of nobody.
    #[error("a world needs at least one rank")]
    NoRanks,
    /// The command cannot be started.
    #[error("{} cannot be started: {cause}", command.display())]
    Spawn {
        /// The program.
        command: OsString,
        /// What the system said.
        cause: std::io::Error,
    },
    /// No key can be made.
    #[error(transparent)]
    Key(#[from] AuthError),
    /// The coordinator cannot start.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A thread cannot be started.
    #[error("the launcher's thread cannot start: {0}")]
    Thread(std::io::Error),
    /// Not a living child of this world.
    #[error("process {0} is no living child of this world")]
    NoChild(u32),
    /// Nobody sits there.
    #[error("{0} has no occupant at the moment")]
    Vacant(Rank),
    /// The signal cannot be sent.
    #[error("process {pid} cannot be signalled: {cause}")]
    Signal {
        /// The process.
        pid: u32,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The parent of this process is gone.
    #[error("the launcher, process {0}, is gone; start the world again")]
    ParentGone(u32),
}

/// A running world. Dropping it kills and reaps every child that still lives.
#[derive(Debug)]
pub struct World {
    server: Arc<ServerHandle>,
    living: Living,
    orders: std::sync::mpsc::Sender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
    interrupt: Option<Interrupt>,
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
        let key = JobKey::random()?;
        let rules = Rules { world_size: spec.ranks, ..spec.rules.clone() };
        let store = Box::new(MemoryStore::default());
        let (orders, taken) = std::sync::mpsc::channel();
        let config = ServerConfig { listen: spec.listen, key: key.clone(), rules, store };
        let telling = orders.clone();
        let server = Server::start(config, move |event, now_ms| {
            observer(event, now_ms);
            let _ = telling.send(Order::World(event.clone()));
        })?;
        let server = Arc::new(server);
        let living = Living::default();
        let supervisor = Supervisor::new(spec, &key, Arc::clone(&server), living.clone(), orders.clone());
        // One thread starts all children and lasts as long as they do: a child that asked for a signal at its
        // parent's death gets it when the thread that started it ends.
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("phalanx-launch".to_owned())
            .spawn(move || supervisor.run(&taken, &ready))
            .map_err(LaunchError::Thread)?;
        let world = Self { server, living, orders, thread: Some(thread), interrupt: None };
        match started.recv() {
            Ok(Ok(())) => Ok(world),
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err(LaunchError::Thread(std::io::Error::other("it ended at once"))),
        }
    }

    /// The coordinator: snapshots and events to wait for.
    #[must_use]
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Children that live, with their labels (`r0`, `spare 1`), by process id.
    #[must_use]
    pub fn children(&self) -> Vec<(u32, String)> {
        self.living.list()
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
        self.living.kill(pid, signal)
    }

    /// Sends `signal` to whoever has the seat, and says which process that was.
    ///
    /// # Errors
    /// When nobody has it, or the process is no child of this one.
    pub fn kill_rank(&self, rank: Rank, signal: Signal) -> Result<u32, LaunchError> {
        let pid = self.pid_of(rank)?;
        self.kill(pid, signal).map(|()| pid)
    }

    /// From now on SIGINT and SIGTERM to this process end the world; [`wait`](Self::wait) then returns 128 plus the
    /// signal.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn stop_on_interrupt(&mut self) -> Result<(), LaunchError> {
        let orders = self.orders.clone();
        self.interrupt = Some(Interrupt::watch(move |signal| drop(orders.send(Order::Interrupted(signal))))?);
        Ok(())
    }

    /// Blocks until every child has ended. 0 when all seated ranks left by themselves with 0; else the code of the
    /// first that failed and was not replaced (128 plus the signal's number for a signal).
    #[must_use]
    pub fn wait(&self) -> i32 {
        self.living.wait_code()
    }

    /// As [`wait`](Self::wait), for at most `within`; `None` when the world still runs then.
    #[must_use]
    pub fn wait_within(&self, within: std::time::Duration) -> Option<i32> {
        self.living.wait_code_within(within)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a world to its end for a command line: interrupts end it, errors are printed. Returns the exit code.
pub fn run_command(spec: WorldSpec, observer: impl FnMut(&WorldEvent, u64) + Send + 'static) -> i32 {
    let started =
        World::spawn(spec, observer).and_then(|mut world| world.stop_on_interrupt().map(|()| world));
    match started {
        Ok(world) => world.wait(),
        Err(cause) => {
            eprintln!("phalanx: {cause}");
            match cause {
                LaunchError::Spawn { .. } => 127,
                LaunchError::NoCommand | LaunchError::NoRanks => 2,
                LaunchError::Key(_)
                | LaunchError::Control(_)
                | LaunchError::Thread(_)
                | LaunchError::NoChild(_)
                | LaunchError::Vacant(_)
                | LaunchError::Signal { .. }
                | LaunchError::ParentGone(_) => 1,
            }
        }
    }
}
