//! Kernels against a plain re-telling of their contract, and path against path.

use half::{bf16, f16};
use phalanx_core::spec::{Dtype, ReduceOp};
use proptest::prelude::*;

use super::*;
use crate::device::Block;

/// The plain meaning of one fold, on the bytes of one element. Shares no code with the kernels: floats go through
/// the `half` crate's run-time conversions and through comparisons instead of bit tricks.
fn plain(dtype: Dtype, reduction: ReduceOp, left: &[u8], right: &[u8]) -> Vec<u8> {
    macro_rules! integer {
        ($t:ty) => {{
            let [l, r] = [left, right].map(|b| <$t>::from_le_bytes(b.try_into().unwrap()));
            let value = match reduction {
                ReduceOp::Sum | ReduceOp::Avg => l.wrapping_add(r),
                ReduceOp::Prod => l.wrapping_mul(r),
                ReduceOp::Min => l.min(r),
                ReduceOp::Max => l.max(r),
            };
            value.to_le_bytes().to_vec()
        }};
    }
    macro_rules! float {
        ($t:ty, $wide:ty, $nan:expr, $widen:expr, $round:expr) => {{
            let [a, b] = [left, right].map(|b| <$t>::from_le_bytes(b.try_into().unwrap()));
            let (l, r): ($wide, $wide) = ($widen(a), $widen(b));
            let value = match reduction {
                ReduceOp::Sum | ReduceOp::Avg => $round(l + r),
                ReduceOp::Prod => $round(l * r),
                ReduceOp::Min | ReduceOp::Max if l.is_nan() || r.is_nan() => <$t>::NAN,
                ReduceOp::Min if l == r => {
                    if l.is_sign_negative() {
                        a
                    } else {
                        b
                    }
                }
                ReduceOp::Max if l == r => {
                    if l.is_sign_negative() {
                        b
                    } else {
                        a
                    }
                }
                ReduceOp::Min => {
                    if l < r {
                        a
                    } else {
                        b
                    }
                }
                ReduceOp::Max => {
                    if l > r {
                        a
                    } else {
                        b
                    }
                }
            };
            let bits = if value.is_nan() { $nan } else { value.to_bits() };
            bits.to_le_bytes().to_vec()
        }};
    }
    match dtype {
        Dtype::F32 => float!(f32, f32, 0x7fc0_0000_u32, |x| x, |x| x),
        Dtype::F64 => float!(f64, f64, 0x7ff8_0000_0000_0000_u64, |x| x, |x| x),
        Dtype::F16 => float!(f16, f32, 0x7e00_u16, f16::to_f32, f16::from_f32),
        Dtype::BF16 => float!(bf16, f32, 0x7fc0_u16, bf16::to_f32, bf16::from_f32),
        Dtype::I8 => integer!(i8),
        Dtype::U8 => integer!(u8),
        Dtype::I32 => integer!(i32),
        Dtype::U32 => integer!(u32),
        Dtype::I64 => integer!(i64),
        Dtype::U64 => integer!(u64),
    }
}

/// The plain meaning of `Avg`'s division.
fn plain_quotient(dtype: Dtype, value: &[u8], by: u32) -> Vec<u8> {
    macro_rules! integer {
        ($t:ty) => {{
            let value = <$t>::from_le_bytes(value.try_into().unwrap());
            let quotient = <$t>::try_from(i128::from(value) / i128::from(by)).unwrap();
            quotient.to_le_bytes().to_vec()
        }};
    }
    macro_rules! float {
        ($t:ty, $nan:expr, $divide:expr) => {{
            let value: $t = $divide(<$t>::from_le_bytes(value.try_into().unwrap()));
            (if value.is_nan() { $nan } else { value.to_bits() }).to_le_bytes().to_vec()
        }};
    }
    match dtype {
        Dtype::F32 => float!(f32, 0x7fc0_0000_u32, |x| x / by as f32),
        Dtype::F64 => float!(f64, 0x7ff8_0000_0000_0000_u64, |x| x / f64::from(by)),
        Dtype::F16 => float!(f16, 0x7e00_u16, |x: f16| f16::from_f32(x.to_f32() / by as f32)),
        Dtype::BF16 => float!(bf16, 0x7fc0_u16, |x: bf16| bf16::from_f32(x.to_f32() / by as f32)),
        Dtype::I8 => integer!(i8),
        Dtype::U8 => integer!(u8),
        Dtype::I32 => integer!(i32),
        Dtype::U32 => integer!(u32),
        Dtype::I64 => integer!(i64),
        Dtype::U64 => integer!(u64),
    }
}

