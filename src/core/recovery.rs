//! From the survivors' ledgers to the next view and a verdict per op: a pure function.
//!
//! Only *held* and *lost* of each chunk matter (rule R3 of the protocol). A rank that has no record of an op that
//! others have called counts as one that lacks every chunk and still has (or will compute) its Input: that covers a
//! rank that has not called the op yet and a newcomer that replays, alike.

use std::collections::{BTreeMap, BTreeSet};

use crate::bitmap::Bitmap;
use crate::ids::{Attempt, CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use crate::plan::{self, Plan};
use crate::policy::{Policy, Rules};
use crate::spec::{Collective, Spec};
use crate::view::View;
use crate::wire::message::{
    CommDecision, CommReport, Decision, FailCause, Holding, Loss, OpDecision, OpReport, Report,
    StateDecision, Verdict,
};

/// Everything a decision depends on.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The last decided view.
    pub view: &'a View,
    /// The epoch of the fence that was answered.
    pub epoch: Epoch,
    /// Who was lost since the last decision.
    pub losses: &'a [Loss],
    /// The answers, by seat; newcomers of the last decision included.
    pub reports: &'a BTreeMap<Rank, Report>,
    /// Spares that may take a seat, in order.
    pub spares: &'a [MemberId],
    /// Members still there, spares included.
    pub members: &'a [crate::view::MemberInfo],
    /// The last decision: its attempts bind.
    pub last: Option<&'a Decision>,
    /// Ops whose deadline is over.
    pub expired: &'a BTreeSet<OpId>,
    /// What everybody agreed on.
    pub rules: &'a Rules,
    /// The time to wait for spares is over.
    pub fall_back: bool,
}

/// A vacant seat and nobody to take it: wait for a spare, or decide with `fall_back`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpareMissing {
    /// Seats without a taker.
    pub seats: u32,
}

/// The next view and what becomes of every op.
///
/// # Errors
/// When `Replace` needs a spare that is not there yet.
pub fn decide(evidence: &Evidence<'_>) -> Result<Decision, SpareMissing> {
    let policy = policy_now(evidence);
    let (view, reseated) = reseat(evidence, policy)?;
    let survivors: BTreeMap<Rank, &Report> = evidence
        .reports
        .iter()
        .filter(|(rank, _)| view.occupant(**rank).is_some() && !reseated.contains(rank))
        .map(|(rank, report)| (*rank, report))
        .collect();
    let steps = || survivors.values().map(|r| r.step.committed);
    let committed = if crate::planted!(CommitAsOp) { steps().min() } else { steps().max() }.unwrap_or(0);
    let judge =
        Judge { evidence, policy, view: &view, reseated: &reseated, survivors: &survivors, committed };
    let mut comms = Vec::new();
    let mut ops = Vec::new();
    for (comm, group) in judge.communicators() {
        let step_first = judge.step_first(comm);
        let mut broken = judge.standing_failure(comm, &group);
        let mut failed = false;
        for seq in judge.op_seqs(comm, step_first) {
            let decision = judge.op(OpId { comm, seq }, &group, broken.as_ref(), failed);
            if let Verdict::Fail { cause } = &decision.verdict {
                failed = true;
                // A rank that is given an error calls something else from there on, or nothing: the common order is
                // gone. Where only the shape no longer fits, every rank is told the same and may call on.
                if !matches!(cause, FailCause::ShapeChanged { .. }) {
                    broken.get_or_insert_with(|| cause.clone());
                }
            }
            ops.push(decision);
        }
        comms.push(CommDecision { comm, group, step_first, broken });
    }
    let (state, newcomers) = judge.state();
    Ok(Decision { losses: evidence.losses.to_vec(), newcomers, comms, ops, committed, state, view })
}

/// `Replace` needs a step; where ops run outside of one, or the wait for spares is over, its fallback rules.
fn policy_now(evidence: &Evidence<'_>) -> Policy {
    let rules = evidence.rules;
    let outside = evidence.reports.values().any(|report| {
        let newcomer = report.step.state_held.is_some();
        !report.step.open
            && !newcomer
            && report.comms.iter().any(|c| c.ops.iter().any(|o| o.seq >= c.step_first))
    });
    match rules.policy {
        Policy::Replace if !evidence.losses.is_empty() && (evidence.fall_back || outside) => rules.fallback,
        policy @ (Policy::Replace | Policy::Shrink | Policy::Abort) => policy,
    }
}

