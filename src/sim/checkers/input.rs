//! I3: a chunk of a buffer that its result replaces is Input, byte for byte, until it is Final.

use phalanx_core::ids::{ChunkId, MemberId, OpId};

/// Compares what lies in the buffer of a chunk that is not Final with what was called.
#[must_use]
pub fn spoiled(op: OpId, chunk: ChunkId, member: MemberId, now: &[u8], called: &[u8]) -> Option<String> {
    (now != called).then(|| format!("I3 buffer: {chunk} of {op} is neither Input nor Final at {member}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_a_byte_that_changed() {
        let check = |now: &[u8]| spoiled(OpId::default(), ChunkId(2), MemberId(7), now, &[1, 2, 3]);
        assert_eq!(check(&[1, 2, 3]), None);
        assert!(check(&[1, 2, 4]).is_some_and(|text| text.contains("k2") && text.contains("m7")));
    }
}
