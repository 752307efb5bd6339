//! Kernels: one generic body, one row per type, compiled twice: for any x86-64 (or other) processor, and for AVX2.
//!
//! A kernel loads a few vectors' worth of elements of both operands before it stores any, so that `out` may be one of
//! the operands and the loop still becomes vector code.

use half::slice::HalfFloatSliceExt;
use phalanx_core::spec::{Dtype, ReduceOp};

use crate::device::Span;

/// The loop of one element type and reduction.
#[derive(Clone, Copy)]
pub struct Kernel(unsafe fn(*mut u8, *const u8, *const u8, usize));

impl Kernel {
    /// The fastest kernel this processor can run.
    #[must_use]
    pub fn of(dtype: Dtype, reduction: ReduceOp) -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self(pick::<Avx2>(dtype, reduction));
        }
        Self::portable(dtype, reduction)
    }

    /// The kernel that every processor can run; it gives the same bits.
    #[must_use]
    pub fn portable(dtype: Dtype, reduction: ReduceOp) -> Self {
        Self(pick::<Portable>(dtype, reduction))
    }

    /// `out = left (+) right`; the lengths are equal and a multiple of the element size (checked by the callers in
    /// `mod.rs`).
    pub fn run(self, out: Span, left: Span, right: Span) {
        debug_assert!(out.len() == left.len() && left.len() == right.len());
        // SAFETY: the spans are valid for their equal lengths by the contract of `Span::new`; `Kernel::of` chose a
        // kernel of a feature that was detected.
        unsafe { (self.0)(out.start(), left.start(), right.start(), out.len()) }
    }
}

/// Bytes handled between loads and stores.
const GROUP_BYTES: usize = 128;
/// Elements of low precision converted at once.
const WIDE: usize = 128;

trait Combine<E> {
    fn combine(a: E, b: E) -> E;
}

struct Sum;
struct Prod;
struct Min;
struct Max;

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Combine<$int> for Sum {
            #[inline(always)]
            fn combine(a: $int, b: $int) -> $int { a.wrapping_add(b) }
        }
        impl Combine<$int> for Prod {
            #[inline(always)]
            fn combine(a: $int, b: $int) -> $int { a.wrapping_mul(b) }
        }
        impl Combine<$int> for Min {
            #[inline(always)]
            fn combine(a: $int, b: $int) -> $int { if b < a { b } else { a } }
        }
        impl Combine<$int> for Max {
            #[inline(always)]
            fn combine(a: $int, b: $int) -> $int { if b > a { b } else { a } }
        }
    )*};
}
integers!(i8, u8, i32, u32, i64, u64);

macro_rules! floats {
    ($($float:ty),*) => {$(
        impl Combine<$float> for Sum {
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float { a + b }
        }
        impl Combine<$float> for Prod {
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float { a * b }
        }
        impl Combine<$float> for Min {
            /// IEEE 754-2019 `minimum`: NaN wins, -0 is below +0.
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float {
                let below = if a < b { a } else { b };
                let even = <$float>::from_bits(a.to_bits() | b.to_bits());
                let ordered = if a == b { even } else { below };
                if a.is_nan() || b.is_nan() { a + b } else { ordered }
            }
        }
        impl Combine<$float> for Max {
            /// IEEE 754-2019 `maximum`: NaN wins, +0 is above -0.
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float {
                let above = if a > b { a } else { b };
                let even = <$float>::from_bits(a.to_bits() & b.to_bits());
                let ordered = if a == b { even } else { above };
                if a.is_nan() || b.is_nan() { a + b } else { ordered }
            }
        }
    )*};
}
floats!(f32, f64);

/// bfloat16 as it lies in memory; added in `f32`, rounded to nearest even.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Brain(u16);

impl Brain {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        // A NaN whose payload would round to infinity stays a NaN.
        let quiet = ((bits >> 16) | 0x40) as u16;
        Self(if value.is_nan() { quiet } else { rounded })
    }
}

