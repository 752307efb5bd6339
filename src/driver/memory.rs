//! The memory of an op on this rank: the caller's buffers, scratch, the undo copy, the retention log.

use phalanx_core::engine::Op;
use phalanx_core::ids::{Attempt, ChunkId};
use phalanx_core::plan::{Place, Step, Target};
use phalanx_core::spec::Collective;

use crate::device::{Block, Span};

/// Everything of one op that bytes are read from or written to.
#[derive(Debug)]
pub struct OpMemory {
    /// The caller's contribution.
    pub input: Span,
    /// The caller's result.
    pub output: Span,
    scratch: Option<Block>,
    /// Slot of each chunk in `scratch`.
    scratch_slots: Vec<u32>,
    /// The contributor set the slots were laid out for: another one has another plan.
    scratch_attempt: Attempt,
    undo: Option<Block>,
    log: Option<Block>,
    log_of: Place,
}

impl OpMemory {
    /// The caller's buffers, nothing else yet.
    #[must_use]
    pub fn new(input: Span, output: Span) -> Self {
        Self {
            input,
            output,
            scratch: None,
            scratch_slots: Vec::new(),
            scratch_attempt: Attempt(0),
            undo: None,
            log: None,
            log_of: Place::Output,
        }
    }

    /// Where the value of `chunk` lies.
    pub fn locate(&mut self, op: &Op, place: Place, chunk: ChunkId, pool: &mut BlockPool) -> Span {
        let c = &op.plan.chunks[chunk.index()];
        let size = op.spec.dtype.size();
        let bytes = c.len as usize * size;
        if bytes == 0 {
            return Span::empty();
        }
        let (base, from) = match place {
            Place::Input => {
                (self.base(Place::Input), op.plan.spec.input_range(op.place, op.plan.world_size).0)
            }
            Place::Output => {
                (self.base(Place::Output), op.plan.spec.output_range(op.place, op.plan.world_size).0)
            }
            Place::Scratch => return self.scratch(op, chunk, pool).part(0, bytes),
        };
        let at = (c.start - from) as usize * size;
        assert!(
            at + bytes <= base.len(),
            "{} ({}) at place {} of {:?}: {chunk} {place:?} {at}+{bytes} is outside {} bytes",
            op.id,
            op.spec,
            op.place,
            op.group,
            base.len()
        );
        base.part(at, bytes)
    }

    fn base(&mut self, place: Place) -> Span {
        match &mut self.log {
            Some(log) if self.log_of == place => log.span(),
            Some(_) | None => match place {
                Place::Input => self.input,
                Place::Output | Place::Scratch => self.output,
            },
        }
    }

    fn scratch(&mut self, op: &Op, chunk: ChunkId, pool: &mut BlockPool) -> Span {
        const NO_SLOT: u32 = u32::MAX;
        let slot_bytes =
            op.plan.chunks.iter().map(|c| c.len).max().unwrap_or(0) as usize * op.spec.dtype.size();
        if self.scratch.is_none() || self.scratch_attempt != op.attempt {
            let mut slots = vec![NO_SLOT; op.plan.chunks.len()];
            let mut used = 0;
            for step in &op.plan.steps {
                let slot = &mut slots[step.chunk().index()];
                if writes_scratch(*step) && *slot == NO_SLOT {
                    *slot = used;
                    used += 1;
                }
            }
            if let Some(old) = self.scratch.take() {
                pool.give(old);
            }
            self.scratch = Some(pool.take(used as usize * slot_bytes));
            self.scratch_slots = slots;
            self.scratch_attempt = op.attempt;
        }
        let slot = self.scratch_slots[chunk.index()];
        assert_ne!(slot, NO_SLOT, "{} {chunk}: a step reads scratch that no step writes", op.id);
        let block = self.scratch.as_mut().map_or_else(Span::empty, Block::span);
        block.part(slot as usize * slot_bytes, slot_bytes)
    }

    /// Saves the input for an undo, once.
    pub fn save(&mut self) {
        if self.undo.is_none() {
            let mut copy = Block::zeroed(self.input.len());
            copy.span().copy_from(self.input);
            self.undo = Some(copy);
        }
    }

    /// Puts the input back; the copy stays, the next attempt may be undone too.
    pub fn restore(&mut self) {
        if let Some(copy) = &mut self.undo {
            self.input.copy_from(copy.span());
        }
        if phalanx_core::planted!(UndoOnce) {
            self.undo = None;
        }
    }

