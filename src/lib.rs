//! Phalanx: collectives that survive the death of a rank.
//!
//! When a rank dies inside a running all-reduce, a spare takes its seat, the operation goes on, and the result is,
//! bit for bit, that of the run without a failure.

pub use phalanx_core as core;

pub mod auth;
pub mod comm;
pub mod config;
pub mod control;
pub mod demo;
pub mod device;
pub mod driver;
pub mod launch;
pub mod sim;
pub mod sync;
pub mod transport;

pub use comm::{Buffer, Communicator, Element, Error, Regions, RegionsMut, State, Step, Work};
pub use phalanx_core::ids::Rank;
pub use phalanx_core::spec::ReduceOp;
