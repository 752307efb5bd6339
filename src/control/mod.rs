//! The control plane: the coordinator's endpoint, the members' connection to it, the store of its decisions.
//!
//! The only place with an async runtime. It moves frames and facts (a message arrived, a process ended, time passed);
//! what follows from them is for [`phalanx_core::coordinator`] and [`phalanx_core::engine`] to say.

use std::net::SocketAddr;

use phalanx_core::ids::MemberId;

mod children;
pub mod client;
pub mod frame;
mod interrupt;
mod launcher;
mod launchers;
mod owner;
mod prove;
pub mod server;
pub mod settings;
pub mod store;
mod watch;

pub(crate) use children::exit_cause;
pub use client::{Client, ClientConfig, ControlEvent};
pub use interrupt::Interrupt;
#[cfg(feature = "internals")]
pub use launcher::FromLauncher;
pub use launcher::{Launcher, LauncherConfig, LauncherEvent, ToLauncher};
pub use server::{Server, ServerConfig, ServerHandle};
pub use settings::{Settings, SettingsError};
pub use store::{FileStore, MemoryStore, Store, StoreError};
pub use watch::{Seen, Snapshot};

/// The coordinator as a party of the handshake. Members draw their ids at random and must not draw this one.
pub const COORDINATOR: MemberId = MemberId(0);

/// Why a part of the control plane cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The listener cannot be opened.
    #[error("the coordinator cannot listen on {address}: {cause}; is another world running there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A thread or its runtime cannot be started.
    #[error("the control thread cannot start: {0}")]
    Thread(std::io::Error),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A child process cannot be watched.
    #[error("process {pid} cannot be watched: {cause}")]
    Watch {
        /// Its id.
        pid: u32,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The server has stopped.
    #[error("the coordinator has stopped")]
    Stopped,
}
