//! Runs the steps an engine asks for, over a transport. No thread and no clock: the driver and the simulator run the
//! very same executor.

use std::collections::VecDeque;

use phalanx_core::engine::{Action, Engine, Op, STATE_COMM, Turn};
use phalanx_core::error::OpError;
use phalanx_core::ids::{ChunkId, CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use phalanx_core::plan::{Order, Place, Step, Target};
use phalanx_core::spec::ReduceOp;
use phalanx_core::window::ByOp;
use phalanx_core::wire::{Header, Kind};

use super::aside::{Aside, Tell};
use super::memory::{BlockPool, OpMemory, StateRegions};
use crate::device::{Span, cpu};
use crate::transport::{Arrival, LinkEvent, Peer, Transport};

/// Something the caller's side wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The op is over.
    OpOver {
        /// The op.
        op: OpId,
        /// World ranks that contributed, or the error.
        outcome: Result<Vec<Rank>, OpError>,
        /// The buffers are still read until the op is freed (retained by reference).
        retained: bool,
    },
    /// Nothing of the op's memory is read any more.
    Freed {
        /// The op.
        op: OpId,
    },
    /// `begin_step` returns.
    StepBegun {
        /// Steps committed before.
        committed: u64,
    },
    /// The run is over; this spare was not needed.
    RunOver,
    /// The member is out.
    Halted {
        /// Why.
        error: OpError,
    },
}

/// Engine, transport and memory of one member.
#[derive(Debug)]
pub struct Executor<T> {
    /// The engine.
    pub engine: Engine,
    /// Its transport.
    pub transport: T,
    memory: ByOp<OpMemory>,
    state: StateRegions,
    pool: BlockPool,
    aside: Aside,
    notices: VecDeque<Notice>,
    events: Vec<LinkEvent>,
    /// The steps that could not be done in this turn, one a communicator.
    waiting: Vec<Turn>,
    /// Whose links are looked at for them.
    peers: Vec<MemberId>,
    /// Links on which nothing of this epoch was seen yet: messages of an earlier one may lie in their slots.
    stale: Vec<MemberId>,
}

enum Found {
    /// The awaited message, at the head of its link.
    Link(Arrival),
    /// The awaited message, set aside earlier.
    Aside(Header, Span),
    Nothing,
}

impl Found {
    fn message(&self) -> Option<(Header, Span)> {
        match self {
            Self::Link(a) => Some((a.header, a.payload)),
            Self::Aside(header, span) => Some((*header, *span)),
            Self::Nothing => None,
        }
    }
}

impl<T: Transport> Executor<T> {
    /// Joins an engine and a transport.
    pub fn new(engine: Engine, transport: T) -> Self {
        Self {
            engine,
            transport,
            memory: ByOp::default(),
            state: StateRegions::default(),
            pool: BlockPool::default(),
            aside: Aside::default(),
            notices: VecDeque::new(),
            events: Vec::new(),
            waiting: Vec::new(),
            peers: Vec::new(),
            stale: Vec::new(),
        }
    }

    /// Asks a sender to pause a communicator when so many of its messages came before their call here.
    pub fn set_pause_at(&mut self, messages: usize) {
        self.aside.set_pause_at(messages);
    }

    /// Names the state regions of the steps to come.
    pub fn set_state(&mut self, regions: StateRegions) {
        self.state = regions;
    }

    /// Memory of the op that is about to be posted as `op`; call it right after the engine admitted the op and before
    /// the next [`Executor::turn`].
    pub fn attach(&mut self, op: OpId, input: Span, output: Span) {
        self.memory.insert(op, OpMemory::new(input, output));
    }

    /// The next notice for the caller's side.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Bytes in the retention log.
    #[must_use]
    pub fn logged_bytes(&self) -> usize {
        self.memory.values().map(OpMemory::logged_bytes).sum()
    }

    /// Does everything that can be done now; true if anything moved.
    pub fn turn(&mut self) -> bool {
        let mut moved = self.drain_actions();
        self.transport.progress(&mut self.events);
        for event in std::mem::take(&mut self.events) {
            match event {
                LinkEvent::Fault { member, cause } => self.engine.handle_link_fault(member, cause),
            }
        }
        moved |= self.confirm();
        let mut comm = CommId(0);
        self.waiting.clear();
        // Communicators in order of their id, looked up afresh each time: a step may add or end some.
        loop {
            while let Some(turn) = self.engine.next_step(comm) {
                if !self.try_step(turn) {
                    self.waiting.push(turn);
                    break;
                }
                moved = true;
                self.drain_actions();
            }
            match self.engine.comm_ids().find(|c| *c > comm) {
                Some(next) => comm = next,
                None => break,
            }
        }
        if !moved {
            moved = self.make_room();
        }
        moved | self.drain_actions()
    }

