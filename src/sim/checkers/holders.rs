//! I4: for each chunk that a rank still lacks there is a live rank that can serve it, or every live rank has its Input.

use phalanx_core::bitmap::Bitmap;
use phalanx_core::ids::{ChunkId, OpId, Rank};

/// What one live, unfenced rank has of one op.
#[derive(Debug, Clone)]
pub struct Part {
    /// The rank.
    pub rank: Rank,
    /// Chunks it is due.
    pub due: Bitmap,
    /// Chunks it can serve as Final.
    pub held: Bitmap,
    /// Chunks whose Input it has no longer.
    pub lost: Bitmap,
    /// It had all it is due.
    pub done: bool,
}

/// The first chunk of `op` that nobody can give to a rank that lacks it.
#[must_use]
pub fn orphan(op: OpId, parts: &[Part]) -> Option<String> {
    let chunks = parts.first().map_or(0, |p| p.due.len());
    (0..chunks).map(ChunkId).find_map(|chunk| {
        let lacking = parts.iter().find(|p| p.due.has(chunk) && !p.held.has(chunk) && !p.done)?;
        if parts.iter().any(|p| p.held.has(chunk)) {
            return None;
        }
        let spoiled = parts.iter().find(|p| p.lost.has(chunk))?;
        Some(format!(
            "I4 holders: {} lacks {chunk} of {op}, nobody can serve it, and {} has no Input of it",
            lacking.rank, spoiled.rank
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_only_where_nobody_holds_and_somebody_lost() {
        let part = |rank, held: &[u64], lost: &[u64], done| Part {
            rank: Rank(rank),
            due: Bitmap::full(2),
            held: Bitmap::from_words(2, held),
            lost: Bitmap::from_words(2, lost),
            done,
        };
        let fresh = part(0, &[0], &[0], false);
        let op = OpId::default();
        assert_eq!(orphan(op, &[fresh.clone(), part(1, &[0], &[0], false)]), None, "all have Input");
        assert_eq!(orphan(op, &[fresh.clone(), part(1, &[3], &[3], true)]), None, "one can serve");
        let gone = part(1, &[1], &[3], true);
        assert!(orphan(op, &[fresh, gone]).is_some_and(|t| t.contains("k1")));
    }
}
