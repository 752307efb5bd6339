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
pub mod launch;
pub mod sim;

// What lies below the communicator. The project's own tests and benches see it (feature `internals`); for others it
// would not be sound: memory is named by address there, and only a caller inside the runtime can keep its promises.
#[cfg(not(feature = "internals"))]
mod device;
#[cfg(feature = "internals")]
pub mod device;
#[cfg(not(feature = "internals"))]
mod driver;
#[cfg(feature = "internals")]
pub mod driver;
#[cfg(not(feature = "internals"))]
mod sync;
#[cfg(feature = "internals")]
pub mod sync;
#[cfg(not(feature = "internals"))]
mod transport;
#[cfg(feature = "internals")]
pub mod transport;

pub use comm::{
    Buffer, Builder, Communicator, Contributors, Element, Error, Failure, RawCall, RawWork, Regions,
    RegionsMut, State, Step, Work,
};
pub use phalanx_core::ids::Rank;
pub use phalanx_core::spec::ReduceOp;
