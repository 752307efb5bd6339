//! What one element of each dtype does under each reduction; the meaning that every kernel must reproduce.
//!
//! A NaN result is always the same NaN, the quiet one without payload or sign. Hardware and compiler are free to
//! choose among payloads (`a + b` may be compiled as `b + a`); with one NaN the bits of a result do not depend on them.

use half::{bf16, f16};

/// One element type. The `*_lanes` forms are what kernels call; a path may override them with its own instructions,
/// bound to give the same bits.
pub(super) trait Element: Copy + 'static {
    /// `self + right`; integers wrap.
    fn sum(self, right: Self) -> Self;
    /// `self * right`; integers wrap.
    fn product(self, right: Self) -> Self;
    /// IEEE 754-2019 `minimum`: NaN wins, -0 is less than +0.
    fn smaller(self, right: Self) -> Self;
    /// IEEE 754-2019 `maximum`: NaN wins, -0 is less than +0.
    fn larger(self, right: Self) -> Self;
    /// `self / divisor`; integers towards zero. The caller checked that `divisor` is not zero.
    fn quotient(self, divisor: u32) -> Self;

    /// [`Self::sum`], lane by lane.
    #[inline(always)]
    fn sum_lanes<const L: usize>(left: [Self; L], right: [Self; L]) -> [Self; L] {
        zip(left, right, Self::sum)
    }

    /// [`Self::product`], lane by lane.
    #[inline(always)]
    fn product_lanes<const L: usize>(left: [Self; L], right: [Self; L]) -> [Self; L] {
        zip(left, right, Self::product)
    }

    /// [`Self::quotient`], lane by lane.
    #[inline(always)]
    fn quotient_lanes<const L: usize>(mut values: [Self; L], divisor: u32) -> [Self; L] {
        for value in &mut values {
            *value = value.quotient(divisor);
        }
        values
    }
}

/// Applies `f` lane by lane.
#[inline(always)]
pub(super) fn zip<E: Copy, const L: usize>(mut left: [E; L], right: [E; L], f: impl Fn(E, E) -> E) -> [E; L] {
    for (l, r) in left.iter_mut().zip(right) {
        *l = f(*l, r);
    }
    left
}

/// One reduction over any element type.
pub(super) trait Operator: 'static {
    /// `left (+) right`, lane by lane.
    fn lanes<E: Element, const L: usize>(left: [E; L], right: [E; L]) -> [E; L];
}

/// `Sum`, and the folding part of `Avg`.
pub(super) struct Sum;
/// `Prod`.
pub(super) struct Product;
/// `Min`.
pub(super) struct Smaller;
/// `Max`.
pub(super) struct Larger;

impl Operator for Sum {
    #[inline(always)]
    fn lanes<E: Element, const L: usize>(left: [E; L], right: [E; L]) -> [E; L] {
        E::sum_lanes(left, right)
    }
}

impl Operator for Product {
    #[inline(always)]
    fn lanes<E: Element, const L: usize>(left: [E; L], right: [E; L]) -> [E; L] {
        E::product_lanes(left, right)
    }
}

impl Operator for Smaller {
    #[inline(always)]
    fn lanes<E: Element, const L: usize>(left: [E; L], right: [E; L]) -> [E; L] {
        zip(left, right, E::smaller)
    }
}

impl Operator for Larger {
    #[inline(always)]
    fn lanes<E: Element, const L: usize>(left: [E; L], right: [E; L]) -> [E; L] {
        zip(left, right, E::larger)
    }
}

/// Integers: element type, and the type in which it can be divided by any `u32`.
macro_rules! integers {
    ($($t:ty, $wide:ty;)*) => {$(
        impl Element for $t {
            #[inline(always)]
            fn sum(self, right: Self) -> Self { self.wrapping_add(right) }
            #[inline(always)]
            fn product(self, right: Self) -> Self { self.wrapping_mul(right) }
            #[inline(always)]
            fn smaller(self, right: Self) -> Self { if self < right { self } else { right } }
            #[inline(always)]
            fn larger(self, right: Self) -> Self { if self > right { self } else { right } }
            // The cast back loses nothing: a quotient is no larger than what was divided, and the divisor is
            // positive, so `MIN / -1` cannot arise.
            #[inline(always)]
            fn quotient(self, divisor: u32) -> Self { (<$wide>::from(self) / <$wide>::from(divisor)) as $t }
        }
    )*};
}

