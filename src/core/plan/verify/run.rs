//! The symbolic run.

use super::terms::{Term, Terms};
use super::{
    At, BTreeMap, Bitmap, Chunk, ChunkId, Fault, Initial, Order, Paths, Place, Plan, Proof, Rank, Spread,
    Step, Target, VecDeque, contributors, fold_canonical, lowest_holder,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Partial,
    Final,
}

/// What a chunk is somewhere: its association, and the longest chain of messages it hangs on.
#[derive(Clone, Copy)]
struct Value {
    term: Term,
    round: u32,
}

#[derive(Clone, Copy)]
struct Message {
    chunk: ChunkId,
    kind: Kind,
    value: Value,
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        describe(f, self.kind, self.chunk)
    }
}

fn describe(f: &mut impl std::fmt::Write, kind: Kind, chunk: ChunkId) -> std::fmt::Result {
    match kind {
        Kind::Partial => write!(f, "a partial of {chunk}"),
        Kind::Final => write!(f, "the Final of {chunk}"),
    }
}

/// What one rank holds.
struct Seat {
    step: usize,
    outputs: Vec<Option<Value>>,
    scratch: BTreeMap<ChunkId, Value>,
    round: u32,
    messages: u64,
    bytes: u64,
    scratch_most: u32,
}

/// How a step ended.
enum Ran {
    /// It is done.
    Done,
    /// It cannot run yet: the next message from this rank is missing.
    NeedsMessage(Rank),
    /// It cannot run yet: the link to this rank is full.
    NeedsSlot(Rank),
}

/// All ranks and links.
pub(super) struct World<'a> {
    plans: &'a [Plan],
    slots: usize,
    initial: &'a Initial,
    chunks: &'a [Chunk],
    world_size: u32,
    lowest: Vec<Option<Rank>>,
    terms: Terms,
    agreed: Vec<Option<Term>>,
    seats: Vec<Seat>,
    links: BTreeMap<(Rank, Rank), VecDeque<Message>>,
    ready: VecDeque<Rank>,
}

impl<'a> World<'a> {
    pub(super) fn new(plans: &'a [Plan], slots: usize, initial: &'a Initial) -> Self {
        let (first, world_size) = (&plans[0], plans.len() as u32);
        let mut terms = Terms::new(world_size);
        let settled = terms.held();
        let lowest: Vec<_> = (0u32..)
            .zip(&first.chunks)
            .map(|(i, c)| {
                let away = initial.away(ChunkId(i));
                let paths = Paths { spread: first.spread, world_size, away: &away };
                lowest_holder(&paths, &initial.held, c.owner, ChunkId(i))
            })
            .collect();
        let outputs = |held: &Bitmap| {
            (0..first.chunks.len() as u32)
                .map(|c| held.has(ChunkId(c)).then_some(Value { term: settled, round: 0 }))
                .collect()
        };
        let seat = |held| Seat {
            step: 0,
            outputs: outputs(held),
            scratch: BTreeMap::new(),
            round: 0,
            messages: 0,
            bytes: 0,
            scratch_most: 0,
        };
        Self {
            plans,
            slots,
            initial,
            chunks: &first.chunks,
            world_size,
            agreed: lowest.iter().map(|l| l.map(|_| settled)).collect(),
            lowest,
            terms,
            seats: initial.held.iter().map(seat).collect(),
            links: BTreeMap::new(),
            ready: (0..world_size).map(Rank).collect(),
        }
    }

    pub(super) fn run(mut self) -> Result<Proof, Fault> {
        while let Some(rank) = self.ready.pop_front() {
            while let Some(&step) = self.plans[rank.index()].steps.get(self.seats[rank.index()].step) {
                match self.step(rank, step)? {
                    Ran::Done => self.seats[rank.index()].step += 1,
                    Ran::NeedsMessage(_) | Ran::NeedsSlot(_) => break,
                }
            }
        }
        self.stuck()?;
        self.leftovers()?;
        self.complete()?;
        Ok(self.proof())
    }

