//! Constants with their units, and the relations between them that must hold.

/// Bytes of one transit slot, the most a chunk can have.
pub const SLOT_BYTES: usize = 256 * 1024;
/// Slots of one link (one direction between two members).
pub const LINK_SLOTS: usize = 4;
/// Ops up to this size skip the release wait and copy their result into the retention log (rule R2).
pub const RETAIN_BYTES: usize = 64 * 1024;
/// Bound of the retention log of one process.
pub const RETENTION_LOG_BYTES: usize = 8 * 1024 * 1024;
/// Default lease of a member in milliseconds: without a word from the coordinator for so long it stops by itself.
pub const LEASE_MS: u64 = 5_000;
/// A member renews its lease so often within it.
pub const BEATS_PER_LEASE: u64 = 5;
/// Ranks of one communicator at most (bounds what a decoder accepts).
pub const WORLD_SIZE_MAX: u32 = 1 << 20;
/// Failure domains that may be lost at once, unless set.
pub const DOMAINS_LOST_MAX: u32 = 1;

const _: () = assert!(RETAIN_BYTES <= SLOT_BYTES, "a retained op fits one slot");
const _: () = assert!(LINK_SLOTS >= 2, "one slot would forbid sending while receiving");
const _: () = assert!(BEATS_PER_LEASE >= 4, "three lost beats must not convict a live member");
