//! The program every simulated member runs: begin, collectives, commit, update; the same code for rank and spare.

use std::collections::BTreeMap;

use phalanx_core::engine::{CallShape, Engine};
use phalanx_core::error::OpError;
use phalanx_core::fnv::fnv1a;
use phalanx_core::ids::ChunkId;
use phalanx_core::ids::{MemberId, OpId, Rank};
use phalanx_core::policy::Policy;
use phalanx_core::spec::{Collective, Dtype, Spec};

use super::checkers::{Checkers, Finished, spoiled};
use super::net::SimTransport;
use super::random::mix;
use super::scenario::{OddCall, PlannedOp, SECOND, Scenario};
use crate::device::{Block, Span};
use crate::driver::{Executor, Notice, StateRegions};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// `begin_step` is called and has not returned, or is about to be.
    Beginning,
    /// In the step; ops from this index on are not called yet.
    Calling(usize),
    /// The commit is called.
    Committing,
    /// The program ended, in a stated way.
    Ended,
}

struct Open {
    index: usize,
    input: Block,
    output: Option<Block>,
    over: bool,
    /// The input as it was called, where the result replaces it.
    original: Vec<u8>,
    /// Its result goes into the state.
    counts: bool,
}

/// The program of one member.
pub struct Caller {
    member: MemberId,
    at: At,
    asked: bool,
    step: u64,
    state: Block,
    state_words: usize,
    open: BTreeMap<OpId, Open>,
    results: BTreeMap<usize, u64>,
    /// Ops called before the first step.
    prelude: usize,
    /// What it calls in a step and from which seat.
    program: Vec<(usize, PlannedOp)>,
    program_of: Option<(u64, Rank)>,
    /// Results got so far.
    pub completed: u32,
    /// How it ended, if not by finishing.
    pub error: Option<String>,
    /// The process has nothing left to do for others either.
    pub gone: bool,
}

const GARBAGE: u8 = 0xA5;
/// Ops before the first step count from here.
const PRELUDE: usize = 1_000;

impl Caller {
    /// The program, before its first call.
    pub fn new(member: MemberId, scenario: &Scenario) -> Self {
        let mut state = Block::zeroed(scenario.state_words * 8);
        let words: Vec<u8> = (0..scenario.state_words as u64)
            .flat_map(|i| mix(&[scenario.seed, 2, i]).to_le_bytes())
            .collect();
        state.span().write(&words);
        let state_words = scenario.state_words;
        Self {
            member,
            at: At::Beginning,
            asked: false,
            step: 0,
            state,
            state_words,
            open: BTreeMap::new(),
            results: BTreeMap::new(),
            prelude: 0,
            program: Vec::new(),
            program_of: None,
            completed: 0,
            error: None,
            gone: false,
        }
    }

    /// Whether the program has ended.
    pub fn is_over(&self) -> bool {
        self.at == At::Ended
    }

    fn state_hash(&mut self) -> u64 {
        let mut bytes = vec![0; self.state_words * 8];
        self.state.span().read(&mut bytes);
        fnv1a(bytes)
    }

    /// Makes the calls that can be made now; true if it made one.
    pub fn act(
        &mut self,
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
        now_ms: u64,
    ) -> bool {
        let steps = s.rules.policy == Policy::Replace;
        match self.at {
            At::Ended => false,
            At::Beginning => {
                if self.step >= u64::from(s.steps) && (x.engine.rank().is_some() || !steps) {
                    return self.end(x);
                }
                if !steps {
                    if x.engine.rank().is_none() {
                        return false;
                    }
                    if !self.join_second(x, s) {
                        return true;
                    }
                    self.at = At::Calling(0);
                    return true;
                }
                if self.asked {
                    return false;
                }
                let is_first = x.engine.rank().is_some() && !x.engine.is_newcomer() && self.step == 0;
                if let Some(op) = s.before_steps().get(self.prelude).filter(|_| is_first) {
                    if self.open.values().any(|o| !o.over) {
                        return false;
                    }
                    self.prelude += 1;
                    return self.post((PRELUDE + self.prelude, *op), x, s, checks, now_ms);
                }
                if self.open.values().any(|o| !o.over) {
                    return false;
                }
                self.asked = true;
                let span = vec![self.state.span()];
                let takes = x.engine.rank().is_none() || x.engine.is_newcomer();
                x.set_state(if takes { StateRegions::to_fill(span) } else { StateRegions::to_serve(span) });
                if let Err(error) = x.engine.handle_begin(self.state_words as u64 * 8) {
                    return self.fail(x, &error.to_string());
                }
                true
            }
            At::Calling(index) => self.call(index, x, s, checks, now_ms),
            At::Committing => false,
        }
    }

