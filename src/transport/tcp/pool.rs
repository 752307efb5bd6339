//! Staging memory of all links of one transport: it grows to what was once in use and is then used again, so that
//! the data path does not allocate, and memory that was handed out stays mapped for as long as the transport lives.

use phalanx_core::units::SLOT_BYTES;
use phalanx_core::wire::header::HEADER_BYTES;

use crate::device::Block;

/// Bytes of the largest message with its header.
pub const CELL_BYTES: usize = HEADER_BYTES + SLOT_BYTES;

/// Free blocks of [`CELL_BYTES`], the last returned first: it is the one still in cache.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Block>,
}

impl Pool {
    /// A block; its contents are arbitrary.
    pub fn take(&mut self) -> Block {
        self.free.pop().unwrap_or_else(|| Block::zeroed(CELL_BYTES))
    }

    /// Gives a block back.
    pub fn give(&mut self, block: Block) {
        self.free.push(block);
    }

    /// Blocks that wait to be used again.
    #[cfg(test)]
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }
}