    /// A plan is proven free of deadlock with the slots of its links to itself, but others use them too. Messages of an
    /// earlier epoch lie in them until their receiver looks at the link. A confirmation of an earlier op may lie before
    /// what a rank waits to send. Where several communicators share links, arrivals of one may fill a link over which
    /// another rank has to send something of the other, and that rank may be the one that this one waits for, over any
    /// number of others. So when nothing moves, the links of the ops that wait are rid of confirmations, and of
    /// everything where links are shared; and so are those on which a confirmation is awaited.
    fn make_room(&mut self) -> bool {
        let is_shared = self.engine.comm_ids().nth(1).is_some();
        // To look at a link drops what is of an earlier epoch.
        self.stale.retain(|member| self.transport.peek(*member).is_none());
        // Whoever waits to send to one that paused it may have its word behind what it has not come to yet.
        let sets_aside = is_shared || self.engine.is_paused();
        if !sets_aside && !self.engine.awaits_notes() {
            return false;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut moved = false;
        if is_shared {
            let awaited: Vec<MemberId> = self.engine.awaited_confirms().collect();
            for member in awaited {
                moved |= self.clear_way(member, true);
            }
        }
        for op in waiting.iter().filter_map(|turn| self.engine.op(turn.op)) {
            let others = op.group.iter().filter(|rank| Some(**rank) != self.engine.rank());
            self.peers.extend(others.filter_map(|rank| self.engine.view().occupant(*rank)));
        }
        while let Some(member) = self.peers.pop() {
            moved |= self.clear_way(member, sets_aside);
        }
        self.waiting = waiting;
        moved
    }

    /// Takes confirmations at the head of a link, and sets other messages aside, or stops at them.
    fn clear_way(&mut self, member: MemberId, sets_aside: bool) -> bool {
        let mut moved = false;
        while let Some(arrival) = self.transport.peek(member) {
            if arrival.header.kind.is_note() {
                self.transport.consume(member);
                self.engine.handle_note(member, &arrival.header);
            } else if sets_aside && !self.aside.is_full(member) {
                self.set_aside(member, arrival);
            } else {
                break;
            }
            moved = true;
        }
        moved
    }

    /// Does what the engine asks for and needs no message; true if there was anything.
    pub fn drain_actions(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.engine.poll_action() {
            moved = true;
            self.act(action);
        }
        moved
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Revoke { dead } => {
                self.transport.revoke(&dead);
                self.aside.clear();
                self.engine.handle_revoked();
            }
            Action::Open { epoch, peers } => {
                let peers: Vec<Peer> = peers
                    .into_iter()
                    .map(|p| Peer { member: p.member, host: p.host, tcp: p.tcp, shm: p.shm })
                    .collect();
                self.transport.open(epoch, &peers);
                if epoch > Epoch(1) {
                    self.stale = peers.iter().map(|p| p.member).collect();
                }
            }
            Action::Save { op } => self.with_memory(op, |m, _, _| m.save()),
            Action::Restore { op } => self.with_memory(op, |m, _, _| m.restore()),
            Action::Log { op } => self.with_memory(op, |m, op, _| {
                m.log(op);
            }),
            Action::Complete { op, outcome } => {
                let retained = outcome.is_ok()
                    && self.engine.op(op).is_some_and(|o| o.retained && !o.logged)
                    && !phalanx_core::planted!(OverwriteRetained);
                self.with_memory(op, |m, _, pool| m.retire(pool));
                self.notices.push_back(Notice::OpOver { op, outcome, retained });
            }
            Action::Free { op } => {
                if let Some(mut memory) = self.memory.remove(op) {
                    memory.retire(&mut self.pool);
                    self.notices.push_back(Notice::Freed { op });
                }
            }
            Action::StepBegun { committed } => {
                if self.state.is_to_fill() {
                    self.state = StateRegions::default();
                }
                self.notices.push_back(Notice::StepBegun { committed });
            }
            Action::RunOver => self.notices.push_back(Notice::RunOver),
            Action::Halt { error } => {
                self.memory.clear();
                self.notices.push_back(Notice::Halted { error });
            }
        }
    }

    fn with_memory(&mut self, id: OpId, act: impl FnOnce(&mut OpMemory, &Op, &mut BlockPool)) {
        if let (Some(op), Some(memory)) = (self.engine.op(id), self.memory.get_mut(id)) {
            act(memory, op, &mut self.pool);
        }
    }

    /// Confirmations in and out.
    fn confirm(&mut self) -> bool {
        let mut moved = false;
        let awaited: Vec<MemberId> = self.engine.awaited_confirms().collect();
        for member in awaited {
            moved |= self.clear_way(member, false);
        }
        moved | self.engine.post_notes(|to, header| self.transport.post(to, header, Span::empty()))
    }

