//! Bytes between processes: the data header and the control messages. Decoding never panics and never allocates
//! more than the frame it was given.

pub mod header;

pub use header::{Header, Kind};
