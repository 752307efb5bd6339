//! Reductions on the CPU: the same bits on every machine, at every length, split and alignment.
//!
//! Which partial sums are added to which is the canonical tree's to say ([`fold_all`]); what one addition gives is
//! fixed per dtype: low precision is added in f32 and rounded to the element type, to nearest even, at every inner
//! vertex; integers wrap; `Min` and `Max` are IEEE 754-2019 `minimum` and `maximum`. Whatever NaNs go into a
//! reduction of two or more inputs, one fixed NaN comes out.

use phalanx_core::spec::{Dtype, ReduceOp};

use super::Span;

mod element;
mod simd;
#[cfg(test)]
mod tests;

use simd::{Inputs, Path, STRIP_BYTES, Strip};

/// Writes `left[i] (+) right[i]` to `out[i]`. `Avg` folds as `Sum`; [`finish`] divides.
///
/// `out` may be the very memory of `left` or `right`; if it overlaps one in any other way, the result is
/// meaningless. The elements may lie at any address.
///
/// # Panics
/// When the three lengths differ, or are no multiple of the element size.
pub fn fold(dtype: Dtype, reduction: ReduceOp, out: Span, left: Span, right: Span) {
    assert_eq!(left.len(), right.len(), "fold of spans of different length");
    fold_all(dtype, reduction, out, &[left, right]);
}

/// Writes the reduction over `inputs`, element by element, to `out`, in the canonical tree order of the inputs'
/// index; bit for bit what the tree gives when each inner vertex is a [`fold`].
///
/// The tree over `n` inputs: with `p` the largest power of two up to `n` and `e = n - p`, the first `e` neighbouring
/// pairs are folded first, which leaves `p` values; these are folded pairwise, neighbours first, lower index on the
/// left. One input is copied as it is.
///
/// `out` may be the very memory of any one input; if it overlaps one in any other way, the result is meaningless.
///
/// # Panics
/// When there is no input, the lengths differ, or they are no multiple of the element size.
pub fn fold_all(dtype: Dtype, reduction: ReduceOp, out: Span, inputs: &[Span]) {
    fold_all_on(Path::detected(), dtype, reduction, out, inputs);
}

fn fold_all_on(path: Path, dtype: Dtype, reduction: ReduceOp, out: Span, inputs: &[Span]) {
    assert!(!inputs.is_empty(), "fold over no input");
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(input.len(), out.len(), "input {i} and the result differ in length");
        debug_assert!(
            input.start() == out.start()
                || (input.start() as usize).abs_diff(out.start() as usize) >= out.len(),
            "the result overlaps input {i} without being it"
        );
    }
    assert!(out.len().is_multiple_of(dtype.size()), "{} bytes are no whole number of {dtype}", out.len());
    if let [only] = inputs {
        out.copy_from(*only);
        return;
    }
    if let Some(inputs) = Inputs::try_new(inputs, 0, out.len()) {
        simd::fold(path, dtype, reduction, out, inputs);
        return;
    }
    let tree = Tree { path, dtype, reduction };
    let mut offset = 0;
    while offset < out.len() {
        let bytes = STRIP_BYTES.min(out.len() - offset);
        tree.strip(out.part(offset, bytes), inputs, offset);
        offset += bytes;
    }
}

/// How one call folds, whatever the subtree.
#[derive(Clone, Copy)]
struct Tree {
    path: Path,
    dtype: Dtype,
    reduction: ReduceOp,
}

impl Tree {
    /// Reduces the strip at `offset` of two or more inputs. The strip of `out` is written only when all inputs were
    /// read, because it may be one of them.
    fn strip(self, out: Span, inputs: &[Span], offset: usize) {
        if let Some(inputs) = Inputs::try_new(inputs, offset, out.len()) {
            simd::fold(self.path, self.dtype, self.reduction, out, inputs);
            return;
        }
        let (left, right) = inputs.split_at(left_inputs(inputs.len()));
        let (mut left_room, mut right_room) = (Strip::new(), Strip::new());
        let halves = [
            self.operand(&mut left_room, left, offset, out.len()),
            self.operand(&mut right_room, right, offset, out.len()),
        ];
        let inputs = Inputs::try_new(&halves, 0, out.len()).expect("there is a kernel for two inputs");
        simd::fold(self.path, self.dtype, self.reduction, out, inputs);
    }

    /// The strip of a subtree's value: the input itself if the subtree is a leaf, else computed into `room`.
    fn operand(self, room: &mut Strip, inputs: &[Span], offset: usize, bytes: usize) -> Span {
        if let [only] = inputs {
            return only.part(offset, bytes);
        }
        let value = room.span(bytes);
        self.strip(value, inputs, offset);
        value
    }
}

/// How many of `n >= 2` inputs are under the left child of the canonical tree's root. Both subtrees are canonical
/// trees of their own inputs again: each has half of the `p` leaves, and the leaves that are pairs come first.
fn left_inputs(n: usize) -> usize {
    let leaves = 1 << n.ilog2();
    let pairs = n - leaves;
    leaves / 2 + pairs.min(leaves / 2)
}

/// Ends a reduction over `contributors` inputs: `Avg` divides every element once, floats in their own type (f16 and
/// bf16 in f32, then rounded), integers towards zero. Other reductions are finished already.
///
/// # Panics
/// When the length is no multiple of the element size, or an average has no contributor.
pub fn finish(dtype: Dtype, reduction: ReduceOp, values: Span, contributors: u32) {
    finish_on(Path::detected(), dtype, reduction, values, contributors);
}

fn finish_on(path: Path, dtype: Dtype, reduction: ReduceOp, values: Span, contributors: u32) {
    assert!(
        values.len().is_multiple_of(dtype.size()),
        "{} bytes are no whole number of {dtype}",
        values.len()
    );
    if reduction == ReduceOp::Avg {
        assert!(contributors > 0, "average over no contributor");
        // One contributor: the input comes out as it went in, as it does from `fold_all`.
        if contributors > 1 {
            simd::quotients(path, dtype, values, contributors);
        }
    }
}
