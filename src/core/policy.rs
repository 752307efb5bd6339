//! What a communicator wants when a rank dies, and what every member of a world must agree on.

use crate::units;
use crate::wire::codec::{DecodeError, Reader, Wire, wire};

/// What happens to an op in flight and to the vacant rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Policy {
    /// A spare takes the seat and replays the step; the op completes over all ranks, bit for bit the same.
    Replace,
    /// The op completes over the survivors; the contributor set is on the result.
    Shrink,
    /// The same typed error at every rank.
    Abort,
}

impl Policy {
    /// Every policy.
    pub const ALL: &'static [Self] = &[Self::Replace, Self::Shrink, Self::Abort];

    /// The name as commands spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Shrink => "shrink",
            Self::Abort => "abort",
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Policy {
    type Err = crate::spec::UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|p| p.name() == text).ok_or_else(|| crate::spec::UnknownName {
            given: text.to_owned(),
            known: Self::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

impl Wire for Policy {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Replace => 0,
            Self::Shrink => 1,
            Self::Abort => 2,
        });
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(from)? {
            0 => Ok(Self::Replace),
            1 => Ok(Self::Shrink),
            2 => Ok(Self::Abort),
            other => Err(DecodeError::Bad { what: "policy", value: u64::from(other) }),
        }
    }
}

/// What all members of a world agree on; the coordinator hands it out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Ranks of the world.
    pub world_size: u32,
    /// What happens when a rank dies.
    pub policy: Policy,
    /// What `Replace` turns into when no spare comes in time.
    pub fallback: Policy,
    /// How long a vacant seat waits for a spare, in milliseconds.
    pub replace_within_ms: u64,
    /// An op without a verdict for so long is ended by the coordinator, in milliseconds.
    pub op_timeout_ms: u64,
    /// Without a word from the coordinator for so long a member stops by itself, in milliseconds.
    pub lease_ms: u64,
    /// Failure domains that may be lost at once (`f`).
    pub domains_lost_max: u32,
    /// Most bytes of a chunk.
    pub chunk_bytes_max: u32,
    /// Ops up to so many bytes skip the release wait: a copy of their result is kept instead (rule R2).
    pub retain_bytes: u32,
}

wire!(struct Rules {
    world_size, policy, fallback, replace_within_ms, op_timeout_ms, lease_ms, domains_lost_max, chunk_bytes_max,
    retain_bytes
});

impl Rules {
    /// The defaults for a world of `world_size` ranks.
    #[must_use]
    pub fn new(world_size: u32, policy: Policy) -> Self {
        Self {
            world_size,
            policy,
            fallback: Policy::Abort,
            replace_within_ms: 60_000,
            op_timeout_ms: 600_000,
            lease_ms: units::LEASE_MS,
            domains_lost_max: units::DOMAINS_LOST_MAX,
            chunk_bytes_max: units::SLOT_BYTES as u32,
            retain_bytes: units::RETAIN_BYTES as u32,
        }
    }
}
