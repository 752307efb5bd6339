//! What a program holds: a communicator, its collectives, steps that survive a death.

use std::sync::Arc;

use phalanx_core::engine::WORLD;
use phalanx_core::error::{CallError, OpError};
use phalanx_core::ids::{CommId, Rank};

use crate::config::{Config, ConfigError};
use crate::driver::Driver;

mod buffer;
mod builder;
mod by_reference;
mod collectives;
mod connect;
mod element;
mod raw;
mod start;
mod step;
mod work;

pub use buffer::{Buffer, Retained};
pub use builder::Builder;
pub use collectives::Contributors;
pub use element::Element;
pub use raw::{RawCall, RawWork};
pub use step::{Regions, RegionsMut, State, Step};
pub use work::{Failure, Started, Work};

/// Why a call did not do what was asked. The text says what happened, to which rank, in which epoch and op, and what
/// to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The op ended with an error, the same at every rank of the view.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The call was refused before anything was sent.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The environment does not say how to take part.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process could not take part.
    #[error("cannot join the world: {0}")]
    Join(String),
    /// Buffers whose sizes do not fit the call.
    #[error("{call}: {what}")]
    Size {
        /// The collective.
        call: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The run ended before this spare was needed.
    #[error("the run is over, and this spare was not needed; end the process")]
    RunOver,
}

/// A group of ranks that run collectives together.
///
/// Calls are made by every rank in the same order. A rank that dies is replaced, left out, or ends the op for all, as
/// the world's policy says; with policy replace, inside a [step](Communicator::step), survivors never see an error.
///
/// # Example
/// ```no_run
/// use phalanx::{Communicator, ReduceOp};
///
/// let mut comm = Communicator::from_env()?;
/// let mut values = [1.0f32, 2.0];
/// comm.all_reduce(&mut values, ReduceOp::Sum)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Debug)]
pub struct Communicator {
    driver: Arc<Driver>,
    comm: CommId,
    /// Only the world says good-bye for the process.
    is_world: bool,
}

impl Communicator {
    /// Joins the world that the environment names (see `phalanx run`). A process without `PHALANX_RANK` is a spare: its
    /// first [step](Communicator::step) waits for a seat.
    ///
    /// # Errors
    /// When the environment is incomplete, or the process cannot listen. An unreachable coordinator is waited for.
    pub fn from_env() -> Result<Self, Error> {
        Self::join(Config::from_env()?)
    }

    /// Joins the world that `config` names.
    ///
    /// # Errors
    /// As [`Communicator::from_env`].
    pub fn join(config: Config) -> Result<Self, Error> {
        let is_seated = config.rank.is_some();
        let driver = connect::start(config)?;
        let comm = Self { driver, comm: WORLD, is_world: true };
        if is_seated && comm.driver.wait_seated()?.is_none() {
            return Err(Error::RunOver);
        }
        Ok(comm)
    }

    /// Waits until this process has a seat, and says which. `None`: the run ended without this spare. A seated process
    /// need not call it, a spare may: its next [step](Communicator::step) waits too.
    ///
    /// # Errors
    /// When this process was put out of the world.
    pub fn wait_seated(&self) -> Result<Option<Rank>, Error> {
        Ok(self.driver.wait_seated()?)
    }

    /// This process's rank in the communicator; `None` for a spare without a seat.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        self.driver.with_engine(|e| {
            let own = e.rank()?;
            let group = e.group(self.comm)?;
            group.iter().position(|r| *r == own).map(|i| Rank(i as u32))
        })
    }

    /// Ranks of the communicator, vacant seats included; 0 for a spare without a seat.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.driver.with_engine(|e| e.group(self.comm).map_or(0, |g| g.len() as u32))
    }

    /// Steps committed so far.
    #[must_use]
    pub fn steps_committed(&self) -> u64 {
        self.driver.with_engine(phalanx_core::engine::Engine::committed)
    }

    /// The epoch of the view this process acts in: grows with every replacement.
    #[must_use]
    pub fn epoch(&self) -> phalanx_core::ids::Epoch {
        self.driver.with_engine(phalanx_core::engine::Engine::epoch)
    }

    /// This process's member id.
    #[must_use]
    pub fn member(&self) -> phalanx_core::ids::MemberId {
        self.driver.with_engine(phalanx_core::engine::Engine::me)
    }

    /// A communicator of some ranks of this one: those that call with the same `color`, in the order of their rank. A
    /// collective call: every rank takes part. Where spares may take a seat, call it inside the step that uses it:
    /// there a newcomer repeats it; what was called outside of steps nobody can repeat.
    ///
    /// # Errors
    /// As any collective; a spare gets one until its first step has begun.
    pub fn split(&mut self, color: u32) -> Result<Self, Error> {
        let n = self.world_size() as usize;
        let mut colors = vec![0u32; n];
        let at = self.driver.with_engine(|e| e.next_op(self.comm)).unwrap_or_default();
        self.all_gather(&[color], &mut colors)?;
        let mut distinct = colors.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let index = distinct.iter().position(|c| *c == color).unwrap_or(0) as u32;
        let id = phalanx_core::engine::Engine::split_id(self.comm, at, index);
        let world: Vec<Rank> =
            self.driver.with_engine(|e| e.group(self.comm).map(<[Rank]>::to_vec)).unwrap_or_default();
        let group = world.iter().zip(&colors).filter(|(_, c)| **c == color).map(|(r, _)| *r).collect();
        self.driver.split(id, group)?;
        Ok(Self { driver: Arc::clone(&self.driver), comm: id, is_world: false })
    }
}

impl Drop for Communicator {
    /// The world's handle says good-bye and serves peers until every rank has.
    fn drop(&mut self) {
        if self.is_world && !std::thread::panicking() {
            self.driver.leave();
        }
    }
}