macro_rules! brains {
    ($($op:ident),*) => {$(
        impl Combine<Brain> for $op {
            #[inline(always)]
            fn combine(a: Brain, b: Brain) -> Brain {
                Brain::round(<$op as Combine<f32>>::combine(a.widen(), b.widen()))
            }
        }
    )*};
}
brains!(Sum, Prod, Min, Max);

/// `out = left (+) right` over `bytes` bytes.
///
/// # Safety
/// The three addresses are valid for `bytes` bytes; `out` is one of the operands or overlaps neither.
#[inline(always)]
unsafe fn body<E: Copy, O: Combine<E>, const LANES: usize>(
    out: *mut u8,
    left: *const u8,
    right: *const u8,
    bytes: usize,
) {
    let (out, left, right) = (out.cast::<E>(), left.cast::<E>(), right.cast::<E>());
    let count = bytes / size_of::<E>();
    let mut i = 0;
    while i + LANES <= count {
        // SAFETY: `i + LANES <= count`, and the caller promises `count` elements at each address; unaligned accesses
        // make no demand on the address.
        unsafe {
            let a = left.add(i).cast::<[E; LANES]>().read_unaligned();
            let b = right.add(i).cast::<[E; LANES]>().read_unaligned();
            let mut sum = a;
            for lane in 0..LANES {
                sum[lane] = O::combine(a[lane], b[lane]);
            }
            out.add(i).cast::<[E; LANES]>().write_unaligned(sum);
        }
        i += LANES;
    }
    while i < count {
        // SAFETY: `i < count`, as above.
        unsafe {
            let sum = O::combine(left.add(i).read_unaligned(), right.add(i).read_unaligned());
            out.add(i).write_unaligned(sum);
        }
        i += 1;
    }
}

/// The same for IEEE half precision: both operands are widened, added and rounded a strip at a time.
///
/// # Safety
/// As [`body`].
#[inline(always)]
unsafe fn half_body<O: Combine<f32>>(out: *mut u8, left: *const u8, right: *const u8, bytes: usize) {
    use half::f16;
    let count = bytes / 2;
    let mut i = 0;
    while i < count {
        let n = WIDE.min(count - i);
        let (mut a, mut b) = ([f16::ZERO; WIDE], [f16::ZERO; WIDE]);
        let (mut wide_a, mut wide_b) = ([0f32; WIDE], [0f32; WIDE]);
        // SAFETY: `i + n <= count`; the local arrays hold `WIDE >= n` elements; every bit pattern is an `f16`.
        unsafe {
            std::ptr::copy_nonoverlapping(left.add(2 * i), a.as_mut_ptr().cast::<u8>(), 2 * n);
            std::ptr::copy_nonoverlapping(right.add(2 * i), b.as_mut_ptr().cast::<u8>(), 2 * n);
        }
        a.convert_to_f32_slice(&mut wide_a);
        b.convert_to_f32_slice(&mut wide_b);
        for lane in 0..WIDE {
            wide_a[lane] = O::combine(wide_a[lane], wide_b[lane]);
        }
        a.convert_from_f32_slice(&wide_a);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(a.as_ptr().cast::<u8>(), out.add(2 * i), 2 * n) }
        i += n;
    }
}

trait Target {
    /// # Safety
    /// As [`body`], and the processor has the target's features.
    unsafe fn elements<E: Copy, O: Combine<E>, const LANES: usize>(
        out: *mut u8,
        left: *const u8,
        right: *const u8,
        bytes: usize,
    );
    /// # Safety
    /// As [`half_body`], and the processor has the target's features.
    unsafe fn halves<O: Combine<f32>>(out: *mut u8, left: *const u8, right: *const u8, bytes: usize);
}

struct Portable;

impl Target for Portable {
    unsafe fn elements<E: Copy, O: Combine<E>, const LANES: usize>(
        out: *mut u8,
        left: *const u8,
        right: *const u8,
        bytes: usize,
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe { body::<E, O, LANES>(out, left, right, bytes) }
    }

