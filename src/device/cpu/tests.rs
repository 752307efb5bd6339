use super::*;
use half::{bf16, f16};
use proptest::prelude::*;

const OPS: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Avg];

/// The plain meaning of one addition, on the bytes of one element.
fn naive(dtype: Dtype, op: ReduceOp, a: &[u8], b: &[u8]) -> Vec<u8> {
    fn float(
        op: ReduceOp,
        a: f64,
        b: f64,
        add: impl Fn(f64, f64) -> f64,
        mul: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        match op {
            ReduceOp::Sum | ReduceOp::Avg => add(a, b),
            ReduceOp::Prod => mul(a, b),
            _ if a.is_nan() || b.is_nan() => f64::NAN,
            ReduceOp::Min if a == b => {
                if a.is_sign_negative() {
                    a
                } else {
                    b
                }
            }
            ReduceOp::Max if a == b => {
                if a.is_sign_negative() {
                    b
                } else {
                    a
                }
            }
            ReduceOp::Min => {
                if a < b {
                    a
                } else {
                    b
                }
            }
            ReduceOp::Max => {
                if a > b {
                    a
                } else {
                    b
                }
            }
        }
    }
    let single = |a: f32, b: f32| {
        let add = |x: f64, y: f64| f64::from(x as f32 + y as f32);
        let mul = |x: f64, y: f64| f64::from(x as f32 * y as f32);
        float(op, a.into(), b.into(), add, mul) as f32
    };
    macro_rules! int {
        ($t:ty) => {{
            let (x, y) =
                (<$t>::from_le_bytes(a.try_into().unwrap()), <$t>::from_le_bytes(b.try_into().unwrap()));
            match op {
                ReduceOp::Sum | ReduceOp::Avg => x.wrapping_add(y),
                ReduceOp::Prod => x.wrapping_mul(y),
                ReduceOp::Min => x.min(y),
                ReduceOp::Max => x.max(y),
            }
            .to_le_bytes()
            .to_vec()
        }};
    }
    let h = |v: &[u8]| u16::from_le_bytes(v.try_into().unwrap());
    match dtype {
        Dtype::F32 => {
            single(f32::from_le_bytes(a.try_into().unwrap()), f32::from_le_bytes(b.try_into().unwrap()))
                .to_le_bytes()
                .to_vec()
        }
        Dtype::F64 => {
            let (x, y) =
                (f64::from_le_bytes(a.try_into().unwrap()), f64::from_le_bytes(b.try_into().unwrap()));
            float(op, x, y, |x, y| x + y, |x, y| x * y).to_le_bytes().to_vec()
        }
        Dtype::F16 => f16::from_f32(single(f16::from_bits(h(a)).to_f32(), f16::from_bits(h(b)).to_f32()))
            .to_le_bytes()
            .to_vec(),
        Dtype::BF16 => bf16::from_f32(single(bf16::from_bits(h(a)).to_f32(), bf16::from_bits(h(b)).to_f32()))
            .to_le_bytes()
            .to_vec(),
        Dtype::I8 => int!(i8),
        Dtype::U8 => int!(u8),
        Dtype::I32 => int!(i32),
        Dtype::U32 => int!(u32),
        Dtype::I64 => int!(i64),
        Dtype::U64 => int!(u64),
    }
}

fn is_nan(dtype: Dtype, v: &[u8]) -> bool {
    match dtype {
        Dtype::F32 => f32::from_le_bytes(v.try_into().unwrap()).is_nan(),
        Dtype::F64 => f64::from_le_bytes(v.try_into().unwrap()).is_nan(),
        Dtype::F16 => f16::from_le_bytes(v.try_into().unwrap()).is_nan(),
        Dtype::BF16 => bf16::from_le_bytes(v.try_into().unwrap()).is_nan(),
        Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64 => false,
    }
}

/// Bytes rich in special values: NaN, infinities, zeros of both signs, denormals, extremes.
fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => any::<u8>(), 1 => Just(0u8), 1 => Just(0x80), 1 => Just(0x7f), 1 => Just(0xff), 1 => Just(0x7c), 1 => Just(0xfc)];
    proptest::collection::vec(byte, len)
}