    fn at(&self, rank: Rank, step: Step) -> At {
        At { rank, step: self.seats[rank.index()].step, chunk: step.chunk() }
    }

    fn step(&mut self, rank: Rank, step: Step) -> Result<Ran, Fault> {
        let at = self.at(rank, step);
        self.names(at, step)?;
        match step {
            Step::Send { from, to, .. } => {
                if self.is_full(rank, to) {
                    return Ok(Ran::NeedsSlot(to));
                }
                let value = self.read(at, from)?;
                let kind = if from == Place::Output { Kind::Final } else { Kind::Partial };
                self.push(at, to, kind, value);
            }
            Step::Fold { from, with, order, into, .. } => {
                if let Target::Link(to) = into
                    && self.is_full(rank, to)
                {
                    return Ok(Ran::NeedsSlot(to));
                }
                let Some(arrival) = self.take(at, from, Kind::Partial)? else {
                    return Ok(Ran::NeedsMessage(from));
                };
                let own = self.read(at, with)?;
                let (left, right) = match order {
                    Order::ArrivalFirst => (arrival, own),
                    Order::OwnFirst => (own, arrival),
                };
                let sum = self.join(left, right).ok_or(Fault::CountedTwice { at })?;
                match into {
                    Target::Link(to) => self.push(at, to, Kind::Partial, sum),
                    Target::Scratch => self.keep(at, sum)?,
                    Target::Output => self.make(at, sum)?,
                }
            }
            Step::Take { from, into, .. } => {
                let kind = if into == Place::Output { Kind::Final } else { Kind::Partial };
                let Some(value) = self.take(at, from, kind)? else {
                    return Ok(Ran::NeedsMessage(from));
                };
                if into == Place::Output {
                    self.receive(at, from, value)?;
                } else {
                    self.keep(at, value)?;
                }
            }
            Step::FoldAll { .. } => return self.fold_all(at),
            Step::Settle { from, .. } => {
                let value = self.read(at, from)?;
                self.make(at, value)?;
            }
        }
        Ok(Ran::Done)
    }

    /// The step names ranks and chunks that exist, and places that make sense.
    fn names(&self, at: At, step: Step) -> Result<(), Fault> {
        let fault = |what| Err(Fault::Step { at, what });
        if step.chunk().index() >= self.chunks.len() {
            return fault("there is no such chunk");
        }
        let (peers, places): ([Option<Rank>; 2], bool) = match step {
            Step::Send { to, .. } => ([Some(to), None], true),
            Step::Fold { from, with, into: Target::Link(to), .. } => {
                ([Some(from), Some(to)], with != Place::Output)
            }
            Step::Fold { from, with, into: Target::Scratch | Target::Output, .. } => {
                ([Some(from), None], with != Place::Output)
            }
            Step::Take { from, into, .. } => ([Some(from), None], into != Place::Input),
            Step::FoldAll { .. } => ([None, None], true),
            Step::Settle { from, .. } => ([None, None], from != Place::Output),
        };
        if !places {
            return fault("the step cannot use this place");
        }
        let real = |p: Rank| p.0 < self.world_size && p != at.rank && !self.initial.vacant[p.index()];
        if peers.into_iter().flatten().all(real) {
            Ok(())
        } else {
            fault("the peer is not another live rank")
        }
    }

    fn is_full(&self, from: Rank, to: Rank) -> bool {
        self.links.get(&(from, to)).map_or(0, VecDeque::len) >= self.slots
    }

    /// Reads a place; a partial in scratch is used up by it.
    fn read(&mut self, at: At, place: Place) -> Result<Value, Fault> {
        let seat = &mut self.seats[at.rank.index()];
        let output = seat.outputs[at.chunk.index()];
        let value = match place {
            Place::Input if output.is_some() => return Err(Fault::InputGone { at }),
            Place::Input => {
                let gives =
                    contributors(&self.plans[0].spec, &self.chunks[at.chunk.index()], self.world_size);
                gives.contains(&at.rank.0).then(|| Value { term: self.terms.leaf(at.rank), round: 0 })
            }
            Place::Scratch => seat.scratch.remove(&at.chunk),
            Place::Output => output,
        };
        value.ok_or(Fault::NoValue { at, place })
    }

