//! Memory and arithmetic: where bytes live and how they are reduced.

pub mod cpu;
pub mod memory;

pub use memory::{Block, Span};