    fn try_step(&mut self, Turn { op: id, step }: Turn) -> bool {
        let done = if id.comm == STATE_COMM { self.state_step(id, step) } else { self.op_step(id, step) };
        match done {
            Some(stable) => {
                if phalanx_core::planted!(UndoByChunk)
                    && let Some(chunk) = Op::finalises(step)
                {
                    self.with_memory(id, |m, op, pool| m.spoil_undo(op, chunk, pool));
                }
                self.engine.handle_step_done(id, stable);
                true
            }
            None => false,
        }
    }

    /// One step of an op; `Some` when it is done, with the watermark of what it took.
    fn op_step(&mut self, id: OpId, step: Step) -> Option<Option<OpSeq>> {
        match step {
            Step::Send { chunk, from, to } => {
                let kind = if from == Place::Output { Kind::Final } else { Kind::Partial };
                let payload = self.locate(id, from, chunk);
                let op = self.engine.op(id)?;
                let header = self.engine.header(op, kind, chunk, payload.len());
                let member = self.engine.receiver_at(op, to)?;
                self.transport.post(member, &header, payload).then_some(None)
            }
            Step::Fold { chunk, from, with, order, into } => self.fold(id, chunk, from, with, order, into),
            Step::Take { chunk, from, into } => {
                let kind = if into == Place::Output { Kind::Final } else { Kind::Partial };
                let target = self.locate(id, into, chunk);
                let found = self.find(id, from, chunk, kind, target.len());
                let (header, payload) = found.message()?;
                target.copy_from(payload);
                self.release(id, from, &found);
                Some(Some(header.stable))
            }
            Step::FoldAll { chunk } => self.fold_all(id, chunk),
            Step::Settle { chunk, from } => {
                let source = self.locate(id, from, chunk);
                let target = self.locate(id, Place::Output, chunk);
                target.copy_from(source);
                self.divide(id, target);
                Some(None)
            }
        }
    }

    fn fold(
        &mut self,
        id: OpId,
        chunk: ChunkId,
        from: Rank,
        with: Place,
        order: Order,
        into: Target,
    ) -> Option<Option<OpSeq>> {
        let own = self.locate(id, with, chunk);
        let found = self.find(id, from, chunk, Kind::Partial, own.len());
        let (header, arrival) = found.message()?;
        let op = self.engine.op(id)?;
        let (dtype, reduction) = (op.spec.dtype, op.spec.reduction);
        let (left, right) = match order {
            Order::ArrivalFirst => (arrival, own),
            Order::OwnFirst => (own, arrival),
        };
        match into {
            Target::Link(to) => {
                let member = self.engine.receiver_at(op, to)?;
                let mut out = self.engine.header(op, Kind::Partial, chunk, own.len());
                out.stable = out.stable.min(header.stable);
                let slot = self.transport.reserve(member, own.len())?;
                cpu::fold(dtype, reduction, slot, left, right);
                self.transport.commit(member, &out);
            }
            Target::Scratch => {
                let target = self.locate(id, Place::Scratch, chunk);
                cpu::fold(dtype, reduction, target, left, right);
            }
            Target::Output => {
                let target = self.locate(id, Place::Output, chunk);
                cpu::fold(dtype, reduction, target, left, right);
                self.divide(id, target);
            }
        }
        self.release(id, from, &found);
        Some(Some(header.stable))
    }

    fn fold_all(&mut self, id: OpId, chunk: ChunkId) -> Option<Option<OpSeq>> {
        let own = self.locate(id, Place::Input, chunk);
        let (place, world_size) = self.engine.op(id).map(|o| (o.place, o.plan.world_size))?;
        let mut found = Vec::with_capacity(world_size as usize);
        let mut inputs = Vec::with_capacity(world_size as usize);
        let mut stable: Option<OpSeq> = None;
        for rank in (0..world_size).map(Rank) {
            if rank == place {
                inputs.push(own);
                continue;
            }
            let one = self.find(id, rank, chunk, Kind::Partial, own.len());
            let (header, payload) = one.message()?;
            stable = Some(stable.map_or(header.stable, |s| s.min(header.stable)));
            inputs.push(payload);
            found.push((rank, one));
        }
        let op = self.engine.op(id)?;
        let (dtype, reduction) = (op.spec.dtype, op.spec.reduction);
        let target = self.locate(id, Place::Output, chunk);
        cpu::fold_all(dtype, reduction, target, &inputs);
        self.divide(id, target);
        for (rank, one) in &found {
            self.release(id, *rank, one);
        }
        Some(stable)
    }

