//! The deterministic simulator: real engines, executors and coordinator under a seeded world of delays and deaths.
//!
//! One seed gives one run. The caller's program, the memory and the arithmetic are real; links, time, processes and
//! the store are simulated.

pub mod caller;
pub mod checkers;
pub mod coverage;
pub mod net;
pub mod random;
pub mod scenario;
pub mod sweep;
pub mod world;

pub use scenario::Scenario;
pub use world::{Outcome, run};
