//! Bytes between processes: the data header and the control messages. Decoding never panics. A header is decoded
//! without any memory, a control frame with at most 96 times its own (see [`codec`]).

pub mod codec;
pub mod header;
pub mod message;

pub use codec::Wire;
pub use header::{Header, Kind};
