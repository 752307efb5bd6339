//! A training run to kill: a small network learns handwritten digits, data-parallel, in plain Rust.
//!
//! Everything here is a pure function of its arguments: no clock, no thread, no environment. The same seed gives the
//! same parameters bit for bit, so a run that lost a rank can be compared with one that did not by a hash.

pub mod alone;
pub mod digits;
pub mod display;
pub mod network;
pub mod protocol;
pub mod random;
pub mod sampling;
pub mod summary;
