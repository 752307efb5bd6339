//! One algorithm a file: a pure function from a spec to a rank's plan.
//!
//! Every algorithm cuts the op's elements into *segments*, one per owner, and each segment into the same number of
//! chunks, so that all ranks derive the same chunk table from the spec alone. Chunk `c` of segment `s` has the id
//! `s * per_segment + c`. Cuts fall on multiples of 64 bytes where a segment is long enough.
//!
//! | collective | able algorithms |
//! |---|---|
//! | all_reduce | ring, halving_doubling, binomial, kary, direct |
//! | all_gather, reduce_scatter | ring, direct |
//! | broadcast, reduce | binomial, kary |
//! | barrier, commit | binomial, direct |

use crate::ids::{ChunkId, Rank};
use crate::plan::{CHUNKS_MAX, Chunk, Place, Plan, PlanError, Spread, Step};
use crate::spec::{Algorithm, Collective, Spec};

pub mod binomial;
pub mod direct;
pub mod halving_doubling;
pub mod kary;
pub mod ring;
pub mod select;
pub mod tree;

/// Cuts fall on multiples of so many bytes: a cache line, the unit of the reductions.
const CUT_BYTES: usize = 64;
/// Children of a rank in the balanced tree.
const KARY_ARITY: u32 = 2;

/// The algorithms that can run `collective`, in wire order.
#[must_use]
pub fn able(collective: Collective) -> &'static [Algorithm] {
    match collective {
        Collective::AllReduce => Algorithm::ALL,
        Collective::AllGather | Collective::ReduceScatter => &[Algorithm::Ring, Algorithm::Direct],
        Collective::Broadcast | Collective::Reduce => &[Algorithm::Binomial, Algorithm::Kary],
        Collective::Barrier | Collective::Commit => &[Algorithm::Binomial, Algorithm::Direct],
        Collective::State => &[],
    }
}

/// Builds the plan of `rank` in O(its steps + chunks).
///
/// # Errors
/// When the algorithm cannot run the collective, the root is not a rank, or it is more than one op can move.
///
/// # Panics
/// When `rank` is not below `world_size`, or `chunk_bytes_max` is less than an element.
pub fn build(spec: &Spec, world_size: u32, rank: Rank, chunk_bytes_max: usize) -> Result<Plan, PlanError> {
    assert!(rank.0 < world_size, "{rank} outside a communicator of {world_size} ranks");
    assert!(
        chunk_bytes_max >= spec.dtype.size(),
        "a chunk of {chunk_bytes_max} bytes holds no {}",
        spec.dtype
    );
    if !able(spec.collective).contains(&spec.algorithm) {
        let names: Vec<_> = able(spec.collective).iter().map(|a| a.name()).collect();
        let able =
            if names.is_empty() { "none, it has no plan of its own".to_owned() } else { names.join(", ") };
        return Err(PlanError::NotAble { algorithm: spec.algorithm, collective: spec.collective, able });
    }
    let rooted = matches!(spec.collective, Collective::Broadcast | Collective::Reduce);
    if rooted && spec.root.0 >= world_size {
        return Err(PlanError::NoSuchRoot { root: spec.root, world_size });
    }
    let parts = if spec.shape_depends_on_ranks() { world_size } else { 1 };
    let bytes = spec.count.checked_mul(u64::from(parts) * spec.dtype.size() as u64);
    if bytes.is_none_or(|bytes| bytes / chunk_bytes_max as u64 > CHUNKS_MAX) {
        return Err(PlanError::TooLarge { count: spec.count, dtype: spec.dtype });
    }
    let run = match spec.algorithm {
        Algorithm::Ring => ring::ring,
        Algorithm::HalvingDoubling => halving_doubling::halving_doubling,
        Algorithm::Binomial => binomial::binomial,
        Algorithm::Kary => kary::kary,
        Algorithm::Direct => direct::direct,
    };
    Ok(run(spec, world_size, rank, chunk_bytes_max))
}

/// The chunk table of an op: segments in ascending order, each of `per_segment` chunks.
struct Table {
    chunks: Vec<Chunk>,
    per_segment: u32,
}

impl Table {
    /// Chunk `chunk` of segment `segment`.
    fn id(&self, segment: u32, chunk: u32) -> ChunkId {
        ChunkId(segment * self.per_segment + chunk)
    }

    /// The plan over these chunks. A rank alone has no messages: each chunk of its input is Final as it is.
    fn plan(self, spec: &Spec, world_size: u32, rank: Rank, spread: Spread, mut steps: Vec<Step>) -> Plan {
        if world_size == 1 {
            let settle = |chunk| Step::Settle { chunk: ChunkId(chunk), from: Place::Input };
            steps = (0..self.chunks.len() as u32).map(settle).collect();
        }
        Plan { spec: *spec, world_size, rank, chunks: self.chunks, spread, steps }
    }
}

/// A run of elements with one owner.
#[derive(Clone, Copy)]
struct Segment {
    start: u64,
    len: u64,
    owner: Rank,
}

/// Elements between two allowed cuts.
fn cut_elements(spec: &Spec, chunk_bytes_max: usize) -> u64 {
    (CUT_BYTES.min(chunk_bytes_max) / spec.dtype.size()).max(1) as u64
}

/// `parts` runs that cover `start..start + len`, cut at multiples of `unit` from `start`, as equal as that allows.
fn spans(start: u64, len: u64, parts: u32, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let (units, parts) = (len.div_ceil(unit), u64::from(parts));
    let (least, longer) = (units / parts, units % parts);
    let edge = move |part: u64| ((least * part + part.min(longer)) * unit).min(len);
    (0..parts).map(move |part| (start + edge(part), edge(part + 1) - edge(part)))
}

/// The chunk table of segments over the whole op, one per owner, as equal as the cuts allow.
fn even_table(spec: &Spec, world_size: u32, owners: &[Rank], chunk_bytes_max: usize) -> Table {
    let unit = cut_elements(spec, chunk_bytes_max);
    let runs = spans(0, spec.elements(world_size), owners.len() as u32, unit);
    let segments: Vec<_> =
        runs.zip(owners).map(|((start, len), &owner)| Segment { start, len, owner }).collect();
    table(spec, &segments, chunk_bytes_max)
}

/// The chunk table of an op in which every rank has a part of `count` elements of its own.
fn part_table(spec: &Spec, world_size: u32, chunk_bytes_max: usize) -> Table {
    let part = |r| Segment { start: spec.count * u64::from(r), len: spec.count, owner: Rank(r) };
    table(spec, &(0..world_size).map(part).collect::<Vec<_>>(), chunk_bytes_max)
}

fn table(spec: &Spec, segments: &[Segment], chunk_bytes_max: usize) -> Table {
    let unit = cut_elements(spec, chunk_bytes_max);
    let units_max = (chunk_bytes_max as u64 / (unit * spec.dtype.size() as u64)).max(1);
    let longest = segments.iter().map(|s| s.len.div_ceil(unit)).max().unwrap_or(0);
    let per_segment = longest.div_ceil(units_max).max(1);
    let per_segment = u32::try_from(per_segment).expect("`build` refuses more than CHUNKS_MAX chunks");
    let mut chunks = Vec::with_capacity(segments.len() * per_segment as usize);
    for segment in segments {
        let runs = spans(segment.start, segment.len, per_segment, unit);
        chunks.extend(runs.map(|(start, len)| Chunk { start, len, owner: segment.owner }));
    }
    Table { chunks, per_segment }
}

#[cfg(test)]
mod tests;
