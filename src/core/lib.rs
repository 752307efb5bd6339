//! The pure heart of Phalanx: plans, ledger, recovery, engine and coordinator.
//!
//! Nothing here has a clock, a socket, a thread or randomness of its own. It is driven by `handle_*`, drained by
//! `poll_*`, and runs unchanged under real transports and in the simulator.
#![forbid(unsafe_code)]

pub mod algorithms;
pub mod bitmap;
pub mod ids;
pub mod plan;
pub mod spec;
pub mod units;
pub mod wire;