integers! {
    i8, i64;
    u8, u32;
    i32, i64;
    u32, u32;
    i64, i64;
    u64, u64;
}

/// Floats of every width: bits as unsigned and signed integer, the bits of infinity and of the one NaN, how they are
/// ordered, and how to compute: in which type, how an element gets there, and how it is rounded back, to nearest even.
macro_rules! floats {
    ($($t:ty, $bits:ty, $signed:ty, inf $inf:literal, nan $nan:literal, $order:ident,
        $wide:ty, $via:expr, $back:expr;)*) => {$(
        impl Element for $t {
            #[inline(always)]
            fn sum(self, right: Self) -> Self { $back($via(self) + $via(right)) }
            #[inline(always)]
            fn product(self, right: Self) -> Self { $back($via(self) * $via(right)) }
            floats!(@order $order, $bits, $signed, inf $inf, nan $nan);
            #[inline(always)]
            fn quotient(self, divisor: u32) -> Self { $back($via(self) / divisor as $wide) }
        }
    )*};
    // By the float's own comparisons: the compiler does not vectorise the order of 64-bit integers. Equal values
    // differ in the sign of a zero at most: it is set in the smaller one if it is set in either, in the larger
    // one if it is set in both.
    (@order direct, $bits:ty, $signed:ty, inf $inf:literal, nan $nan:literal) => {
        #[inline(always)]
        fn smaller(self, right: Self) -> Self {
            let (l, r) = (self.to_bits(), right.to_bits());
            let least = if self < right { l } else if right < self { r } else { l | r };
            Self::from_bits(if self.is_nan() | right.is_nan() { $nan } else { least })
        }
        #[inline(always)]
        fn larger(self, right: Self) -> Self {
            let (l, r) = (self.to_bits(), right.to_bits());
            let most = if self > right { l } else if right > self { r } else { l & r };
            Self::from_bits(if self.is_nan() | right.is_nan() { $nan } else { most })
        }
    };
    // As an order of integers: negative ones have all bits but the sign turned over.
    (@order by_bits, $bits:ty, $signed:ty, inf $inf:literal, nan $nan:literal) => {
        #[inline(always)]
        fn smaller(self, right: Self) -> Self {
            let (l, r) = (self.to_bits(), right.to_bits());
            let least = if key(l) < key(r) { l } else { r };
            return Self::from_bits(if is_nan(l) | is_nan(r) { $nan } else { least });
            floats!(@keys $bits, $signed, $inf);
        }
        #[inline(always)]
        fn larger(self, right: Self) -> Self {
            let (l, r) = (self.to_bits(), right.to_bits());
            let most = if key(l) > key(r) { l } else { r };
            return Self::from_bits(if is_nan(l) | is_nan(r) { $nan } else { most });
            floats!(@keys $bits, $signed, $inf);
        }
    };
    (@keys $bits:ty, $signed:ty, $inf:literal) => {
        #[inline(always)]
        fn key(bits: $bits) -> $signed {
            let signed = bits as $signed;
            signed ^ ((signed >> (<$bits>::BITS - 1)) & <$signed>::MAX)
        }
        #[inline(always)]
        fn is_nan(bits: $bits) -> bool { bits & (<$bits>::MAX >> 1) > $inf }
    };
}

floats! {
    f32, u32, i32, inf 0x7f80_0000, nan 0x7fc0_0000, by_bits, f32, std::convert::identity, one_nan_f32;
    f64, u64, i64, inf 0x7ff0_0000_0000_0000, nan 0x7ff8_0000_0000_0000, direct,
        f64, std::convert::identity, one_nan_f64;
    f16, u16, i16, inf 0x7c00, nan 0x7e00, by_bits, f32, f16::to_f32_const, round_f16;
    bf16, u16, i16, inf 0x7f80, nan 0x7fc0, by_bits, f32, widen_bf16, round_bf16;
}

#[inline(always)]
fn one_nan_f32(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { value }
}

#[inline(always)]
fn one_nan_f64(value: f64) -> f64 {
    if value.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { value }
}

#[inline(always)]
fn round_f16(value: f32) -> f16 {
    if value.is_nan() { f16::from_bits(0x7e00) } else { f16::from_f32_const(value) }
}

#[inline(always)]
fn widen_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Rounds by integer addition, which vectorises: half of the last kept place, less one if that place is even. A
/// carry out of the mantissa moves to the next exponent, at the top to infinity, as it must.
#[inline(always)]
fn round_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
}
