//! Reductions against two measures on the same machine: `copy` (the roof: what memory gives) and `by_element` (the
//! floor: one element after the other through a slice, as one would write it at first).
//!
//! Bytes are those of the inputs plus the result. One chunk (256 KiB) per buffer is what a plan folds at a time.

#![allow(missing_docs, reason = "criterion's macro makes public functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use phalanx::core::spec::{Dtype, ReduceOp};
use phalanx::device::{Block, Span, cpu};

const CHUNK_BYTES: usize = 256 << 10;
const LARGE_BYTES: usize = 32 << 20;

/// Buffers of small numbers: no denormals, infinities or NaNs in any dtype.
fn buffers(dtype: Dtype, n: usize, bytes: usize) -> Vec<Block> {
    let number = |i: usize| (i % 64) as f32 * 0.25 + 1.0;
    let element = |i: usize| match dtype {
        Dtype::F16 => f16::from_f32(number(i)).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(number(i)).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(number(i)).to_le_bytes().to_vec(),
        Dtype::F32 => number(i).to_le_bytes().to_vec(),
        Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64 => {
            i.to_le_bytes()[..dtype.size()].to_vec()
        }
    };
    (0..n)
        .map(|k| {
            let content: Vec<u8> = (0..bytes / dtype.size()).flat_map(|i| element(i + k)).collect();
            let mut block = Block::zeroed(bytes);
            block.span().write(&content);
            block
        })
        .collect()
}

fn spans(blocks: &mut [Block]) -> Vec<Span> {
    blocks.iter_mut().map(Block::span).collect()
}

fn roof_and_floor(c: &mut Criterion) {
    for (size, bytes) in [("chunk", CHUNK_BYTES), ("large", LARGE_BYTES)] {
        let mut group = c.benchmark_group(format!("measures/{size}"));
        let mut blocks = buffers(Dtype::F32, 2, bytes);
        let spans = spans(&mut blocks);
        group.throughput(Throughput::Bytes(2 * bytes as u64));
        group.bench_function("copy", |b| b.iter(|| black_box(spans[0]).copy_from(black_box(spans[1]))));
        group.throughput(Throughput::Bytes(3 * bytes as u64));
        let (mut halves, addend) = (vec![bf16::ONE; bytes / 2], vec![bf16::ONE; bytes / 2]);
        group.bench_function("by_element/bf16", |b| {
            b.iter(|| {
                for (l, r) in black_box(&mut halves).iter_mut().zip(black_box(&addend)) {
                    *l = bf16::from_f32(l.to_f32() + r.to_f32());
                }
            });
        });
        let (mut halves, addend) = (vec![f16::ONE; bytes / 2], vec![f16::ONE; bytes / 2]);
        group.bench_function("by_element/f16", |b| {
            b.iter(|| {
                for (l, r) in black_box(&mut halves).iter_mut().zip(black_box(&addend)) {
                    *l = f16::from_f32(l.to_f32() + r.to_f32());
                }
            });
        });
        group.throughput(Throughput::Bytes(bytes as u64));
        group.finish();
    }
}

fn two(c: &mut Criterion) {
    let rows = [
        (Dtype::F32, ReduceOp::Sum),
        (Dtype::F64, ReduceOp::Sum),
        (Dtype::BF16, ReduceOp::Sum),
        (Dtype::F16, ReduceOp::Sum),
        (Dtype::I8, ReduceOp::Sum),
        (Dtype::I32, ReduceOp::Sum),
        (Dtype::I64, ReduceOp::Prod),
        (Dtype::F32, ReduceOp::Min),
        (Dtype::F64, ReduceOp::Max),
        (Dtype::BF16, ReduceOp::Max),
        (Dtype::U8, ReduceOp::Max),
    ];
    let mut group = c.benchmark_group("fold/chunk");
    group.throughput(Throughput::Bytes(3 * CHUNK_BYTES as u64));
    for (dtype, reduction) in rows {
        let mut blocks = buffers(dtype, 3, CHUNK_BYTES);
        let spans = spans(&mut blocks);
        group.bench_function(BenchmarkId::new(dtype.name(), reduction), |b| {
            b.iter(|| cpu::fold(dtype, reduction, black_box(spans[0]), black_box(spans[1]), spans[2]));
        });
    }
    group.finish();
}

fn many(c: &mut Criterion) {
    for (size, bytes) in [("chunk", CHUNK_BYTES), ("large", LARGE_BYTES)] {
        let mut group = c.benchmark_group(format!("fold_all/{size}"));
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            for n in [2, 3, 4, 7, 8, 16] {
                let mut blocks = buffers(dtype, n + 1, bytes);
                let spans = spans(&mut blocks);
                group.throughput(Throughput::Bytes((n + 1) as u64 * bytes as u64));
                group.bench_function(BenchmarkId::new(dtype.name(), n), |b| {
                    b.iter(|| {
                        cpu::fold_all(dtype, ReduceOp::Sum, black_box(spans[0]), black_box(&spans[1..]))
                    });
                });
            }
        }
        group.finish();
    }
}

fn averages(c: &mut Criterion) {
    let mut group = c.benchmark_group("finish/chunk");
    group.throughput(Throughput::Bytes(2 * CHUNK_BYTES as u64));
    for dtype in [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16, Dtype::I8, Dtype::I32, Dtype::I64] {
        // Every round divides ordinary numbers, not what the rounds before left of them.
        let mut blocks = buffers(dtype, 2, CHUNK_BYTES);
        let spans = spans(&mut blocks);
        group.bench_function(dtype.name(), |b| {
            b.iter_batched(
                || spans[0].copy_from(spans[1]),
                |()| cpu::finish(dtype, ReduceOp::Avg, black_box(spans[0]), black_box(3)),
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600))
        .sample_size(20)
        .without_plots();
    targets = roof_and_floor, two, many, averages
}
criterion_main!(benches);