fn by_element(size: usize, left: &[u8], right: &[u8], f: impl Fn(&[u8], &[u8]) -> Vec<u8>) -> Vec<u8> {
    left.chunks_exact(size).zip(right.chunks_exact(size)).flat_map(|(l, r)| f(l, r)).collect()
}

/// The canonical tree as reproducible.md tells it: leaves, then level by level.
fn plain_tree(dtype: Dtype, reduction: ReduceOp, inputs: &[Vec<u8>]) -> Vec<u8> {
    let two = |l: &[u8], r: &[u8]| by_element(dtype.size(), l, r, |l, r| plain(dtype, reduction, l, r));
    let mut p = 1;
    while 2 * p <= inputs.len() {
        p *= 2;
    }
    let e = inputs.len() - p;
    let leaf = |i: usize| if i < e { two(&inputs[2 * i], &inputs[2 * i + 1]) } else { inputs[i + e].clone() };
    let mut level: Vec<Vec<u8>> = (0..p).map(leaf).collect();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| two(&pair[0], &pair[1])).collect();
    }
    level.remove(0)
}

/// Bit patterns that arithmetic gets wrong first, as the low bits of a word.
fn special(dtype: Dtype) -> Vec<u64> {
    let (mantissa, width) = match dtype {
        Dtype::F32 => (23, 32),
        Dtype::F64 => (52, 64),
        Dtype::F16 => (10, 16),
        Dtype::BF16 => (7, 16),
        Dtype::I8 | Dtype::U8 => (3, 8),
        Dtype::I32 | Dtype::U32 => (5, 32),
        Dtype::I64 | Dtype::U64 => (9, 64),
    };
    let sign = 1_u64 << (width - 1);
    let infinity = (sign - 1) >> mantissa << mantissa;
    let positive = [
        0,
        1,
        2,
        (1 << mantissa) - 1,
        1 << mantissa,
        (1 << mantissa) + 1,
        infinity - 1,
        infinity,
        infinity + 1,
        infinity | (1 << (mantissa - 1)),
        infinity | ((1 << mantissa) - 1),
        (infinity >> 1) & infinity,
        ((infinity >> 1) & infinity) | 1,
    ];
    positive.into_iter().flat_map(|bits| [bits, bits | sign]).collect()
}

/// A small generator: the tests need many bytes, not good ones.
fn bytes_of(seed: u64, dtype: Dtype, elements: usize) -> Vec<u8> {
    let specials = special(dtype);
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut element = move || match next() % 4 {
        0 => specials[(next() >> 20) as usize % specials.len()],
        // Near 1 in floats: sums round instead of overflowing.
        1 => near_one(dtype, next()),
        _ => next() >> 3,
    };
    (0..elements).flat_map(|_| element().to_le_bytes()[..dtype.size()].to_vec()).collect()
}

fn near_one(dtype: Dtype, random: u64) -> u64 {
    let value = (random >> 11) as f64 / (1_u64 << 53) as f64 * 4.0 - 2.0;
    match dtype {
        Dtype::F32 => u64::from((value as f32).to_bits()),
        Dtype::F64 => value.to_bits(),
        Dtype::F16 => u64::from(f16::from_f64(value).to_bits()),
        Dtype::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64 => random,
    }
}

fn paths() -> Vec<Path> {
    let mut paths = vec![Path::Portable, Path::detected()];
    paths.dedup();
    paths
}

/// Memory at `shift` bytes after a cache line's start, with a guard of 64 bytes behind.
struct Place {
    block: Block,
    shift: usize,
    bytes: usize,
}

impl Place {
    fn holding(content: &[u8], shift: usize) -> Self {
        let mut block = Block::zeroed(shift + content.len() + 64);
        block.span().write(&vec![0xa5; shift + content.len() + 64]);
        block.span().part(shift, content.len()).write(content);
        Self { block, shift, bytes: content.len() }
    }

    fn span(&mut self) -> Span {
        self.block.span().part(self.shift, self.bytes)
    }