    fn call(
        &mut self,
        index: usize,
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
        now_ms: u64,
    ) -> bool {
        let Some(rank) = x.engine.rank() else { return false };
        if self.program_of != Some((self.step, rank)) {
            (self.program_of, self.program) = (Some((self.step, rank)), s.program(self.step, rank));
        }
        let ops = std::mem::take(&mut self.program);
        let moved = self.call_next(&ops, index, x, s, checks, now_ms);
        self.program = ops;
        moved
    }

    fn call_next(
        &mut self,
        ops: &[(usize, PlannedOp)],
        index: usize,
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
        now_ms: u64,
    ) -> bool {
        let Some(rank) = x.engine.rank() else { return false };
        let waiting = self.open.values().any(|o| !o.over);
        if waiting && (!s.asynchronous || index == ops.len() || self.waits_for_one(&ops[..index], s, rank)) {
            return false;
        }
        if index < ops.len() {
            self.at = At::Calling(index + 1);
            return self.post(ops[index], x, s, checks, now_ms);
        }
        if s.rules.policy == Policy::Replace {
            self.at = At::Committing;
            return match x.engine.handle_commit(now_ms) {
                Ok(id) => {
                    x.attach(id, Span::empty(), Span::empty());
                    let nothing = Open {
                        index: usize::MAX,
                        input: Block::zeroed(0),
                        output: None,
                        over: false,
                        original: Vec::new(),
                        counts: false,
                    };
                    self.open.insert(id, nothing);
                    true
                }
                Err(error) => self.fail(x, &error.to_string()),
            };
        }
        self.update();
        self.at = At::Beginning;
        true
    }

    /// Whether the program has come to a `wait()` for one op, while others are open. It waits for no op before it has
    /// started all that come before it in the common order: else two ranks could wait for one another.
    fn waits_for_one(&self, started: &[(usize, PlannedOp)], s: &Scenario, rank: Rank) -> bool {
        let draw = mix(&[s.seed, 5, self.step, u64::from(rank.0), started.len() as u64]);
        if !s.waits || started.is_empty() || draw.is_multiple_of(3) {
            return false;
        }
        let ops = s.ops(self.step);
        let is_of_this_rank = |k: &usize| {
            let is_member = ops[*k].comm != SECOND || s.split.contains(&rank);
            is_member && !s.left_out.contains(&(self.step, *k))
        };
        let all_before = (0..ops.len())
            .take_while(|k| started.iter().any(|(i, _)| i == k) || !is_of_this_rank(k))
            .filter(is_of_this_rank);
        let safe: Vec<usize> = all_before.collect();
        let Some(index) = safe.get((draw / 3) as usize % safe.len().max(1)) else { return false };
        self.open.values().any(|o| o.index == *index && !o.over)
    }

