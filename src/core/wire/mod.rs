//! Bytes between processes: the data header and the control messages. Decoding never panics and never allocates
//! more than the frame it was given.

pub mod codec;
pub mod header;
pub mod message;

pub use codec::Wire;
pub use header::{Header, Kind};