/// Seats the spares, or leaves seats vacant; who sits newly.
fn reseat(evidence: &Evidence<'_>, policy: Policy) -> Result<(View, BTreeSet<Rank>), SpareMissing> {
    let mut view = View {
        epoch: evidence.epoch,
        seats: evidence.view.seats.clone(),
        members: evidence.members.to_vec(),
    };
    let mut reseated = BTreeSet::new();
    let mut spares = evidence.spares.iter();
    let mut missing = 0;
    for index in 0..view.seats.len() {
        let gone = match view.seats[index] {
            Some(member) => evidence.losses.iter().any(|l| l.member == member),
            None => true,
        };
        if !gone {
            continue;
        }
        let was_vacant = evidence.view.seats[index].is_none();
        view.seats[index] = None;
        if policy != Policy::Replace || was_vacant {
            continue;
        }
        match spares.next() {
            Some(&spare) => {
                view.seats[index] = Some(spare);
                reseated.insert(Rank(index as u32));
            }
            None => missing += 1,
        }
    }
    if missing > 0 { Err(SpareMissing { seats: missing }) } else { Ok((view, reseated)) }
}

struct Judge<'a> {
    evidence: &'a Evidence<'a>,
    policy: Policy,
    view: &'a View,
    reseated: &'a BTreeSet<Rank>,
    survivors: &'a BTreeMap<Rank, &'a Report>,
    committed: u64,
}

/// What one rank brings to one op.
struct Part<'a> {
    rank: Rank,
    live: bool,
    record: Option<&'a OpReport>,
    /// Had all it is due: it lacks nothing, whatever it holds now.
    satisfied: bool,
    held: Bitmap,
    lost: Bitmap,
}