    fn post(
        &mut self,
        (index, mut op): (usize, PlannedOp),
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
        now_ms: u64,
    ) -> bool {
        let Some(rank) = x.engine.rank() else { return self.fail(x, "no rank") };
        let hash = self.state_hash();
        let group = s.group(op.comm);
        let n = group.len() as u32;
        let place = Rank(group.iter().position(|r| *r == rank).unwrap_or(0) as u32);
        if op.spec.collective == Collective::AllReduce && op.comm != SECOND {
            match s.odd {
                Some(OddCall::Other(odd)) if odd == rank.0 => op.spec.count += 1,
                Some(OddCall::Never(odd)) if odd == rank.0 => return self.end(x),
                Some(OddCall::Other(_) | OddCall::Never(_)) | None => {}
            }
        }
        let size = op.spec.dtype.size();
        let (input_from, input_len) = op.spec.input_range(place, n);
        let output_len = op.spec.output_range(place, n).1;
        let mut input = Block::zeroed(input_len as usize * size);
        let original = input_bytes(s, self.step, index, rank, &op.spec, input_from, input_len, hash);
        input.span().write(&original);
        let in_place = op.in_place && input_len == output_len;
        let mut output = (!in_place).then(|| Block::zeroed(output_len as usize * size));
        if let Some(o) = &mut output {
            o.span().write(&vec![GARBAGE; o.bytes()]);
        }
        let shape = CallShape { in_place, retention: op.retention };
        let spans = (input.span(), output.as_mut().map_or_else(|| input.span(), Block::span));
        match x.engine.handle_post(op.comm, op.spec, shape, now_ms) {
            Ok(id) => {
                x.attach(id, spans.0, spans.1);
                checks.called(s, self.member, id, (self.step, index), &op.spec, hash);
                let counts = op.comm != SECOND
                    && matches!(op.spec.collective, Collective::AllReduce | Collective::AllGather);
                let original = if in_place { original } else { Vec::new() };
                self.open.insert(id, Open { index, input, output, over: false, original, counts });
                true
            }
            Err(error) => self.fail(x, &error.to_string()),
        }
    }

    /// Takes what the executor tells.
    pub fn handle(
        &mut self,
        notice: Notice,
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
    ) {
        match notice {
            Notice::StepBegun { committed } => {
                x.set_state(StateRegions::to_serve(vec![self.state.span()]));
                self.step = committed;
                self.asked = false;
                self.at = At::Calling(0);
                self.results.clear();
                if !self.join_second(x, s) {
                    return;
                }
                if self.step >= u64::from(s.steps) {
                    // A newcomer that came after the last step: nothing is left to do.
                    self.end(x);
                }
            }
            Notice::OpOver { op, outcome, retained } => self.over(op, outcome, retained, x, s, checks),
            Notice::Freed { op } => {
                if let Some(mut open) = self.open.remove(&op) {
                    spoil(&mut open);
                }
            }
            Notice::RunOver => {
                self.at = At::Ended;
                self.gone = true;
            }
            Notice::Halted { error } => {
                self.gone = true;
                self.error = Some(error.to_string());
                self.at = At::Ended;
            }
        }
    }

    fn over(
        &mut self,
        id: OpId,
        outcome: Result<Vec<Rank>, OpError>,
        retained: bool,
        x: &mut Executor<SimTransport>,
        s: &Scenario,
        checks: &mut Checkers,
    ) {
        let Some(open) = self.open.get_mut(&id) else { return };
        open.over = true;
        let counts = open.counts;
        let result = if let Ok(contributors) = &outcome {
            let block = open.output.as_mut().unwrap_or(&mut open.input);
            let mut bytes = vec![0; block.bytes()];
            block.span().read(&mut bytes);
            Ok((contributors.clone(), bytes))
        } else {
            Err(outcome.clone().err())
        };
        let index = open.index;
        if !retained {
            spoil(open);
        }
        if let Some(rank) = x.engine.rank() {
            checks.finished(&Finished { member: self.member, rank, op: id, result: result.clone() });
            if let Ok((contributors, _)) = &result {
                checks.shrunk |= contributors.len() < s.group(id.comm).len();
            }
        }
        match outcome {
            Ok(_) if index == usize::MAX => {
                self.update();
                self.step += 1;
                self.at = At::Beginning;
            }
            // What a rank gets differs by kind; the state takes only what is the same everywhere.
            Ok(_) => {
                self.completed += 1;
                if let (true, Ok((_, bytes))) = (counts, &result) {
                    self.results.insert(index, fnv1a(bytes.iter().copied()));
                }
            }
            Err(error) => {
                self.fail(x, &error.to_string());
            }
        }
    }

