//! Joining a world by code instead of by environment.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Communicator, Error};
use crate::auth::JobKey;
use crate::config::{Config, DomainChoice, TransportChoice};

/// How a process takes part in a world; [`Communicator::builder`] begins one.
#[derive(Debug, Clone)]
#[must_use = "nothing is joined before `join`"]
pub struct Builder {
    config: Config,
}

impl Communicator {
    /// Begins to describe how this process takes part: by default as a spare, by shared memory inside the host and TCP
    /// between hosts, each rank its own failure domain. `coordinator` is its `host:port`.
    ///
    /// # Example
    /// ```no_run
    /// use phalanx::config::{DomainChoice, TransportChoice};
    /// use phalanx::{Communicator, ReduceOp};
    ///
    /// let key = std::fs::read_to_string("job.key").expect("the job has a key").trim().parse().expect("64 digits");
    /// let mut comm = Communicator::builder("node0:29500", key)
    ///     .rank(3)
    ///     .transport(TransportChoice::Tcp)
    ///     .domain(DomainChoice::Host)
    ///     .join()?;
    /// let mut values = [1.0f32; 8];
    /// comm.all_reduce(&mut values, ReduceOp::Sum)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn builder(coordinator: impl Into<String>, key: JobKey) -> Builder {
        Builder { config: Config::new(coordinator.into(), key) }
    }
}

impl Builder {
    /// Asks for this seat. Without, the process is a spare.
    pub const fn rank(mut self, rank: u32) -> Self {
        self.config.rank = Some(rank);
        self
    }

    /// Forces a transport.
    pub const fn transport(mut self, transport: TransportChoice) -> Self {
        self.config.transport = transport;
        self
    }

    /// Says what dies together.
    pub const fn domain(mut self, domain: DomainChoice) -> Self {
        self.config.domain = domain;
        self
    }

    /// Listens for data at this address.
    pub const fn bind(mut self, address: IpAddr) -> Self {
        self.config.bind = Some(address);
        self
    }

    /// Listens for data on this network interface.
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.config.interface = Some(name.into());
        self
    }

    /// Listens for data on one of these ports.
    pub const fn ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.config.ports = ports;
        self
    }

    /// Joins the world. A process that asked for a seat returns once all seats are taken.
    ///
    /// # Errors
    /// When the process cannot listen as asked, or was put out; [`Error::RunOver`] when the run ended before. An
    /// unreachable coordinator is waited for.
    pub fn join(self) -> Result<Communicator, Error> {
        Communicator::join(self.config)
    }
}
