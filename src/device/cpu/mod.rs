//! Reductions on the CPU.
//!
//! Additions follow the canonical tree (docs/reproducible.md): [`fold`] adds two values, [`fold_all`] a whole tree in
//! one pass. Low precision is added in `f32` and rounded at every inner vertex, so both give the same bits.

mod simd;

use phalanx_core::spec::{Dtype, ReduceOp};

use super::{Block, Span};
use simd::Kernel;

/// Bytes of the strips in which [`fold_all`] walks over its inputs: a strip of every input stays in the first cache.
const STRIP_BYTES: usize = 4096;

/// Writes `left (+) right` to `out`, element by element. `Avg` adds; [`finish`] divides once at the end.
///
/// `out` may be the very memory of `left` or `right`; it must not overlap them otherwise.
///
/// # Panics
/// When the lengths differ, or are no multiple of the element size.
pub fn fold(dtype: Dtype, reduction: ReduceOp, out: Span, left: Span, right: Span) {
    assert_eq!(out.len(), left.len(), "fold into a span of another length");
    assert_eq!(left.len(), right.len(), "fold of spans of different length");
    assert!(out.len().is_multiple_of(dtype.size()), "{} bytes are no whole number of {dtype}", out.len());
    Kernel::of(dtype, reduction).run(out, left, right);
}

/// Writes the reduction of all `inputs` to `out`, in the canonical tree order over their index.
///
/// `out` may be the very memory of one input; it must not overlap them otherwise.
///
/// # Panics
/// When there is no input, when lengths differ, or are no multiple of the element size.
pub fn fold_all(dtype: Dtype, reduction: ReduceOp, out: Span, inputs: &[Span]) {
    assert!(!inputs.is_empty(), "a reduction needs an input");
    assert!(inputs.iter().all(|i| i.len() == out.len()), "fold_all of spans of different length");
    assert!(out.len().is_multiple_of(dtype.size()), "{} bytes are no whole number of {dtype}", out.len());
    if let [only] = inputs {
        out.copy_from(*only);
        return;
    }
    let kernel = Kernel::of(dtype, reduction);
    if let [left, right] = inputs {
        kernel.run(out, *left, *right);
        return;
    }
    SCRATCH.with(|block| {
        let mut block = block.borrow_mut();
        // Two strips for every level of the tree: one for the left value, one for the right.
        let levels = usize::BITS as usize - inputs.len().leading_zeros() as usize + 1;
        if block.len() < 2 * levels * STRIP_BYTES {
            *block = Block::zeroed(2 * levels * STRIP_BYTES);
        }
        let scratch = block.span();
        let leaves = 1 << (usize::BITS - 1 - inputs.len().leading_zeros());
        let mut at = 0;
        while at < out.len() {
            let bytes = STRIP_BYTES.min(out.len() - at);
            let strip = Strip { kernel, inputs, at, bytes, scratch };
            strip.tree(0, leaves, out.part(at, bytes), 0);
            at += bytes;
        }
    });
}

thread_local! {
    /// Strips of inner vertices; kept, because a fresh block for each small op would cost more than the op.
    static SCRATCH: std::cell::RefCell<Block> = std::cell::RefCell::new(Block::zeroed(0));
}

struct Strip<'a> {
    kernel: Kernel,
    inputs: &'a [Span],
    at: usize,
    bytes: usize,
    scratch: Span,
}

impl Strip<'_> {
    fn input(&self, index: usize) -> Span {
        self.inputs[index].part(self.at, self.bytes)
    }

    /// The value of leaf `leaf`: the first `e` leaves are sums of two inputs.
    fn leaf(&self, leaf: usize, into: Span) -> Span {
        let n = self.inputs.len();
        let extra = n - (1 << (usize::BITS - 1 - n.leading_zeros()));
        if leaf < extra {
            self.kernel.run(into, self.input(2 * leaf), self.input(2 * leaf + 1));
            into
        } else {
            self.input(leaf + extra)
        }
    }

    /// Sums leaves `first..first + count` (a power of two) into `into`; scratch from `depth` on is free. Returns where
    /// the value lies: a single leaf is read where it is.
    fn tree(&self, first: usize, count: usize, into: Span, depth: usize) -> Span {
        if count == 1 {
            return self.leaf(first, into);
        }
        // Nothing is written to `out` before every input of this strip that it may alias has been read: inner
        // values go to scratch, and the root's kernel reads element by element before it writes.
        let half = count / 2;
        let slot = |d: usize| self.scratch.part(d * STRIP_BYTES, self.bytes);
        let left = self.tree(first, half, slot(depth), depth + 1);
        let right = self.tree(first + half, half, slot(depth + 1), depth + 2);
        self.kernel.run(into, left, right);
        into
    }
}

/// Ends a reduction: divides by the number of contributors where it is an average, else does nothing. Integers divide
/// towards zero.
///
/// # Panics
/// When `contributors` is zero, or the length is no multiple of the element size.
pub fn finish(dtype: Dtype, reduction: ReduceOp, values: Span, contributors: u32) {
    assert!(contributors > 0, "an average over nobody");
    assert!(
        values.len().is_multiple_of(dtype.size()),
        "{} bytes are no whole number of {dtype}",
        values.len()
    );
    if reduction == ReduceOp::Avg {
        simd::divide(dtype, values, contributors);
    }
}

#[cfg(test)]
mod tests;
