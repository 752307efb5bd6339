//! The kernels: one generic body, compiled once for any machine and once for machines with AVX2 and F16C.
//!
//! Both give the same bits: lanes are independent, and the compiler never fuses a multiplication and an addition on
//! its own. A block of lanes is read whole before its result is written, so the result may lie on an input. Nothing
//! is assumed about alignment.

use half::{bf16, f16};
use phalanx_core::spec::{Dtype, ReduceOp};

use super::element::{Element, Larger, Operator, Product, Smaller, Sum};
use crate::device::Span;

/// Which of the two compilations runs. All give the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// What every machine of the architecture has.
    Portable,
    /// AVX2 and F16C. Only [`Path::detected`] makes one.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// Proof that this machine has AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Avx2(());

impl Path {
    /// The best path of this machine. The standard library asks the processor once and remembers.
    #[inline]
    pub(super) fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            return Self::Avx2(Avx2(()));
        }
        Self::Portable
    }
}

/// The same `bytes` bytes of as many inputs as one kernel takes.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    starts: Starts,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Starts {
    Two([*const u8; 2]),
    Three([*const u8; 3]),
    Four([*const u8; 4]),
    Eight([*const u8; 8]),
}

impl Inputs {
    /// The part `offset..offset + bytes` of each input, if there is a kernel for that many inputs.
    ///
    /// # Panics
    /// When the part is not inside an input.
    pub(super) fn try_new(inputs: &[Span], offset: usize, bytes: usize) -> Option<Self> {
        let at = |span: &Span| span.part(offset, bytes).start().cast_const();
        let starts = match inputs {
            [a, b] => Starts::Two([a, b].map(at)),
            [a, b, c] => Starts::Three([a, b, c].map(at)),
            [a, b, c, d] => Starts::Four([a, b, c, d].map(at)),
            [a, b, c, d, e, f, g, h] => Starts::Eight([a, b, c, d, e, f, g, h].map(at)),
            _ => return None,
        };
        Some(Self { starts, bytes })
    }
}

type Fold = unsafe fn(*mut u8, Starts, usize);
type Divide = unsafe fn(*mut u8, usize, u32);

/// The kernels of one element type on one path; `folds` in the wire order of `ReduceOp`.
struct Kernels {
    folds: [Fold; 5],
    divide: Divide,
}

struct Row {
    dtype: Dtype,
    portable: Kernels,
    #[cfg(target_arch = "x86_64")]
    avx2: Kernels,
}

/// A row: the element type of the portable path, that of the AVX2 path, lanes of a block (two or four vectors).
const fn row<P: Element, A: Element, const L: usize>(dtype: Dtype) -> Row {
    Row {
        dtype,
        portable: Kernels {
            folds: [
                reduce::<P, Sum, L>,
                reduce::<P, Product, L>,
                reduce::<P, Smaller, L>,
                reduce::<P, Larger, L>,
                reduce::<P, Sum, L>,
            ],
            divide: divide::<P, L>,
        },
        #[cfg(target_arch = "x86_64")]
        avx2: Kernels {
            folds: [
                reduce_avx2::<A, Sum, L>,
                reduce_avx2::<A, Product, L>,
                reduce_avx2::<A, Smaller, L>,
                reduce_avx2::<A, Larger, L>,
                reduce_avx2::<A, Sum, L>,
            ],
            divide: divide_avx2::<A, L>,
        },
    }
}

#[cfg(not(target_arch = "x86_64"))]
type Wide<T> = T;

/// In the wire order of `Dtype`.
static ROWS: [Row; 10] = [
    row::<f32, Wide<f32>, 16>(Dtype::F32),
    row::<f64, Wide<f64>, 8>(Dtype::F64),
    row::<f16, Wide<f16>, 16>(Dtype::F16),
    row::<bf16, Wide<bf16>, 16>(Dtype::BF16),
    row::<i8, i8, 64>(Dtype::I8),
    row::<u8, u8, 64>(Dtype::U8),
    row::<i32, i32, 16>(Dtype::I32),
    row::<u32, u32, 16>(Dtype::U32),
    row::<i64, i64, 8>(Dtype::I64),
    row::<u64, u64, 8>(Dtype::U64),
];

