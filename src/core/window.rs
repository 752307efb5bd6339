//! What belongs to ops, by their place in the order of their communicator.
//!
//! Ops come and go in order, with few gaps: a ring finds each at once, however many a step retains, and nothing moves
//! when the oldest go.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeBounds};

use crate::ids::{CommId, OpId, OpSeq};

/// A window of one communicator's order. Its memory is that of its length, gaps included.
#[derive(Debug)]
pub struct Window<T> {
    /// Place of the first slot.
    first: OpSeq,
    slots: VecDeque<Option<T>>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { first: OpSeq(0), slots: VecDeque::new() }
    }
}

impl<T> Window<T> {
    fn index(&self, seq: OpSeq) -> Option<usize> {
        let index = usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?;
        (index < self.slots.len()).then_some(index)
    }

    /// What is at `seq`.
    #[must_use]
    pub fn get(&self, seq: OpSeq) -> Option<&T> {
        self.slots[self.index(seq)?].as_ref()
    }

    /// What is at `seq`, to change.
    #[must_use]
    pub fn get_mut(&mut self, seq: OpSeq) -> Option<&mut T> {
        let index = self.index(seq)?;
        self.slots[index].as_mut()
    }

    /// Whether something is at `seq`.
    #[must_use]
    pub fn has(&self, seq: OpSeq) -> bool {
        self.get(seq).is_some()
    }

    /// Puts `value` at `seq`; what was there goes.
    pub fn insert(&mut self, seq: OpSeq, value: T) {
        if self.slots.is_empty() {
            self.first = seq;
        }
        while seq < self.first {
            self.slots.push_front(None);
            self.first.0 -= 1;
        }
        let index = (seq.0 - self.first.0) as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(value);
    }

    /// Takes out what is at `seq`.
    pub fn remove(&mut self, seq: OpSeq) -> Option<T> {
        let index = self.index(seq)?;
        let taken = self.slots[index].take();
        while matches!(self.slots.front(), Some(None)) {
            self.slots.pop_front();
            self.first = self.first.next();
        }
        taken
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// All, in order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }

    /// All, in order, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().flatten()
    }

    /// Those whose place is in `range`, in order.
    pub fn range(&self, range: impl RangeBounds<OpSeq>) -> impl Iterator<Item = &T> {
        let at = |seq: OpSeq| seq.0.saturating_sub(self.first.0).min(self.slots.len() as u64) as usize;
        let from = match range.start_bound() {
            Bound::Included(seq) => at(*seq),
            Bound::Excluded(seq) => at(seq.next()),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(seq) => at(seq.next()),
            Bound::Excluded(seq) => at(*seq),
            Bound::Unbounded => self.slots.len(),
        };
        self.slots.range(from.min(to)..to).flatten()
    }
}

/// A window for every communicator.
#[derive(Debug)]
pub struct ByOp<T>(BTreeMap<CommId, Window<T>>);

impl<T> Default for ByOp<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> ByOp<T> {
    /// What belongs to `op`.
    #[must_use]
    pub fn get(&self, op: OpId) -> Option<&T> {
        self.0.get(&op.comm)?.get(op.seq)
    }

    /// What belongs to `op`, to change.
    #[must_use]
    pub fn get_mut(&mut self, op: OpId) -> Option<&mut T> {
        self.0.get_mut(&op.comm)?.get_mut(op.seq)
    }

    /// Gives `op` its `value`.
    pub fn insert(&mut self, op: OpId, value: T) {
        self.0.entry(op.comm).or_default().insert(op.seq, value);
    }

    /// Takes out what belongs to `op`.
    pub fn remove(&mut self, op: OpId) -> Option<T> {
        self.0.get_mut(&op.comm)?.remove(op.seq)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// All, by communicator and order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().flat_map(Window::values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_window_answers_as_a_map_does(
            steps in proptest::collection::vec((any::<bool>(), 0u64..24, 0u64..24), 1..80),
        ) {
            let (mut window, mut map) = (Window::default(), BTreeMap::new());
            for (puts, seq, other) in steps {
                let (seq, other) = (OpSeq(seq), OpSeq(other));
                if puts {
                    window.insert(seq, other);
                    map.insert(seq, other);
                } else {
                    prop_assert_eq!(window.remove(seq), map.remove(&seq));
                }
                prop_assert!((0..25).map(OpSeq).all(|s| window.get(s) == map.get(&s)));
                prop_assert!(window.values().eq(map.values()));
                prop_assert!(window.range(other..).eq(map.range(other..).map(|(_, v)| v)));
                prop_assert!(window.range(..other).eq(map.range(..other).map(|(_, v)| v)));
                prop_assert!(window.slots.len() <= 24 && !matches!(window.slots.front(), Some(None)));
            }
        }
    }
}
