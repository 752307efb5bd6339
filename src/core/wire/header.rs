//! The 64-byte header in front of every data message, the same on every transport.

use crate::ids::{Attempt, ChunkId, CommId, Epoch, OpId, OpSeq};

/// Bytes of an encoded header: one cache line.
pub const HEADER_BYTES: usize = 64;
/// First word of every header; the last byte is the version of the wire.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PHX\x01");

/// What a data message carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A partial sum of a chunk.
    Partial = 0,
    /// The final value of a chunk.
    Final = 1,
    /// "Every chunk of the op is Final here" (rule R2); no payload.
    Confirm = 2,
    /// "Send me nothing more of this communicator for now": too much of it came before its call; no payload.
    Pause = 3,
    /// "Send me of this communicator again"; no payload.
    Proceed = 4,
}

impl Kind {
    /// Whether it is for the engine and belongs to no step: it may be taken off its link at any time.
    #[must_use]
    pub fn is_note(self) -> bool {
        match self {
            Self::Partial | Self::Final => false,
            Self::Confirm | Self::Pause | Self::Proceed => true,
        }
    }
}

/// Header of a data message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// The op it belongs to.
    pub op: OpId,
    /// The contributor set of the op it belongs to.
    pub attempt: Attempt,
    /// The epoch in which it was sent; any other epoch's is never read.
    pub epoch: Epoch,
    /// The chunk.
    pub chunk: ChunkId,
    /// [`crate::spec::Spec::signature`] of the sender's op.
    pub signature: u32,
    /// Payload bytes that follow.
    pub payload_bytes: u32,
    /// Every op of the communicator below this is complete at all ranks the sender has heard of.
    pub stable: OpSeq,
    /// Room for a checksum of the payload; 0, none is computed.
    pub checksum: u32,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The first word is not ours: another program, or another version of the wire.
    #[error(
        "data message starts with {0:#010x}, not with this version's mark; is every rank the same version?"
    )]
    Magic(u32),
    /// No such kind of message.
    #[error("data message of unknown kind {0}; is every rank the same version?")]
    Kind(u8),
    /// Longer than a slot.
    #[error("data message announces {0} payload bytes, more than a slot holds")]
    TooLong(u32),
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn to_wire(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = self.kind as u8;
        out[8..12].copy_from_slice(&self.op.comm.0.to_le_bytes());
        out[12..16].copy_from_slice(&self.attempt.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.op.seq.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.chunk.0.to_le_bytes());
        out[36..40].copy_from_slice(&self.signature.to_le_bytes());
        out[40..44].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[44..48].copy_from_slice(&self.checksum.to_le_bytes());
        out[48..56].copy_from_slice(&self.stable.0.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When the bytes are not a header of this version, or announce more than `payload_bytes_max`.
    pub fn from_wire(bytes: &[u8; HEADER_BYTES], payload_bytes_max: usize) -> Result<Self, HeaderError> {
        let word32 = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let word64 = |at: usize| u64::from(word32(at)) | u64::from(word32(at + 4)) << 32;
        if word32(0) != MAGIC {
            return Err(HeaderError::Magic(word32(0)));
        }
        let kind = match bytes[4] {
            0 => Kind::Partial,
            1 => Kind::Final,
            2 => Kind::Confirm,
            3 => Kind::Pause,
            4 => Kind::Proceed,
            other => return Err(HeaderError::Kind(other)),
        };
        let payload_bytes = word32(40);
        if payload_bytes as usize > payload_bytes_max {
            return Err(HeaderError::TooLong(payload_bytes));
        }
        Ok(Self {
            kind,
            op: OpId { comm: CommId(word32(8)), seq: OpSeq(word64(16)) },
            attempt: Attempt(word32(12)),
            epoch: Epoch(word64(24)),
            chunk: ChunkId(word32(32)),
            signature: word32(36),
            payload_bytes,
            checksum: word32(44),
            stable: OpSeq(word64(48)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_inverts_encode(kind in 0u8..5, c: u32, s: u64, a: u32, e: u64, k: u32, sig: u32,
                                 n in 0u32..=1024, st: u64, sum: u32) {
            let kinds = [Kind::Partial, Kind::Final, Kind::Confirm, Kind::Pause, Kind::Proceed];
            let kind = kinds[kind as usize];
            let header = Header {
                kind, op: OpId { comm: CommId(c), seq: OpSeq(s) }, attempt: Attempt(a), epoch: Epoch(e),
                chunk: ChunkId(k), signature: sig, payload_bytes: n, stable: OpSeq(st), checksum: sum,
            };
            prop_assert_eq!(Header::from_wire(&header.to_wire(), 1024), Ok(header));
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes in proptest::array::uniform32(any::<u8>()), marked: bool) {
            let mut all = [0u8; HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&bytes);
            if marked { all[..4].copy_from_slice(&MAGIC.to_le_bytes()); }
            if let Ok(h) = Header::from_wire(&all, 4096) {
                prop_assert!(h.payload_bytes <= 4096);
            }
        }
    }
}