    fn content(&mut self) -> Vec<u8> {
        let mut all = vec![0; self.block.bytes()];
        self.block.span().read(&mut all);
        let after = self.shift + self.bytes;
        assert!(all[..self.shift].iter().chain(&all[after..]).all(|&b| b == 0xa5), "written outside");
        all[self.shift..after].to_vec()
    }
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    prop::sample::select(Dtype::ALL)
}

fn reductions() -> impl Strategy<Value = ReduceOp> {
    prop::sample::select(ReduceOp::ALL)
}

/// Runs `fold_all` on both paths, the result on input `on` if there is such an input, and compares with the oracle.
fn check_tree(dtype: Dtype, reduction: ReduceOp, inputs: &[Vec<u8>], shifts: &[usize], on: usize) {
    let expected = plain_tree(dtype, reduction, inputs);
    for path in paths() {
        let mut places: Vec<Place> =
            inputs.iter().zip(shifts).map(|(input, &shift)| Place::holding(input, shift)).collect();
        let mut apart = Place::holding(&vec![0x77; expected.len()], shifts[0] + 1);
        let spans: Vec<Span> = places.iter_mut().map(Place::span).collect();
        let out = spans.get(on).copied().unwrap_or_else(|| apart.span());
        fold_all_on(path, dtype, reduction, out, &spans);
        let got = places.get_mut(on).unwrap_or(&mut apart).content();
        assert!(got == expected, "{path:?} {dtype} {reduction} n={} on={on}", inputs.len());
        for (i, (place, input)) in places.iter_mut().zip(inputs).enumerate() {
            assert!(i == on || place.content() == *input, "input {i} changed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_fold_is_the_plain_one(
        dtype in dtypes(),
        reduction in reductions(),
        seed: u64,
        elements in 0_usize..300,
        shifts in prop::array::uniform2(0_usize..64),
        on in 0_usize..3,
    ) {
        let inputs = [bytes_of(seed, dtype, elements), bytes_of(seed ^ 0xdead_beef_0000, dtype, elements)];
        check_tree(dtype, reduction, &inputs, &shifts, on);
        // The public form, on the detected path.
        let [mut left, mut right] = [0, 1].map(|i| Place::holding(&inputs[i], shifts[i]));
        let mut apart = Place::holding(&inputs[0], 0);
        let out = [left.span(), right.span(), apart.span()][on];
        fold(dtype, reduction, out, left.span(), right.span());
        let got = [&mut left, &mut right, &mut apart][on].content();
        prop_assert_eq!(got, plain_tree(dtype, reduction, &inputs));
    }

    #[test]
    fn any_tree_is_the_canonical_one(
        dtype in dtypes(),
        reduction in reductions(),
        seed: u64,
        n in 1_usize..34,
        elements in 0_usize..40,
        shift in 0_usize..64,
        on in 0_usize..34,
    ) {
        let inputs: Vec<_> = (0..n).map(|i| bytes_of(seed.rotate_left(i as u32), dtype, elements)).collect();
        let shifts: Vec<_> = (0..n).map(|i| (shift * (i + 1)) % 64).collect();
        check_tree(dtype, reduction, &inputs, &shifts, on);
    }

    #[test]
    fn any_average_is_the_plain_one(
        dtype in dtypes(),
        seed: u64,
        elements in 0_usize..200,
        shift in 0_usize..64,
        by in prop_oneof![2_u32..40, Just(255), Just(256), Just(u32::MAX), 2..u32::MAX],
    ) {
        let values = bytes_of(seed, dtype, elements);
        let expected: Vec<u8> =
            values.chunks_exact(dtype.size()).flat_map(|v| plain_quotient(dtype, v, by)).collect();
        for path in paths() {
            let mut place = Place::holding(&values, shift);
            finish_on(path, dtype, ReduceOp::Avg, place.span(), by);
            prop_assert!(place.content() == expected, "{path:?} {dtype} / {by}");
        }
    }
}

#[test]
fn every_pair_of_special_values_folds_as_it_should() {
    for &dtype in Dtype::ALL {
        let specials = special(dtype);
        let element = |bits: u64| bits.to_le_bytes()[..dtype.size()].to_vec();
        let left: Vec<u8> = specials.iter().flat_map(|&l| element(l).repeat(specials.len())).collect();
        let right: Vec<u8> =
            specials.iter().flat_map(|&l| element(l)).collect::<Vec<_>>().repeat(specials.len());
        for &reduction in ReduceOp::ALL {
            check_tree(dtype, reduction, &[left.clone(), right.clone()], &[0, 3], 9);
        }
    }
}

/// Long enough for several strips and a rest, so that the offsets of the strips are seen.
#[test]
fn long_inputs_of_every_count_follow_the_tree() {
    for n in 1..=33 {
        for (dtype, reduction) in [(Dtype::BF16, ReduceOp::Sum), (Dtype::F32, ReduceOp::Sum)] {
            let elements = 2 * STRIP_BYTES / dtype.size() + 13;
            let inputs: Vec<_> =
                (0..n).map(|i| bytes_of(77 + i as u64 * 1_000_003, dtype, elements)).collect();
            let shifts: Vec<_> = (0..n).map(|i| i % 7).collect();
            for on in [0, n - 1, n] {
                check_tree(dtype, reduction, &inputs, &shifts, on);
            }
        }
    }
}

/// Guards the test itself: with ten addends another association gives other bits.
#[test]
fn the_order_of_additions_shows_in_the_bits() {
    let inputs: Vec<_> = (0..10_u32)
        .map(|i| (0..64).flat_map(|k| (((i * 37 + k * 11) % 97) as f32).sqrt().to_le_bytes()).collect())
        .collect::<Vec<Vec<u8>>>();
    let two = |l: &[u8], r: &[u8]| by_element(4, l, r, |l, r| plain(Dtype::F32, ReduceOp::Sum, l, r));
    let chain = inputs[1..].iter().fold(inputs[0].clone(), |sum, input| two(&sum, input));
    assert_ne!(chain, plain_tree(Dtype::F32, ReduceOp::Sum, &inputs));
}

/// All f16 values against a few of every magnitude, on both paths: the conversions of the two must agree everywhere.
#[test]
fn every_half_is_widened_and_rounded_alike() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for other in [0x0000_u16, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x3c01, 0x6bff, 0x7bff, 0x8001, 0xfbff, 0x5640]
    {
        let others = other.to_le_bytes().repeat(all.len() / 2);
        for dtype in [Dtype::F16, Dtype::BF16] {
            for &reduction in ReduceOp::ALL {
                check_tree(dtype, reduction, &[all.clone(), others.clone()], &[0, 2], 9);
            }
        }
    }
}

fn folded<const B: usize>(dtype: Dtype, reduction: ReduceOp, left: [u8; B], right: [u8; B]) -> [u8; B] {
    let [mut l, mut r] = [left, right].map(|bytes| Place::holding(&bytes, 1));
    fold(dtype, reduction, l.span(), l.span(), r.span());
    l.content().try_into().unwrap()
}

fn average<const B: usize>(dtype: Dtype, value: [u8; B], contributors: u32) -> [u8; B] {
    let mut place = Place::holding(&value, 1);
    finish(dtype, ReduceOp::Avg, place.span(), contributors);
    place.content().try_into().unwrap()
}

/// Written out by hand, so that an error shared by kernel and oracle is seen.
#[test]
fn known_values() {
    let f = f32::to_le_bytes;
    assert_eq!(folded(Dtype::F32, ReduceOp::Min, f(0.0), f(-0.0)), f(-0.0));
    assert_eq!(folded(Dtype::F32, ReduceOp::Min, f(-0.0), f(0.0)), f(-0.0));
    assert_eq!(folded(Dtype::F32, ReduceOp::Max, f(-0.0), f(0.0)), f(0.0));
    assert_eq!(folded(Dtype::F32, ReduceOp::Max, f(0.0), f(-0.0)), f(0.0));
    assert_eq!(
        folded(Dtype::F32, ReduceOp::Max, f(f32::INFINITY), f(-f32::NAN)),
        0x7fc0_0000_u32.to_le_bytes()
    );
    assert_eq!(folded(Dtype::F32, ReduceOp::Min, f(-3.0), f(-2.5)), f(-3.0));
    assert_eq!(
        folded(Dtype::F32, ReduceOp::Sum, f(f32::INFINITY), f(f32::NEG_INFINITY)),
        0x7fc0_0000_u32.to_le_bytes()
    );
    let denormal = f32::from_bits(1);
    assert_eq!(folded(Dtype::F32, ReduceOp::Sum, f(denormal), f(denormal)), f(f32::from_bits(2)));
    // bf16: 1 + 2^-8 is a tie and goes to the even 1; 1 + 2^-7 + 2^-8 is a tie and goes up.
    let b = |bits: u16| bits.to_le_bytes();
    assert_eq!(folded(Dtype::BF16, ReduceOp::Sum, b(0x3f80), b(0x3b80)), b(0x3f80));
    assert_eq!(folded(Dtype::BF16, ReduceOp::Sum, b(0x3f81), b(0x3b80)), b(0x3f82));
    assert_eq!(folded(Dtype::BF16, ReduceOp::Sum, b(0x7f7f), b(0x7f7f)), b(0x7f80));
    // f16: 2048 + 1 is a tie and goes to the even 2048; 65504 + 16 is a tie and goes to infinity.
    assert_eq!(folded(Dtype::F16, ReduceOp::Sum, b(0x6800), b(0x3c00)), b(0x6800));
    assert_eq!(folded(Dtype::F16, ReduceOp::Sum, b(0x7bff), b(0x4c00)), b(0x7c00));
    assert_eq!(folded(Dtype::I8, ReduceOp::Sum, [127], [1]), [0x80]);
    assert_eq!(folded(Dtype::I8, ReduceOp::Min, [0x80], [1]), [0x80]);
    assert_eq!(folded(Dtype::U8, ReduceOp::Min, [0x80], [1]), [1]);
    assert_eq!(folded(Dtype::U8, ReduceOp::Prod, [16], [17]), [16]);
    assert_eq!(average(Dtype::I8, [(-7_i8) as u8], 2), [(-3_i8) as u8]);
    assert_eq!(average(Dtype::I8, [0x80], 200), [0]);
    assert_eq!(average(Dtype::I32, i32::MIN.to_le_bytes(), u32::MAX), 0_i32.to_le_bytes());
    assert_eq!(average(Dtype::I32, i32::MIN.to_le_bytes(), 1 << 31), (-1_i32).to_le_bytes());
    assert_eq!(average(Dtype::I64, i64::MIN.to_le_bytes(), 2), (i64::MIN / 2).to_le_bytes());
    assert_eq!(average(Dtype::U64, u64::MAX.to_le_bytes(), 3), (u64::MAX / 3).to_le_bytes());
    assert_eq!(average(Dtype::F32, f(1.0), 3), f(1.0 / 3.0));
    assert_eq!(average(Dtype::F32, 0xffc1_2345_u32.to_le_bytes(), 1), 0xffc1_2345_u32.to_le_bytes());
}

#[test]
fn only_an_average_is_finished_by_a_division() {
    for &reduction in ReduceOp::ALL.iter().filter(|&&r| r != ReduceOp::Avg) {
        let mut place = Place::holding(&9_i32.to_le_bytes(), 0);
        finish(Dtype::I32, reduction, place.span(), 3);
        assert_eq!(place.content(), 9_i32.to_le_bytes(), "{reduction}");
    }
}

/// A machine without AVX2 tests one path only; this says so instead of passing silently.
#[test]
#[cfg(target_arch = "x86_64")]
fn both_paths_were_compared_if_the_machine_has_both() {
    let has_both = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
    assert_eq!(paths().len(), if has_both { 2 } else { 1 });
    if !has_both {
        println!("skipped because this machine has no AVX2 with F16C: only the portable path was tested");
    }
}

#[test]
#[should_panic(expected = "different length")]
fn operands_of_different_length_are_refused() {
    let (mut a, mut b) = (Block::zeroed(8), Block::zeroed(12));
    fold(Dtype::F32, ReduceOp::Sum, a.span(), a.span(), b.span());
}

#[test]
#[should_panic(expected = "input 1 and the result differ")]
fn a_longer_input_is_refused() {
    let (mut a, mut b) = (Block::zeroed(8), Block::zeroed(12));
    fold_all(Dtype::F32, ReduceOp::Sum, a.span(), &[a.span(), b.span()]);
}

#[test]
#[should_panic(expected = "6 bytes are no whole number of f32")]
fn half_an_element_is_refused() {
    let mut a = Block::zeroed(6);
    fold(Dtype::F32, ReduceOp::Sum, a.span(), a.span(), a.span());
}

#[test]
#[should_panic(expected = "fold over no input")]
fn a_fold_over_nothing_is_refused() {
    fold_all(Dtype::F32, ReduceOp::Sum, Span::empty(), &[]);
}

#[test]
#[should_panic(expected = "average over no contributor")]
fn an_average_over_nobody_is_refused() {
    finish(Dtype::F32, ReduceOp::Avg, Span::empty(), 0);
}
