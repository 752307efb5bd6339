//! The tree by which a chunk's Final spreads from its owner.

/// Placeholder replaced in the next commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spread;
