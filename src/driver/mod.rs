//! Runs the engine of a process.

pub mod executor;
pub mod memory;

pub use executor::{Executor, Notice};
pub use memory::StateRegions;