// A new dtype or reduction must not be folded by another's kernel.
const _: () = {
    assert!(Dtype::ALL.len() == 10 && ReduceOp::ALL.len() == 5);
    let [sum, prod] = [ReduceOp::Sum.to_wire(), ReduceOp::Prod.to_wire()];
    let [min, max, avg] = [ReduceOp::Min.to_wire(), ReduceOp::Max.to_wire(), ReduceOp::Avg.to_wire()];
    assert!(sum == 0 && prod == 1 && min == 2 && max == 3 && avg == 4);
};

fn kernels(path: Path, dtype: Dtype) -> &'static Kernels {
    let row = &ROWS[usize::from(dtype.to_wire())];
    debug_assert_eq!(row.dtype, dtype, "kernel rows out of wire order");
    match path {
        Path::Portable => &row.portable,
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(_) => &row.avx2,
    }
}

/// `out[i]` = the canonical tree over `inputs[..][i]`; `out` may be one of the inputs.
///
/// # Panics
/// When `out` has another length than the inputs, or the length is no multiple of the element size.
pub(super) fn fold(path: Path, dtype: Dtype, reduction: ReduceOp, out: Span, inputs: Inputs) {
    assert_eq!(out.len(), inputs.bytes, "fold between spans of different length");
    let elements = elements(dtype, out);
    let kernel = kernels(path, dtype).folds[usize::from(reduction.to_wire())];
    // SAFETY: `Inputs::try_new` cut every input to `bytes`, `out` has as many (checked above), and their lenders
    // promised (`Span::new`) that this memory may be read and written. The instructions exist: a `Path::Avx2` is
    // only made by `Path::detected`, after it asked the processor.
    unsafe { kernel(out.start(), inputs.starts, elements) }
}

/// Divides every element by `divisor`, which is not zero.
///
/// # Panics
/// When the length is no multiple of the element size.
pub(super) fn quotients(path: Path, dtype: Dtype, values: Span, divisor: u32) {
    let elements = elements(dtype, values);
    // SAFETY: `elements` of this size fit the span (`elements`), which its lender promised to be readable and
    // writable (`Span::new`); the instructions exist as in `fold`.
    unsafe { (kernels(path, dtype).divide)(values.start(), elements, divisor) }
}

fn elements(dtype: Dtype, span: Span) -> usize {
    assert!(span.len().is_multiple_of(dtype.size()), "{} bytes are no whole number of {dtype}", span.len());
    span.len() / dtype.size()
}

/// Folds `elements` elements.
///
/// # Safety
/// `out` must be valid for writes and each start for reads of `elements` elements.
#[inline(always)]
unsafe fn reduce<E: Element, O: Operator, const L: usize>(out: *mut u8, starts: Starts, elements: usize) {
    // SAFETY: the caller's promise, passed on unchanged.
    unsafe {
        match starts {
            Starts::Two(s) => sweep::<E, O, L, 2>(out, s, elements),
            Starts::Three(s) => sweep::<E, O, L, 3>(out, s, elements),
            Starts::Four(s) => sweep::<E, O, L, 4>(out, s, elements),
            Starts::Eight(s) => sweep::<E, O, L, 8>(out, s, elements),
        }
    }
}

/// [`reduce`] with the instructions of [`Path::Avx2`].
///
/// # Safety
/// As `reduce`, and the machine must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn reduce_avx2<E: Element, O: Operator, const L: usize>(
    out: *mut u8,
    starts: Starts,
    elements: usize,
) {
    // SAFETY: the caller's promise, passed on unchanged.
    unsafe { reduce::<E, O, L>(out, starts, elements) }
}