    /// Divides a finished sum where the reduction is an average.
    fn divide(&self, id: OpId, values: Span) {
        if let Some(op) = self.engine.op(id).filter(|o| o.spec.reduces() && o.spec.reduction == ReduceOp::Avg)
        {
            cpu::finish(op.spec.dtype, op.spec.reduction, values, op.plan.world_size);
        }
    }

    fn locate(&mut self, id: OpId, place: Place, chunk: ChunkId) -> Span {
        match (self.engine.op(id), self.memory.get_mut(id)) {
            (Some(op), Some(memory)) => memory.locate(op, place, chunk, &mut self.pool),
            // An op without elements has no memory.
            (_, None) | (None, _) => Span::empty(),
        }
    }

    /// The message a step waits for, if it is there. Confirmations that come first are handed on; messages of other
    /// communicators are set aside.
    fn find(&mut self, id: OpId, from: Rank, chunk: ChunkId, kind: Kind, bytes: usize) -> Found {
        let Some(op) = self.engine.op(id) else { return Found::Nothing };
        let Some(member) = self.engine.member_at(op, from) else { return Found::Nothing };
        let (attempt, signature) = (op.attempt, op.signature);
        let fits = |h: &Header| {
            h.op == id
                && h.attempt == attempt
                && h.chunk == chunk
                && h.kind == kind
                && h.signature == signature
                && h.payload_bytes as usize == bytes
        };
        if let Some((header, span)) = self.aside.front(member, id.comm) {
            if fits(&header) {
                return Found::Aside(header, span.part(0, bytes));
            }
            self.engine.handle_mismatch(id, member);
            return Found::Nothing;
        }
        while let Some(arrival) = self.transport.peek(member) {
            if fits(&arrival.header) {
                return Found::Link(arrival);
            }
            if arrival.header.kind.is_note() {
                self.transport.consume(member);
                self.engine.handle_note(member, &arrival.header);
            } else if arrival.header.op.comm != id.comm {
                if self.aside.is_full(member) {
                    return Found::Nothing;
                }
                self.set_aside(member, arrival);
            } else {
                self.engine.handle_mismatch(id, member);
                return Found::Nothing;
            }
        }
        Found::Nothing
    }

    fn set_aside(&mut self, member: MemberId, arrival: Arrival) {
        let tell = self.aside.push(member, &arrival);
        self.transport.consume(member);
        self.tell(member, arrival.header.op.comm, tell);
    }

    fn tell(&mut self, member: MemberId, comm: CommId, tell: Tell) {
        match tell {
            Tell::Nothing => {}
            Tell::Pause => self.engine.ask_to_pause(member, comm, true),
            Tell::Proceed => self.engine.ask_to_pause(member, comm, false),
        }
    }

    fn release(&mut self, id: OpId, from: Rank, found: &Found) {
        let Some(member) = self.engine.op(id).and_then(|op| self.engine.member_at(op, from)) else { return };
        match found {
            Found::Link(_) => self.transport.consume(member),
            Found::Aside(..) => {
                let tell = self.aside.pop(member, id.comm);
                self.tell(member, id.comm, tell);
            }
            Found::Nothing => {}
        }
    }

    fn state_step(&mut self, id: OpId, step: Step) -> Option<Option<OpSeq>> {
        let op = self.engine.op(id)?;
        let chunk = op.plan.chunks[step.chunk().index()];
        match step {
            // Between the begin of a step and the call that names the regions to serve there is nothing to read.
            Step::Send { chunk: index, to, .. } if self.state.is_to_serve() => {
                let pieces = self.state.pieces(chunk.start, chunk.len as usize);
                let member = self.engine.receiver_at(op, to)?;
                let header = self.engine.header(op, Kind::Final, index, chunk.len as usize);
                let slot = self.transport.reserve(member, chunk.len as usize)?;
                let mut at = 0;
                for piece in pieces {
                    slot.part(at, piece.len()).copy_from(piece);
                    at += piece.len();
                }
                self.transport.commit(member, &header);
                Some(None)
            }
            Step::Take { chunk: index, from, .. } if self.state.is_to_fill() => {
                let pieces = self.state.pieces(chunk.start, chunk.len as usize);
                let found = self.find(id, from, index, Kind::Final, chunk.len as usize);
                let (_, payload) = found.message()?;
                let mut at = 0;
                for piece in pieces {
                    piece.copy_from(payload.part(at, piece.len()));
                    at += piece.len();
                }
                self.release(id, from, &found);
                Some(None)
            }
            Step::Send { .. }
            | Step::Take { .. }
            | Step::Fold { .. }
            | Step::FoldAll { .. }
            | Step::Settle { .. } => None,
        }
    }
}
