//! The deterministic simulator: real engines, executors and coordinator under a seeded world of delays and deaths.
//!
//! One seed gives one run. The caller's program, the memory and the arithmetic are real; links, time, processes and
//! the store are simulated.

pub mod caller;
pub mod checkers;
pub mod coverage;
pub mod diagram;
#[cfg(feature = "mutants")]
pub mod hunt;
pub mod minimise;
pub mod net;
pub mod random;
pub mod reduction;
pub mod replay;
pub mod scenario;
pub mod sweep;
pub mod timeline;
pub mod world;

pub use scenario::Scenario;
pub use world::{Outcome, run};