fn load(data: &[u8], offset: usize) -> (Block, Span) {
    let mut block = Block::zeroed(data.len() + offset);
    let span = block.span().part(offset, data.len());
    span.write(data);
    (block, span)
}

fn unload(span: Span) -> Vec<u8> {
    let mut out = vec![0; span.len()];
    span.read(&mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_type_and_reduction_is_what_it_says(a in bytes(8 * 75), b in bytes(8 * 75), n in 0usize..75, at in 0usize..9, alias in 0u8..3) {
        for &dtype in Dtype::ALL {
            for op in OPS {
                let size = dtype.size();
                let (left_data, right_data) = (&a[..n * size], &b[..n * size]);
                for portable in [false, true] {
                    let (_l, left) = load(left_data, at);
                    let (_r, right) = load(right_data, at / 2);
                    let (_o, fresh) = load(&vec![0; n * size], at / 3);
                    let out = [fresh, left, right][usize::from(alias)];
                    if portable { Kernel::portable(dtype, op).run(out, left, right) } else { fold(dtype, op, out, left, right) }
                    let got = unload(out);
                    for i in 0..n {
                        let range = i * size..(i + 1) * size;
                        let want = naive(dtype, op, &left_data[range.clone()], &right_data[range.clone()]);
                        let same = want == got[range.clone()] || is_nan(dtype, &want) && is_nan(dtype, &got[range]);
                        prop_assert!(same, "{dtype} {op} element {i} portable {portable}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_pass_has_the_bits_of_the_canonical_tree(data in bytes(33 * 3000), n in 1usize..34, len in 0usize..700, alias in 0usize..34) {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::I32] {
            let bytes = len * dtype.size();
            let loaded: Vec<(Block, Span)> = (0..n).map(|i| load(&data[i * 2900..i * 2900 + bytes], i % 3)).collect();
            let want = canonical(dtype, &(0..n).map(|i| data[i * 2900..i * 2900 + bytes].to_vec()).collect::<Vec<_>>());
            let inputs: Vec<Span> = loaded.iter().map(|l| l.1).collect();
            let (_o, fresh) = load(&vec![0; bytes], 0);
            let out = inputs.get(alias).copied().unwrap_or(fresh);
            fold_all(dtype, ReduceOp::Sum, out, &inputs);
            let got = unload(out);
            for (w, g) in want.chunks(dtype.size()).zip(got.chunks(dtype.size())) {
                prop_assert!(w == g || is_nan(dtype, w) && is_nan(dtype, g), "{dtype} n={n}");
            }
        }
    }
}

/// The recursive definition: fold the first pairs, then neighbours.
fn canonical(dtype: Dtype, inputs: &[Vec<u8>]) -> Vec<u8> {
    let add = |a: &Vec<u8>, b: &Vec<u8>| -> Vec<u8> {
        a.chunks(dtype.size())
            .zip(b.chunks(dtype.size()))
            .flat_map(|(x, y)| naive(dtype, ReduceOp::Sum, x, y))
            .collect()
    };
    let power = 1 << inputs.len().ilog2();
    let extra = inputs.len() - power;
    let mut level: Vec<Vec<u8>> = (0..power)
        .map(|i| if i < extra { add(&inputs[2 * i], &inputs[2 * i + 1]) } else { inputs[i + extra].clone() })
        .collect();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| add(&pair[0], &pair[1])).collect();
    }
    level.remove(0)
}

#[test]
fn averages_divide_once_and_towards_zero() {
    let (_b, ints) = load(&[(-7i32).to_le_bytes(), i32::MIN.to_le_bytes(), 7i32.to_le_bytes()].concat(), 1);
    finish(Dtype::I32, ReduceOp::Avg, ints, 2);
    assert_eq!(
        unload(ints),
        [(-3i32).to_le_bytes(), (i32::MIN / 2).to_le_bytes(), 3i32.to_le_bytes()].concat()
    );
    let (_b, floats) = load(&3f32.to_le_bytes(), 0);
    finish(Dtype::F32, ReduceOp::Sum, floats, 2);
    assert_eq!(unload(floats), 3f32.to_le_bytes());
    finish(Dtype::F32, ReduceOp::Avg, floats, 2);
    assert_eq!(unload(floats), 1.5f32.to_le_bytes());
}