/// Whole blocks of `L` lanes, then what is left one by one.
///
/// # Safety
/// As `reduce`.
#[inline(always)]
unsafe fn sweep<E: Element, O: Operator, const L: usize, const N: usize>(
    out: *mut u8,
    starts: [*const u8; N],
    elements: usize,
) {
    let mut i = 0;
    while elements - i >= L {
        // SAFETY: `i + L <= elements`, for which the caller vouches.
        unsafe { block::<E, O, L, N>(out, starts, i) };
        i += L;
    }
    while i < elements {
        // SAFETY: `i + 1 <= elements`, for which the caller vouches.
        unsafe { block::<E, O, 1, N>(out, starts, i) };
        i += 1;
    }
}

/// `L` elements from element `first` on. All are read before one is written.
///
/// # Safety
/// `out` must be valid for writes and each start for reads of elements `first..first + L`.
#[inline(always)]
unsafe fn block<E: Element, O: Operator, const L: usize, const N: usize>(
    out: *mut u8,
    starts: [*const u8; N],
    first: usize,
) {
    const { assert!(N == 2 || N == 3 || N == 4 || N == 8, "no canonical tree written down for this many inputs") };
    let offset = first * size_of::<E>();
    // SAFETY: the caller vouches for these elements of every input; `k < N` in each arm.
    let result = unsafe {
        match N {
            2 => two::<E, O, L, N>(starts, 0, offset),
            3 => O::lanes(two::<E, O, L, N>(starts, 0, offset), one::<E, L>(starts[2], offset)),
            4 => four::<E, O, L, N>(starts, 0, offset),
            _ => O::lanes(four::<E, O, L, N>(starts, 0, offset), four::<E, O, L, N>(starts, 4, offset)),
        }
    };
    // SAFETY: as for the reads.
    unsafe { out.add(offset).cast::<[E; L]>().write_unaligned(result) };
}

/// The lanes at byte `offset` of one input.
///
/// # Safety
/// `start` must be valid for reads of `L` elements at `offset`. (Every bit pattern is an element.)
#[inline(always)]
unsafe fn one<E: Element, const L: usize>(start: *const u8, offset: usize) -> [E; L] {
    // SAFETY: the caller's promise; the read asks for no alignment.
    unsafe { start.add(offset).cast::<[E; L]>().read_unaligned() }
}

/// The fold of inputs `k` and `k + 1`. Not a closure: those are not always inlined, and without that nothing here is
/// a vector instruction.
///
/// # Safety
/// As [`one`], for both.
#[inline(always)]
unsafe fn two<E: Element, O: Operator, const L: usize, const N: usize>(
    starts: [*const u8; N],
    k: usize,
    offset: usize,
) -> [E; L] {
    // SAFETY: the caller's promise, passed on unchanged.
    unsafe { O::lanes(one::<E, L>(starts[k], offset), one::<E, L>(starts[k + 1], offset)) }
}

/// The tree over inputs `k` to `k + 3`.
///
/// # Safety
/// As [`one`], for all four.
#[inline(always)]
unsafe fn four<E: Element, O: Operator, const L: usize, const N: usize>(
    starts: [*const u8; N],
    k: usize,
    offset: usize,
) -> [E; L] {
    // SAFETY: the caller's promise, passed on unchanged.
    unsafe { O::lanes(two::<E, O, L, N>(starts, k, offset), two::<E, O, L, N>(starts, k + 2, offset)) }
}

/// Divides `elements` elements in place.
///
/// # Safety
/// `values` must be valid for reads and writes of `elements` elements.
#[inline(always)]
unsafe fn divide<E: Element, const L: usize>(values: *mut u8, elements: usize, divisor: u32) {
    let mut i = 0;
    while elements - i >= L {
        // SAFETY: `i + L <= elements`, for which the caller vouches.
        unsafe { divide_block::<E, L>(values.add(i * size_of::<E>()), divisor) };
        i += L;
    }
    while i < elements {
        // SAFETY: `i + 1 <= elements`, for which the caller vouches.
        unsafe { divide_block::<E, 1>(values.add(i * size_of::<E>()), divisor) };
        i += 1;
    }
}

