//! Starts a world on this machine: the coordinator inside this process, one child process a rank, spares beside them.
//! Or this machine's share of a world ([`Share`]): ranks and spares only, under a coordinator elsewhere.
//!
//! Children learn where to go from their environment: `PHALANX_COORDINATOR`, `PHALANX_JOB_KEY`, `PHALANX_WORLD_SIZE`,
//! `PHALANX_RANK` (absent: a spare), `PHALANX_DOMAIN`, `PHALANX_TRANSPORT` (if forced) and `PHALANX_PARENT_PID`. The
//! key is passed that way, not as an argument: arguments are shown to every user of the machine, the environment of
//! a process only to its own user.

use std::ffi::OsString;
use std::net::SocketAddr;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Rank;
use phalanx_core::policy::Rules;

use crate::auth::AuthError;
use crate::control::ControlError;

mod crew;
mod host;
mod lead;
mod living;
mod outcome;
mod output;
mod parent;
mod share;
mod supervisor;
mod world;

pub use host::host_id;
pub use output::{Line, Output, Stream};
pub use parent::{Tie, child_of, tie_to_parent};
pub use share::{Share, ShareSpec};
pub use world::World;

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
    /// The rank of the first of them.
    pub rank_from: u32,
    /// Processes that wait for one.
    pub spares: u32,
    /// Whether they are started only when every rank has joined: a command that joins nothing then runs `ranks` times.
    pub spares_once_formed: bool,
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
    /// Whether SIGINT and SIGTERM to this process end the world, from before its first child on; waiting for it then
    /// returns 128 plus the signal.
    pub stops_on_interrupt: bool,
}

impl WorldSpec {
    /// `ranks` processes of `command` on this machine, no spares, labelled output.
    #[must_use]
    pub fn new(ranks: u32, rules: Rules, command: Vec<OsString>) -> Self {
        Self {
            ranks,
            rank_from: 0,
            spares: 0,
            spares_once_formed: false,
            rules,
            transport: None,
            domain: Domain::Rank,
            command,
            envs: Vec::new(),
            respawn: false,
            output: Output::Labelled,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            stops_on_interrupt: false,
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
    /// The coordinator elsewhere cannot be worked with.
    #[error("{0}")]
    Coordinator(String),
    /// Ranks that this host cannot start.
    #[error("{0}")]
    Seats(String),
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

/// What a child finds in its environment; `PHALANX_RANK` differs from child to child.
fn member_envs(
    spec: &WorldSpec,
    coordinator: &str,
    key: &crate::auth::JobKey,
    world_size: u32,
) -> Vec<(&'static str, String)> {
    let transport = spec.transport.clone().map(|name| ("PHALANX_TRANSPORT", name));
    [
        ("PHALANX_COORDINATOR", coordinator.to_owned()),
        ("PHALANX_JOB_KEY", key.to_hex()),
        ("PHALANX_WORLD_SIZE", world_size.to_string()),
        ("PHALANX_DOMAIN", spec.domain.name().to_owned()),
        ("PHALANX_PARENT_PID", std::process::id().to_string()),
    ]
    .into_iter()
    .chain(transport)
    .collect()
}

/// Runs a world to its end for a command line: interrupts end it, a failure is printed. Returns the exit code.
pub fn run_command(spec: WorldSpec, observer: impl FnMut(&WorldEvent, u64) + Send + 'static) -> i32 {
    let started = World::spawn(WorldSpec { stops_on_interrupt: true, ..spec }, observer);
    conclude(started.map(|world| (world.wait(), world.failure())))
}

/// Runs this host's share of a world to its end, as [`run_command`] does.
pub fn run_share(spec: WorldSpec, share: ShareSpec) -> i32 {
    let started = Share::spawn(WorldSpec { stops_on_interrupt: true, ..spec }, share);
    conclude(started.map(|share| (share.wait(), share.failure())))
}

fn conclude(ended: Result<(i32, Option<String>), LaunchError>) -> i32 {
    match ended {
        Ok((code, failure)) => {
            if let Some(failure) = failure {
                eprintln!("phalanx: {failure}");
            }
            code
        }
        Err(cause) => {
            eprintln!("phalanx: {cause}");
            match cause {
                LaunchError::Spawn { .. } => 127,
                LaunchError::NoCommand | LaunchError::NoRanks | LaunchError::Seats(_) => 2,
                LaunchError::Key(_)
                | LaunchError::Control(_)
                | LaunchError::Coordinator(_)
                | LaunchError::Thread(_)
                | LaunchError::NoChild(_)
                | LaunchError::Vacant(_)
                | LaunchError::Signal { .. }
                | LaunchError::ParentGone(_) => 1,
            }
        }
    }
}