    /// Makes the second communicator; a newcomer knows it already.
    fn join_second(&mut self, x: &mut Executor<SimTransport>, s: &Scenario) -> bool {
        if x.engine.rank().is_none_or(|r| !s.split.contains(&r)) {
            return true;
        }
        match x.engine.handle_split(SECOND, s.split.clone()) {
            Ok(()) => true,
            Err(error) => {
                self.fail(x, &error.to_string());
                false
            }
        }
    }

    /// I3: a chunk of a buffer that its result replaces is Input, byte for byte, until it is Final.
    pub fn spoiled_input(&mut self, engine: &Engine) -> Option<String> {
        for (id, open) in self.open.iter_mut().filter(|(_, o)| !o.over && !o.original.is_empty()) {
            // A call that differs from what the others called keeps their plan until the coordinator ends it.
            let Some(op) = engine.op(*id).filter(|o| o.spec.count == o.plan.spec.count) else { continue };
            let size = op.spec.dtype.size();
            let (from, len) = op.plan.spec.input_range(op.place, op.plan.world_size);
            for (k, chunk) in op.plan.chunks.iter().enumerate() {
                let inside = chunk.start >= from && chunk.start + chunk.len <= from + len;
                if !inside || op.held.has(ChunkId(k as u32)) {
                    continue;
                }
                let at = (chunk.start - from) as usize * size;
                let mut now = vec![0; chunk.len as usize * size];
                open.input.span().part(at, now.len()).read(&mut now);
                let called = &open.original[at..at + now.len()];
                if let Some(text) = spoiled(*id, ChunkId(k as u32), self.member, &now, called) {
                    return Some(text);
                }
            }
        }
        None
    }

    fn update(&mut self) {
        let seen = mix(&self.results.values().copied().collect::<Vec<_>>());
        self.results.clear();
        let mut bytes = vec![0; self.state_words * 8];
        self.state.span().read(&mut bytes);
        for word in bytes.chunks_exact_mut(8) {
            let mut raw = [0; 8];
            raw.copy_from_slice(word);
            word.copy_from_slice(&mix(&[u64::from_le_bytes(raw), seen]).to_le_bytes());
        }
        self.state.span().write(&bytes);
        self.step += u64::from(self.at != At::Committing);
    }

    fn fail(&mut self, x: &mut Executor<SimTransport>, why: &str) -> bool {
        self.error = Some(why.to_owned());
        self.end(x)
    }

    fn end(&mut self, x: &mut Executor<SimTransport>) -> bool {
        self.at = At::Ended;
        x.engine.handle_leave();
        true
    }
}

/// The caller may do what it likes with the memory now.
fn spoil(open: &mut Open) {
    for block in [Some(&mut open.input), open.output.as_mut()].into_iter().flatten() {
        let garbage = vec![GARBAGE; block.bytes()];
        block.span().write(&garbage);
    }
}

/// One rank's contribution: any occupant of the seat computes the same from the same state.
#[expect(clippy::too_many_arguments, reason = "each is one coordinate of the value")]
pub fn input_bytes(
    s: &Scenario,
    step: u64,
    index: usize,
    rank: Rank,
    spec: &Spec,
    from: u64,
    len: u64,
    state: u64,
) -> Vec<u8> {
    let value = |i: u64| mix(&[s.seed, step, index as u64, u64::from(rank.0), i, state]);
    if spec.dtype == Dtype::F32 {
        return (from..from + len).flat_map(|i| ((value(i) >> 40) as f32 / 1024.0).to_le_bytes()).collect();
    }
    (from..from + len).flat_map(|i| value(i).to_le_bytes()).collect()
}