/// [`divide`] with the instructions of [`Path::Avx2`].
///
/// # Safety
/// As `divide`, and the machine must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn divide_avx2<E: Element, const L: usize>(values: *mut u8, elements: usize, divisor: u32) {
    // SAFETY: the caller's promise, passed on unchanged.
    unsafe { divide::<E, L>(values, elements, divisor) }
}

/// # Safety
/// `at` must be valid for reads and writes of `L` elements.
#[inline(always)]
unsafe fn divide_block<E: Element, const L: usize>(at: *mut u8, divisor: u32) {
    let at = at.cast::<[E; L]>();
    // SAFETY: the caller vouches for these elements; neither access asks for alignment.
    unsafe { at.write_unaligned(E::quotient_lanes(at.read_unaligned(), divisor)) }
}

/// A float whose sums, products and quotients are written in AVX2 instructions: left to itself the compiler vectorises
/// two inputs well, trees of more badly, and half precision not at all. Named in kernels of [`Path::Avx2`] only.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Wide<T>(T);

#[cfg(target_arch = "x86_64")]
mod vectors {
    //! Eight (f64: four) lanes from memory to a register of the type that computes, and back: with the one NaN, and
    //! rounded to nearest even.
    #![allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    /// Declares a load and a store. Each has the instructions enabled itself, else the intrinsics would stay calls.
    macro_rules! access {
        ($($load:ident, $store:ident, $register:ty,
            |$from:ident| $loaded:expr, |$to:ident, $value:ident| $stored:expr;)*) => {$(
            /// # Safety
            /// The address must be valid for reads of the lanes.
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            pub(super) unsafe fn $load($from: *const u8) -> $register {
                // SAFETY: the caller's promise; no alignment is asked for.
                unsafe { $loaded }
            }
            /// # Safety
            /// The address must be valid for writes of the lanes.
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            pub(super) unsafe fn $store($to: *mut u8, $value: $register) {
                // SAFETY: the caller's promise; no alignment is asked for.
                unsafe { $stored }
            }
        )*};
    }

    access! {
        load_f32, store_f32, __m256, |from| _mm256_loadu_ps(from.cast()),
            |to, value| _mm256_storeu_ps(to.cast(), one_nan(value));
        load_f64, store_f64, __m256d, |from| _mm256_loadu_pd(from.cast()),
            |to, value| _mm256_storeu_pd(to.cast(), one_nan_f64(value));
        load_f16, store_f16, __m256, |from| _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            |to, value| _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(one_nan(value)));
        load_bf16, store_bf16, __m256,
            |from| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))),
            |to, value| _mm_storeu_si128(to.cast(), rounded_bf16(one_nan(value)));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn one_nan(value: __m256) -> __m256 {
        let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc0_0000));
        _mm256_blendv_ps(value, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn one_nan_f64(value: __m256d) -> __m256d {
        let nan = _mm256_castsi256_pd(_mm256_set1_epi64x(0x7ff8_0000_0000_0000));
        _mm256_blendv_pd(value, nan, _mm256_cmp_pd::<_CMP_UNORD_Q>(value, value))
    }

    /// As `round_bf16` of the element; the one NaN has no bits to round and passes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounded_bf16(value: __m256) -> __m128i {
        let bits = _mm256_castps_si256(value);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let high = _mm256_srli_epi32::<16>(sum);
        // Packs within 128-bit halves; the even quarters hold the eight lanes.
        let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(_mm256_packus_epi32(high, high));
        _mm256_castsi256_si128(packed)
    }
}