    fn join(&mut self, left: Value, right: Value) -> Option<Value> {
        let term = self.terms.join(left.term, right.term)?;
        Some(Value { term, round: left.round.max(right.round) })
    }

    fn push(&mut self, at: At, to: Rank, kind: Kind, value: Value) {
        let bytes = self.chunks[at.chunk.index()].len * self.plans[0].spec.dtype.size() as u64;
        let seat = &mut self.seats[at.rank.index()];
        seat.messages += 1;
        seat.bytes += bytes;
        let message = Message { chunk: at.chunk, kind, value };
        self.links.entry((at.rank, to)).or_default().push_back(message);
        self.ready.push_back(to);
    }

    /// Takes the next message from `from`, if there is one; it must be of this chunk and kind.
    fn take(&mut self, at: At, from: Rank, kind: Kind) -> Result<Option<Value>, Fault> {
        let link = self.links.entry((from, at.rank)).or_default();
        let Some(&message) = link.front() else { return Ok(None) };
        if message.chunk != at.chunk || message.kind != kind {
            let wanted = Message { chunk: at.chunk, kind, ..message }.to_string();
            return Err(Fault::WrongMessage { at, from, got: message.to_string(), wanted });
        }
        link.pop_front();
        self.ready.push_back(from);
        let value = Value { round: message.value.round + 1, ..message.value };
        let seat = &mut self.seats[at.rank.index()];
        seat.round = seat.round.max(value.round);
        Ok(Some(value))
    }

    fn keep(&mut self, at: At, value: Value) -> Result<(), Fault> {
        let seat = &mut self.seats[at.rank.index()];
        if seat.scratch.insert(at.chunk, value).is_some() {
            return Err(Fault::Step { at, what: "a partial in scratch is overwritten" });
        }
        seat.scratch_most = seat.scratch_most.max(seat.scratch.len() as u32);
        Ok(())
    }

    fn fold_all(&mut self, at: At) -> Result<Ran, Fault> {
        let senders: Vec<_> = (0..self.world_size).map(Rank).filter(|&r| r != at.rank).collect();
        let waits = |r: &&Rank| self.links.get(&(**r, at.rank)).is_none_or(VecDeque::is_empty);
        if let Some(&from) = senders.iter().find(waits) {
            return Ok(Ran::NeedsMessage(from));
        }
        let mut values = Vec::with_capacity(self.world_size as usize);
        for rank in (0..self.world_size).map(Rank) {
            values.push(if rank == at.rank {
                Some(self.read(at, Place::Input)?)
            } else {
                self.take(at, rank, Kind::Partial)?
            });
        }
        let sum = fold_canonical(values, |left, right| self.join(left?, right?));
        self.make(at, sum.ok_or(Fault::CountedTwice { at })?)?;
        Ok(Ran::Done)
    }

    /// A chunk becomes Final here, where its sum ends.
    fn make(&mut self, at: At, value: Value) -> Result<(), Fault> {
        let owner = self.chunks[at.chunk.index()].owner;
        if owner != at.rank {
            return Err(Fault::Step { at, what: "only the owner makes a chunk Final" });
        }
        self.settle(at, value)
    }

    /// A Final arrives from above.
    fn receive(&mut self, at: At, from: Rank, value: Value) -> Result<(), Fault> {
        let owner = self.chunks[at.chunk.index()].owner;
        let away = self.initial.away(at.chunk);
        let spread = self.plans[0].spread;
        let paths = Paths { spread, world_size: self.world_size, away: &away };
        let wanted = paths.server(owner, at.rank, self.lowest[at.chunk.index()]);
        if wanted != Some(from) || spread == Spread::Single {
            return Err(Fault::OffPath { at, from, wanted });
        }
        self.settle(at, value)
    }