    /// A planted fault: the saved input of a chunk is dropped with the chunk.
    pub fn spoil_undo(&mut self, op: &Op, chunk: ChunkId, pool: &mut BlockPool) {
        let result = self.locate(op, Place::Output, chunk, pool);
        let size = op.spec.dtype.size() as u64;
        let from = op.plan.spec.input_range(op.place, op.plan.world_size).0;
        let at = (op.plan.chunks[chunk.index()].start - from) * size;
        if let Some(copy) = &mut self.undo {
            copy.span().part(at as usize, result.len()).copy_from(result);
        }
    }

    /// Copies what may be asked for again out of the caller's memory. From here on it is served from the copy.
    pub fn log(&mut self, op: &Op) -> usize {
        // A reduced result that only one rank gets is made again from the inputs; others are handed on.
        let of = match op.spec.collective {
            Collective::ReduceScatter | Collective::Reduce => Place::Input,
            Collective::AllReduce
            | Collective::AllGather
            | Collective::Broadcast
            | Collective::Barrier
            | Collective::Commit
            | Collective::State => Place::Output,
        };
        let source = if of == Place::Input { self.input } else { self.output };
        let mut copy = Block::zeroed(source.len());
        copy.span().copy_from(source);
        let bytes = copy.bytes();
        self.log = Some(copy);
        self.log_of = of;
        bytes
    }

    /// Gives scratch and undo back once the op is over.
    pub fn retire(&mut self, pool: &mut BlockPool) {
        if let Some(block) = self.scratch.take() {
            pool.give(block);
            self.scratch_slots.clear();
        }
        self.undo = None;
    }

    /// Bytes of the copies kept for this op.
    #[must_use]
    pub fn logged_bytes(&self) -> usize {
        self.log.as_ref().map_or(0, Block::bytes)
    }
}

fn writes_scratch(step: Step) -> bool {
    matches!(step, Step::Fold { into: Target::Scratch, .. } | Step::Take { into: Place::Scratch, .. })
}

/// Blocks kept for the next op: fresh memory costs a page fault for every 4 KiB.
#[derive(Debug, Default)]
pub struct BlockPool {
    free: Vec<Block>,
}

impl BlockPool {
    const KEPT: usize = 8;

    /// A block of at least `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> Block {
        let fits = |b: &&Block| b.bytes() >= bytes && b.bytes() <= bytes.max(64) * 4;
        let best = self.free.iter().filter(fits).map(Block::bytes).min();
        match best.and_then(|len| self.free.iter().position(|b| b.bytes() == len)) {
            Some(index) => self.free.swap_remove(index),
            None => Block::zeroed(bytes),
        }
    }

    /// Takes a block back.
    pub fn give(&mut self, block: Block) {
        if self.free.len() >= Self::KEPT {
            self.free.remove(0);
        }
        self.free.push(block);
    }
}

/// The regions of a step's state, seen as one range of bytes.
#[derive(Debug, Default, Clone)]
pub struct StateRegions {
    regions: Vec<Span>,
    lent: Lent,
}

/// What may be done with the regions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Lent {
    /// They are the caller's.
    #[default]
    No,
    /// Read.
    ToServe,
    /// Written, until the step begins.
    ToFill,
}

impl StateRegions {
    /// Regions, in the order every rank names them, that newcomers may be served from.
    #[must_use]
    pub fn to_serve(regions: Vec<Span>) -> Self {
        Self { regions, lent: Lent::ToServe }
    }

    /// Regions of a rank that may have to take its state first. When its step begins they are the caller's again, who
    /// names them anew, to serve.
    #[must_use]
    pub fn to_fill(regions: Vec<Span>) -> Self {
        Self { regions, lent: Lent::ToFill }
    }

    /// Whether they may be written now.
    #[must_use]
    pub fn is_to_fill(&self) -> bool {
        self.lent == Lent::ToFill
    }

    /// Whether they may be read now.
    #[must_use]
    pub fn is_to_serve(&self) -> bool {
        self.lent == Lent::ToServe
    }

    /// Bytes of all regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len() as u64).sum()
    }

    /// The pieces of `start..start + bytes`, in order.
    #[must_use]
    pub fn pieces(&self, start: u64, bytes: usize) -> Vec<Span> {
        let mut pieces = Vec::new();
        let (mut skip, mut left) = (start, bytes);
        for region in &self.regions {
            let len = region.len() as u64;
            if skip >= len {
                skip -= len;
                continue;
            }
            let here = left.min((len - skip) as usize);
            if here == 0 {
                break;
            }
            pieces.push(region.part(skip as usize, here));
            skip = 0;
            left -= here;
        }
        assert_eq!(left, 0, "state range {start}+{bytes} is outside {} bytes of regions", self.bytes());
        pieces
    }
}
