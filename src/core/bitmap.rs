//! A set of chunks, one bit each: what a rank holds, what it has lost.

use crate::ids::ChunkId;

/// Fixed-length set of chunk ids `0..len`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Bitmap {
    len: u32,
    words: Vec<u64>,
}

impl Bitmap {
    /// The empty set over `len` chunks.
    #[must_use]
    pub fn empty(len: u32) -> Self {
        Self { len, words: vec![0; len.div_ceil(64) as usize] }
    }

    /// The set of all `len` chunks.
    #[must_use]
    pub fn full(len: u32) -> Self {
        let mut all = Self { len, words: vec![u64::MAX; len.div_ceil(64) as usize] };
        all.trim();
        all
    }

    /// Rebuilds a set from its words; bits past `len` are dropped, missing words are zero.
    #[must_use]
    pub fn from_words(len: u32, words: &[u64]) -> Self {
        let mut set = Self { len, words: words.to_vec() };
        set.words.resize(len.div_ceil(64) as usize, 0);
        set.trim();
        set
    }

    /// The 64-bit words, lowest chunk first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn trim(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1u64 << (self.len % 64)) - 1;
        }
    }

    /// How many chunks the set ranges over (not how many it holds).
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the set ranges over no chunk at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `chunk` is in the set; a chunk out of range is not.
    #[must_use]
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.words.get(chunk.index() / 64).is_some_and(|w| w >> (chunk.index() % 64) & 1 == 1)
    }

    /// Adds `chunk`.
    ///
    /// # Panics
    /// When `chunk` is not below `len`.
    pub fn insert(&mut self, chunk: ChunkId) {
        assert!(chunk.0 < self.len, "{chunk} outside a bitmap of {} chunks", self.len);
        self.words[chunk.index() / 64] |= 1 << (chunk.index() % 64);
    }

    /// Removes `chunk`; a chunk out of range is ignored.
    pub fn remove(&mut self, chunk: ChunkId) {
        if let Some(w) = self.words.get_mut(chunk.index() / 64) {
            *w &= !(1 << (chunk.index() % 64));
        }
    }

    /// Number of chunks in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// Whether every chunk is in the set (true for a length of zero).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// Adds every chunk of `more`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn union(&mut self, more: &Self) {
        assert_eq!(self.len, more.len, "union of bitmaps over different ops");
        for (a, b) in self.words.iter_mut().zip(&more.words) {
            *a |= b;
        }
    }

    /// The chunks in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ChunkId> + '_ {
        (0..self.len).map(ChunkId).filter(|&c| self.has(c))
    }
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.count(), self.len)?;
        if self.count() > 0 && !self.is_full() {
            f.debug_list().entries(self.iter()).finish()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_empty_agree_with_count_for_every_length() {
        for len in 0..200 {
            assert!(Bitmap::full(len).is_full(), "len {len}");
            assert_eq!(Bitmap::full(len).count(), len);
            assert_eq!(Bitmap::empty(len).is_full(), len == 0);
            assert_eq!(Bitmap::full(len).iter().count() as u32, len);
        }
    }

    #[test]
    fn words_from_a_stranger_cannot_set_a_bit_past_the_end() {
        let set = Bitmap::from_words(3, &[u64::MAX, u64::MAX]);
        assert_eq!(set, Bitmap::full(3));
        assert!(!set.has(ChunkId(64)));
    }

    #[test]
    fn insert_remove_union() {
        let (mut a, mut b) = (Bitmap::empty(70), Bitmap::empty(70));
        a.insert(ChunkId(69));
        b.insert(ChunkId(1));
        a.union(&b);
        assert_eq!(a.iter().collect::<Vec<_>>(), [ChunkId(1), ChunkId(69)]);
        a.remove(ChunkId(69));
        assert!(!a.has(ChunkId(69)) && a.has(ChunkId(1)));
    }
}