    fn settle(&mut self, at: At, value: Value) -> Result<(), Fault> {
        let index = at.chunk.index();
        if self.seats[at.rank.index()].outputs[index].is_some() {
            return Err(Fault::Rewritten { at });
        }
        let gives = contributors(&self.plans[0].spec, &self.chunks[index], self.world_size);
        let (has, exact) = self.terms.holds_exactly(value.term, gives.clone());
        if !exact && self.terms.held() != value.term {
            return Err(Fault::Incomplete { at, has, wanted: gives.len() as u32 });
        }
        if *self.agreed[index].get_or_insert(value.term) != value.term {
            return Err(Fault::Differs { at });
        }
        self.seats[at.rank.index()].outputs[index] = Some(value);
        Ok(())
    }

    /// After nothing can run any more: has every rank come to its end?
    fn stuck(&mut self) -> Result<(), Fault> {
        for rank in (0..self.world_size).map(Rank) {
            let Some(&step) = self.plans[rank.index()].steps.get(self.seats[rank.index()].step) else {
                continue;
            };
            let at = self.at(rank, step);
            let waits_for = match self.step(rank, step)? {
                Ran::Done => "was never run again".to_owned(),
                Ran::NeedsMessage(from) => format!("takes a message that {from} never sends"),
                Ran::NeedsSlot(to) => format!("sends to {to}, which never takes what fills the link"),
            };
            return Err(Fault::Deadlock { at, waits_for });
        }
        Ok(())
    }

    fn leftovers(&self) -> Result<(), Fault> {
        for (&(from, to), link) in &self.links {
            if let Some(message) = link.front() {
                return Err(Fault::LeftInLink { from, to, chunk: message.chunk });
            }
        }
        for (rank, seat) in (0..self.world_size).map(Rank).zip(&self.seats) {
            if let Some((&chunk, _)) = seat.scratch.first_key_value() {
                return Err(Fault::LeftInScratch { rank, chunk });
            }
        }
        Ok(())
    }

    /// Every live rank ends with the chunks that the spread, and the spec, give it.
    fn complete(&self) -> Result<(), Fault> {
        let spec = &self.plans[0].spec;
        for (rank, seat) in (0..self.world_size).map(Rank).zip(&self.seats) {
            if self.initial.vacant[rank.index()] || self.initial.satisfied[rank.index()] {
                continue;
            }
            let (start, len) = spec.output_range(rank, self.world_size);
            for (i, chunk) in self.chunks.iter().enumerate() {
                let inside = chunk.len > 0 && start <= chunk.start && chunk.start < start + len;
                let wants = inside || self.plans[0].is_due(ChunkId(i as u32), rank);
                if wants && seat.outputs[i].is_none() {
                    return Err(Fault::NotFinal { rank, chunk: ChunkId(i as u32) });
                }
            }
        }
        Ok(())
    }

    fn proof(mut self) -> Proof {
        let settled = self.terms.held();
        let leaves: Vec<_> = (0..self.world_size).map(|r| Some(self.terms.leaf(Rank(r)))).collect();
        let tree = fold_canonical(leaves, |left, right| self.terms.join(left?, right?));
        let canonical = self.chunks.iter().zip(&self.agreed).all(|(chunk, &agreed)| {
            let one = contributors(&self.plans[0].spec, chunk, self.world_size).len() == 1;
            one || agreed == tree || agreed == Some(settled)
        });
        Proof {
            rounds: self.seats.iter().map(|s| s.round).collect(),
            messages: self.seats.iter().map(|s| s.messages).collect(),
            bytes: self.seats.iter().map(|s| s.bytes).collect(),
            scratch_chunks: self.seats.iter().map(|s| s.scratch_most).collect(),
            canonical,
        }
    }
}