    unsafe fn halves<O: Combine<f32>>(out: *mut u8, left: *const u8, right: *const u8, bytes: usize) {
        // SAFETY: the caller's promise is passed on.
        unsafe { half_body::<O>(out, left, right, bytes) }
    }
}

#[cfg(target_arch = "x86_64")]
struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Target for Avx2 {
    #[target_feature(enable = "avx2")]
    unsafe fn elements<E: Copy, O: Combine<E>, const LANES: usize>(
        out: *mut u8,
        left: *const u8,
        right: *const u8,
        bytes: usize,
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe { body::<E, O, LANES>(out, left, right, bytes) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn halves<O: Combine<f32>>(out: *mut u8, left: *const u8, right: *const u8, bytes: usize) {
        // SAFETY: the caller's promise is passed on.
        unsafe { half_body::<O>(out, left, right, bytes) }
    }
}

fn pick<T: Target>(dtype: Dtype, reduction: ReduceOp) -> unsafe fn(*mut u8, *const u8, *const u8, usize) {
    macro_rules! row {
        ($elem:ty) => {
            match reduction {
                ReduceOp::Sum | ReduceOp::Avg => {
                    T::elements::<$elem, Sum, { GROUP_BYTES / size_of::<$elem>() }>
                }
                ReduceOp::Prod => T::elements::<$elem, Prod, { GROUP_BYTES / size_of::<$elem>() }>,
                ReduceOp::Min => T::elements::<$elem, Min, { GROUP_BYTES / size_of::<$elem>() }>,
                ReduceOp::Max => T::elements::<$elem, Max, { GROUP_BYTES / size_of::<$elem>() }>,
            }
        };
    }
    match dtype {
        Dtype::F32 => row!(f32),
        Dtype::F64 => row!(f64),
        Dtype::BF16 => row!(Brain),
        Dtype::I8 => row!(i8),
        Dtype::U8 => row!(u8),
        Dtype::I32 => row!(i32),
        Dtype::U32 => row!(u32),
        Dtype::I64 => row!(i64),
        Dtype::U64 => row!(u64),
        Dtype::F16 => match reduction {
            ReduceOp::Sum | ReduceOp::Avg => T::halves::<Sum>,
            ReduceOp::Prod => T::halves::<Prod>,
            ReduceOp::Min => T::halves::<Min>,
            ReduceOp::Max => T::halves::<Max>,
        },
    }
}

/// Divides every element by `by`.
pub fn divide(dtype: Dtype, values: Span, by: u32) {
    macro_rules! each {
        ($elem:ty, $map:expr) => {{
            let map = $map;
            let start = values.start().cast::<$elem>();
            for i in 0..values.len() / size_of::<$elem>() {
                // SAFETY: `i` is below the number of whole elements in the span, which is valid by `Span::new`.
                unsafe {
                    let at = start.add(i);
                    at.write_unaligned(map(at.read_unaligned()));
                }
            }
        }};
    }
    match dtype {
        Dtype::F32 => each!(f32, |v: f32| v / by as f32),
        Dtype::F64 => each!(f64, |v: f64| v / f64::from(by)),
        Dtype::F16 => each!(half::f16, |v: half::f16| half::f16::from_f32(v.to_f32() / by as f32)),
        Dtype::BF16 => each!(Brain, |v: Brain| Brain::round(v.widen() / by as f32)),
        Dtype::I8 => each!(i8, |v: i8| (i64::from(v) / i64::from(by)) as i8),
        Dtype::U8 => each!(u8, |v: u8| (u32::from(v) / by) as u8),
        Dtype::I32 => each!(i32, |v: i32| (i64::from(v) / i64::from(by)) as i32),
        Dtype::U32 => each!(u32, |v: u32| v / by),
        Dtype::I64 => each!(i64, |v: i64| v / i64::from(by)),
        Dtype::U64 => each!(u64, |v: u64| v / u64::from(by)),
    }
}