impl Judge<'_> {
    fn communicators(&self) -> Vec<(CommId, Vec<Rank>)> {
        let mut groups: BTreeMap<CommId, Vec<Rank>> = BTreeMap::new();
        if let Some(last) = self.evidence.last {
            groups.extend(last.comms.iter().map(|c| (c.comm, c.group.clone())));
        }
        for report in self.survivors.values() {
            for c in &report.comms {
                groups.entry(c.comm).or_insert_with(|| c.group.clone());
            }
        }
        groups.into_iter().collect()
    }

    fn comm_reports(&self, comm: CommId) -> impl Iterator<Item = (Rank, &Report, &CommReport)> {
        self.survivors.iter().filter_map(move |(rank, report)| {
            Some((*rank, *report, report.comms.iter().find(|c| c.comm == comm)?))
        })
    }

    /// First op that is not covered by a commit. A rank that has joined the last commit without seeing its end has
    /// called all its ops, so where nobody has gone on, its next op begins the new step.
    fn step_first(&self, comm: CommId) -> OpSeq {
        let of = |report: &Report, c: &CommReport| {
            if report.step.committed == self.committed { c.step_first } else { c.next }
        };
        let newest =
            self.comm_reports(comm).filter(|(_, r, _)| r.step.state_held.is_none()).map(|(_, r, c)| of(r, c));
        let before =
            self.evidence.last.and_then(|l| l.comms.iter().find(|c| c.comm == comm)).map(|c| c.step_first);
        newest.max().max(before).unwrap_or_default()
    }

    fn op_seqs(&self, comm: CommId, step_first: OpSeq) -> BTreeSet<OpSeq> {
        self.comm_reports(comm)
            .flat_map(|(_, _, c)| c.ops.iter().map(|o| o.seq))
            .chain(self.failures_to_come(comm))
            .filter(|seq| *seq >= step_first)
            .collect()
    }

    /// Ops that ended with an error which some rank has not called yet: it must get the same one.
    fn failures_to_come(&self, comm: CommId) -> impl Iterator<Item = OpSeq> {
        let first_open = self.comm_reports(comm).map(|(_, _, c)| c.next).min().unwrap_or_default();
        let last = self.evidence.last.into_iter().flat_map(|l| &l.ops);
        last.filter(move |o| {
            o.id.comm == comm && o.id.seq >= first_open && matches!(o.verdict, Verdict::Fail { .. })
        })
        .map(|o| o.id.seq)
    }

    /// The error that later calls of a communicator get: a seat of it is vacant and nobody will take it.
    fn standing_failure(&self, comm: CommId, group: &[Rank]) -> Option<FailCause> {
        let before = self.evidence.last.and_then(|l| l.comms.iter().find(|c| c.comm == comm));
        if let Some(cause) = before.and_then(|c| c.broken.clone()) {
            return Some(cause);
        }
        let losses = self.losses_in(group);
        (self.policy == Policy::Abort
            && !losses.is_empty()
            && group.iter().any(|r| self.view.occupant(*r).is_none()))
        .then_some(FailCause::RankLost { losses })
    }

    fn losses_in(&self, group: &[Rank]) -> Vec<Loss> {
        self.evidence.losses.iter().filter(|l| group.contains(&l.rank)).cloned().collect()
    }

    fn op(
        &self,
        id: OpId,
        comm_group: &[Rank],
        broken: Option<&FailCause>,
        failed_before: bool,
    ) -> OpDecision {
        let records: Vec<(Rank, &OpReport)> = self
            .comm_reports(id.comm)
            .filter_map(|(rank, _, c)| Some((rank, c.ops.iter().find(|o| o.seq == id.seq)?)))
            .collect();
        let decided = self.evidence.last.and_then(|l| l.ops.iter().find(|o| o.id == id));
        if let Some(failed) = decided.filter(|d| matches!(d.verdict, Verdict::Fail { .. })) {
            // An error binds like an attempt does: somebody may have been given it.
            return failed.clone();
        }
        let (first_rank, first) = records[0];
        let spec = first.spec;
        let newest = records.iter().map(|(_, o)| (o.attempt, &o.group)).max_by_key(|(attempt, _)| *attempt);
        let (attempt, group) = match (decided, newest) {
            (Some(d), Some((a, _))) if d.attempt >= a => (d.attempt, d.group.clone()),
            (_, Some((a, group))) => (a, group.clone()),
            (Some(d), None) => (d.attempt, d.group.clone()),
            (None, None) => (Attempt(0), comm_group.to_vec()),
        };
        let fail = |cause| OpDecision {
            id,
            spec,
            verdict: Verdict::Fail { cause },
            attempt,
            group: group.clone(),
            held: Vec::new(),
        };
        if let Some((rank, other)) = records.iter().find(|(_, o)| o.spec != spec) {
            return fail(FailCause::Mismatch {
                one: first_rank,
                one_spec: spec,
                two: *rank,
                two_spec: other.spec,
            });
        }
        // A set that lost its root made no progress that could be kept without it: judged as the whole communicator.
        let dense = spec.over(comm_group, &group).unwrap_or(spec);
        let chunk_bytes_max = self.evidence.rules.chunk_bytes_max as usize;
        let plan = match plan::build(&dense, group.len() as u32, Rank(0), chunk_bytes_max) {
            Ok(plan) => plan,
            Err(error) => {
                return fail(FailCause::Unrecoverable { losses: Vec::new(), why: error.to_string() });
            }
        };
        let parts = self.parts(&records, &group, attempt, &plan, id);
        let given_up = broken.filter(|_| failed_before && lacks_uncalled(&plan, &parts));
        let verdict = match given_up {
            Some(cause) => Verdict::Fail { cause: cause.clone() },
            None => self.verdict(id, &dense, &plan, &parts, broken),
        };
        let group = match verdict {
            Verdict::Shrink {} => group.into_iter().filter(|r| self.view.occupant(*r).is_some()).collect(),
            Verdict::Keep {} | Verdict::Repair {} | Verdict::Fail { .. } => group,
        };
        let (attempt, held) = match verdict {
            Verdict::Shrink {} => (attempt.next(), vec![Holding::Nothing {}; group.len()]),
            Verdict::Keep {} | Verdict::Repair {} | Verdict::Fail { .. } => {
                (attempt, parts.iter().map(Part::holding).collect())
            }
        };
        OpDecision { id, spec, verdict, attempt, group, held }
    }

    fn parts<'b>(
        &self,
        records: &[(Rank, &'b OpReport)],
        group: &[Rank],
        attempt: Attempt,
        plan: &Plan,
        OpId { comm, seq }: OpId,
    ) -> Vec<Part<'b>> {
        let chunks = plan.chunks.len() as u32;
        let of = |&rank: &Rank| {
            let live = self.view.occupant(rank).is_some();
            let found = records.iter().find(|(r, _)| *r == rank).map(|(_, o)| *o);
            // A rank that did not act on the last decision restores first: what it has belongs to an old attempt.
            let record = found.filter(|o| live && o.attempt == attempt);
            // A survivor that called the op and forgot it knew that every rank had it.
            let report = self.survivors.get(&rank).and_then(|r| r.comms.iter().find(|c| c.comm == comm));
            let forgotten = found.is_none() && report.is_some_and(|c| c.next > seq);
            Part {
                rank,
                live,
                record,
                satisfied: forgotten || record.is_some_and(|o| o.done),
                held: record.map_or_else(|| Bitmap::empty(chunks), |o| o.held.expand(chunks)),
                lost: record.map_or_else(|| Bitmap::empty(chunks), |o| o.lost.expand(chunks)),
            }
        };
        group.iter().map(of).collect()
    }

    fn verdict(
        &self,
        id: OpId,
        spec: &Spec,
        plan: &Plan,
        parts: &[Part<'_>],
        broken: Option<&FailCause>,
    ) -> Verdict {
        let vacancies = parts.iter().any(|p| !p.live);
        let released = parts.iter().any(|p| p.record.is_some_and(|o| o.released));
        let losses = || self.losses_in(&parts.iter().map(|p| p.rank).collect::<Vec<_>>());
        let tally = Tally::of(spec, plan, parts);
        if !tally.anybody_lacks {
            return Verdict::Keep {};
        }
        let is_expired = self.evidence.expired.contains(&id);
        if is_expired && !released && lacks_uncalled(plan, parts) {
            let missing = parts.iter().filter(|p| p.live && p.record.is_none()).map(|p| p.rank).collect();
            return Verdict::Fail { cause: FailCause::Expired { missing } };
        }
        if tally.all_held && tally.unreachable.is_none() && (vacancies || self.evidence.expired.contains(&id))
        {
            // Final everywhere it can be served from: no reason to fail or to begin again. Under abort only where
            // somebody has gone on with the result already.
            let must = released || self.policy != Policy::Abort;
            if must {
                return Verdict::Repair {};
            }
        }
        if let Some(why) = tally.unreachable {
            return Verdict::Fail { cause: FailCause::Unrecoverable { losses: losses(), why } };
        }
        if vacancies && released && !crate::planted!(ShrinkReleased) {
            // Somebody has gone on with it: not an end by policy, but more lost than promised (P6).
            let why = format!("{} was released from it, and a chunk of it is lost", named_release(parts));
            return Verdict::Fail { cause: FailCause::Unrecoverable { losses: losses(), why } };
        }
        if let Some(cause) = broken {
            // Some caller has been given the error of an earlier op and will not call on.
            return Verdict::Fail { cause: cause.clone() };
        }
        if self.evidence.expired.contains(&id) && !released {
            let missing = parts.iter().filter(|p| p.live && p.record.is_none()).map(|p| p.rank).collect();
            return Verdict::Fail { cause: FailCause::Expired { missing } };
        }
        if !vacancies {
            return match tally.lost_for_good {
                Some(why) => Verdict::Fail { cause: FailCause::Unrecoverable { losses: losses(), why } },
                None => Verdict::Repair {},
            };
        }
        match self.policy {
            Policy::Shrink => shrink(spec, parts, losses()),
            Policy::Replace | Policy::Abort => {
                Verdict::Fail { cause: FailCause::RankLost { losses: losses() } }
            }
        }
    }

    fn state(&self) -> (Option<StateDecision>, Vec<Rank>) {
        let mut newcomers: Vec<(Rank, Holding)> =
            self.reseated.iter().map(|r| (*r, Holding::Nothing {})).collect();
        for (rank, report) in self.survivors {
            if let Some(held) = &report.step.state_held {
                // Before it knew the size of the state it could hold nothing.
                let has = if held.is_empty() { Holding::Nothing {} } else { Holding::of(held) };
                newcomers.push((*rank, has));
            }
        }
        newcomers.sort_by_key(|(rank, _)| *rank);
        let ranks: Vec<Rank> = newcomers.iter().map(|(rank, _)| *rank).collect();
        if newcomers.is_empty() {
            return (None, ranks);
        }
        let old = || self.survivors.iter().filter(|(rank, _)| !ranks.contains(rank));
        let has_begun = |r: &Report| r.step.committed > 0 || r.step.open || r.step.state_bytes > 0;
        if !old().any(|(_, r)| has_begun(r)) {
            // No step has begun anywhere: a newcomer begins the first one from its own initial state, as all do.
            return (None, ranks);
        }
        let ranks_where = |able: &dyn Fn(&Report) -> bool| -> Vec<Rank> {
            old().filter(|(_, r)| able(r)).map(|(rank, _)| *rank).collect()
        };
        // Who is in the step can serve at once; who is not, from its begin on; who gave the step up, never.
        let choices = [
            ranks_where(&|r| r.step.open && !r.step.state_gone && r.step.committed == self.committed),
            ranks_where(&|r| !r.step.state_gone),
            ranks_where(&|_| true),
        ];
        let providers = choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default();
        let bytes = old().map(|(_, r)| r.step.state_bytes).max().unwrap_or(0);
        (Some(StateDecision { committed: self.committed, providers, bytes, newcomers }), ranks)
    }
}

