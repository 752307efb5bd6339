//! The pure heart of Phalanx: plans, ledger, recovery, engine and coordinator.
//!
//! Nothing here has a clock, a socket, a thread or randomness of its own. It is driven by `handle_*`, drained by
//! `poll_*`, and runs unchanged under real transports and in the simulator.
#![forbid(unsafe_code)]

pub mod algorithms;
pub mod bitmap;
pub mod coordinator;
pub mod engine;
pub mod error;
pub mod fnv;
pub mod ids;
pub mod mutants;
pub mod plan;
pub mod policy;
pub mod recovery;
pub mod spec;
pub mod units;
pub mod view;
pub mod wire;