/// A row: element, lanes of a register, how they are loaded and stored, and the instructions of the arithmetic.
#[cfg(target_arch = "x86_64")]
macro_rules! wide {
    ($($t:ty, $lanes:literal, $load:ident, $store:ident,
        $add:ident, $mul:ident, $div:ident, $set:ident, $wide:ty;)*) => {$(
        impl Element for Wide<$t> {
            #[inline(always)]
            fn sum(self, right: Self) -> Self { Self(self.0.sum(right.0)) }
            #[inline(always)]
            fn product(self, right: Self) -> Self { Self(self.0.product(right.0)) }
            #[inline(always)]
            fn smaller(self, right: Self) -> Self { Self(self.0.smaller(right.0)) }
            #[inline(always)]
            fn larger(self, right: Self) -> Self { Self(self.0.larger(right.0)) }
            #[inline(always)]
            fn quotient(self, divisor: u32) -> Self { Self(self.0.quotient(divisor)) }

            wide!(@lanes sum_lanes, $t, $lanes, $load, $store, std::arch::x86_64::$add, sum);
            wide!(@lanes product_lanes, $t, $lanes, $load, $store, std::arch::x86_64::$mul, product);

            #[inline(always)]
            fn quotient_lanes<const L: usize>(values: [Self; L], divisor: u32) -> [Self; L] {
                wide!(@body values, values, $t, $lanes, $load, $store,
                    |l, _r| std::arch::x86_64::$div(l, std::arch::x86_64::$set(divisor as $wide)),
                    |l, _r| l.quotient(divisor))
            }
        }
    )*};
    (@lanes $name:ident, $t:ty, $lanes:literal, $load:ident, $store:ident, $op:path, $single:ident) => {
        #[inline(always)]
        fn $name<const L: usize>(left: [Self; L], right: [Self; L]) -> [Self; L] {
            wide!(@body left, right, $t, $lanes, $load, $store, |l, r| $op(l, r), |l, r| l.$single(r))
        }
    };
    (@body $left:ident, $right:ident, $t:ty, $lanes:literal, $load:ident, $store:ident,
        |$l:ident, $r:ident| $vector:expr, |$sl:ident, $sr:ident| $single:expr) => {{
        let mut out = $left;
        let mut k = 0;
        while L - k >= $lanes {
            // SAFETY: lanes `k..k + $lanes` are inside the arrays. `Wide` is named only in kernels of `Path::Avx2`,
            // so `Path::detected` found the instructions.
            unsafe {
                let $l = vectors::$load($left.as_ptr().add(k).cast());
                let $r = vectors::$load($right.as_ptr().add(k).cast());
                vectors::$store(out.as_mut_ptr().add(k).cast(), $vector);
            }
            k += $lanes;
        }
        while k < L {
            let ($sl, $sr) = ($left[k], $right[k]);
            out[k] = $single;
            k += 1;
        }
        out
    }};
}

#[cfg(target_arch = "x86_64")]
wide! {
    f32, 8, load_f32, store_f32, _mm256_add_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_set1_ps, f32;
    f64, 4, load_f64, store_f64, _mm256_add_pd, _mm256_mul_pd, _mm256_div_pd, _mm256_set1_pd, f64;
    f16, 8, load_f16, store_f16, _mm256_add_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_set1_ps, f32;
    bf16, 8, load_bf16, store_bf16, _mm256_add_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_set1_ps, f32;
}

/// Bytes of a partial result that the tree keeps in the first-level cache.
pub(super) const STRIP_BYTES: usize = 4 << 10;

/// Room for one strip of a partial result, on the stack and not cleared.
#[repr(align(64))]
pub(super) struct Strip([std::mem::MaybeUninit<u8>; STRIP_BYTES]);

impl Strip {
    pub(super) const fn new() -> Self {
        Self([std::mem::MaybeUninit::uninit(); STRIP_BYTES])
    }

    /// The first `bytes` bytes, to be written before they are read; valid while the strip lives and stays in place.
    ///
    /// # Panics
    /// When the strip is shorter.
    pub(super) fn span(&mut self, bytes: usize) -> Span {
        assert!(bytes <= STRIP_BYTES, "{bytes} bytes of a strip of {STRIP_BYTES}");
        // SAFETY: the array is that long (checked above) and nobody holds a reference into it.
        unsafe { Span::new(self.0.as_mut_ptr().cast(), bytes) }
    }
}