/// Whether a rank that has not called the op is due something of it. After an earlier op that ends with an error it
/// will not call, and whoever serves it would wait for ever.
fn lacks_uncalled(plan: &Plan, parts: &[Part<'_>]) -> bool {
    parts.iter().enumerate().any(|(i, p)| {
        let uncalled = p.live && p.record.is_none() && !p.satisfied;
        uncalled && plan.chunks.iter().any(|c| plan.spread.receives(c.owner, Rank(i as u32), plan.world_size))
    })
}

fn named_release(parts: &[Part<'_>]) -> String {
    parts
        .iter()
        .find(|p| p.record.is_some_and(|o| o.released))
        .map_or_else(String::new, |p| p.rank.to_string())
}

/// A new attempt over the survivors, where the op still means the same without the dead.
fn shrink(spec: &Spec, parts: &[Part<'_>], losses: Vec<Loss>) -> Verdict {
    let root_lives = parts.get(spec.root.index()).is_some_and(|p| p.live);
    match spec.collective {
        Collective::AllReduce | Collective::Barrier | Collective::Commit => Verdict::Shrink {},
        Collective::Broadcast | Collective::Reduce if !root_lives => {
            Verdict::Fail { cause: FailCause::RankLost { losses } }
        }
        Collective::Broadcast | Collective::Reduce => Verdict::Shrink {},
        Collective::AllGather | Collective::ReduceScatter | Collective::State => {
            Verdict::Fail { cause: FailCause::ShapeChanged { losses } }
        }
    }
}

/// The two bits of every chunk, over all ranks.
struct Tally {
    anybody_lacks: bool,
    all_held: bool,
    /// A chunk that is not held, and whose Input somebody has no longer.
    lost_for_good: Option<String>,
    /// A lacking rank whose next ancestor has the chunk no longer: more was lost than promised.
    unreachable: Option<String>,
}

impl Tally {
    fn of(spec: &Spec, plan: &Plan, parts: &[Part<'_>]) -> Self {
        let n = parts.len() as u32;
        let mut tally = Self { anybody_lacks: false, all_held: true, lost_for_good: None, unreachable: None };
        for (index, chunk) in plan.chunks.iter().enumerate() {
            let id = crate::ids::ChunkId(index as u32);
            let held = parts.iter().any(|p| p.live && p.held.has(id));
            let lacking = |i: usize| {
                let part = &parts[i];
                let due = plan.spread.receives(chunk.owner, Rank(i as u32), n);
                due && part.live && !part.held.has(id) && !part.satisfied
            };
            if !(0..parts.len()).any(lacking) {
                continue;
            }
            tally.anybody_lacks = true;
            tally.all_held &= held;
            if held {
                for i in (0..parts.len()).filter(|i| lacking(*i)) {
                    let near =
                        plan.spread.ancestors(chunk.owner, Rank(i as u32), n).find(|a| parts[a.index()].live);
                    if let Some(a) =
                        near.filter(|a| !parts[a.index()].held.has(id) && parts[a.index()].satisfied)
                    {
                        tally.unreachable = Some(format!(
                            "{} lacks {id}, and {} has been released from it",
                            parts[i].rank,
                            parts[a.index()].rank
                        ));
                    }
                }
                continue;
            }
            let loser = parts.iter().enumerate().find(|(i, p)| {
                let gives = contributes(spec, chunk.start, chunk.len, Rank(*i as u32), n) && p.lost.has(id);
                // Whoever was released can neither serve it nor take it a second time.
                let gone = p.satisfied && plan.spread.receives(chunk.owner, Rank(*i as u32), n);
                p.live && (gives || gone)
            });
            if let Some((_, p)) = loser.filter(|_| !crate::planted!(IgnoreLost)) {
                tally.lost_for_good =
                    Some(format!("{id} is held by no live rank, and {} has no Input of it", p.rank));
            }
        }
        tally
    }
}

fn contributes(spec: &Spec, start: u64, len: u64, rank: Rank, world_size: u32) -> bool {
    let (from, count) = spec.input_range(rank, world_size);
    spec.elements(world_size) > 0 && start >= from && start + len <= from + count
}

impl Part<'_> {
    fn holding(&self) -> Holding {
        if self.satisfied && self.held.count() == 0 && !self.held.is_empty() {
            Holding::Satisfied {}
        } else if self.held.is_empty() {
            Holding::Nothing {}
        } else {
            Holding::of(&self.held)
        }
    }
}
