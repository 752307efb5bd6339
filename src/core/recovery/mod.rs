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
use crate::spec::Spec;
use crate::view::View;
use crate::wire::message::{
    CommDecision, CommReport, Decision, FailCause, Holding, Loss, OpDecision, OpReport, Report,
    StateDecision, Verdict,
};

mod sound;
#[cfg(test)]
mod tests;
mod verdict;

pub(crate) use sound::flaw;

use verdict::{Case, Part};

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
    /// Members that have said good-bye: they call nothing any more.
    pub left: &'a BTreeSet<MemberId>,
    /// What everybody agreed on.
    pub rules: &'a Rules,
    /// The time to wait for spares is over.
    pub fall_back: bool,
}

/// Why there is no decision yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// A vacant seat and nobody to take it: wait for a spare, or decide with `fall_back`.
    SpareMissing {
        /// Seats without a taker.
        seats: u32,
    },
    /// Live ranks that hold up what others have gone on with: declare them lost, and fence again.
    Overdue(Overdue),
    /// Nobody is left who has the step's state and the ops' results: the run is at its end.
    NobodyLeft,
}

/// Ranks that let an op's deadline pass without a call, though another rank has its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// The op.
    pub op: OpId,
    /// Who has not called it.
    pub ranks: Vec<Rank>,
}

/// The next view and what becomes of every op.
///
/// # Errors
/// When `Replace` needs a spare that is not there yet; when a live rank must be declared lost first; when nobody is
/// left who could be followed.
pub fn decide(evidence: &Evidence<'_>) -> Result<Decision, Undecided> {
    // A newcomer that waits for its state has nothing that another could take.
    let has_state = |report: &Report| report.step.state_held.is_none();
    if !evidence.reports.values().any(has_state) {
        return Err(Undecided::NobodyLeft);
    }
    let policy = policy_now(evidence);
    let (view, reseated) = reseat(evidence, policy)?;
    let survivors: BTreeMap<Rank, &Report> = evidence
        .reports
        .iter()
        .filter(|(rank, _)| view.occupant(**rank).is_some() && !reseated.contains(rank))
        .map(|(rank, report)| (*rank, report))
        .collect();
    let steps = || survivors.values().map(|r| r.step.committed);
    // A commit that was decided binds, also where nobody who has it is left: all had joined it.
    let decided = evidence.last.map_or(0, |d| d.committed);
    let committed = if crate::planted!(CommitAsOp) {
        steps().min().unwrap_or(0)
    } else {
        steps().fold(decided, u64::max)
    };
    let judge =
        Judge { evidence, policy, view: &view, reseated: &reseated, survivors: &survivors, committed };
    let mut comms = Vec::new();
    let mut ops = Vec::new();
    for (comm, group) in judge.communicators() {
        let step_first = judge.step_first(comm);
        let begins = judge.begins(comm).max(step_first);
        let mut broken = judge.standing_failure(comm, &group);
        let mut failed = false;
        for seq in judge.op_seqs(comm, step_first) {
            let decision =
                judge.op(OpId { comm, seq }, &group, broken.as_ref(), failed).map_err(Undecided::Overdue)?;
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
        comms.push(CommDecision { comm, group, step_first, begins, broken });
    }
    let (state, newcomers) = judge.state();
    Ok(Decision { losses: evidence.losses.to_vec(), newcomers, comms, ops, committed, state, view })
}

/// `Replace` needs a step; where an op that is not over runs outside of one, or the wait for spares is over, its
/// fallback rules.
fn policy_now(evidence: &Evidence<'_>) -> Policy {
    let rules = evidence.rules;
    match rules.policy {
        Policy::Replace if !evidence.losses.is_empty() && (evidence.fall_back || runs_outside(evidence)) => {
            rules.fallback
        }
        policy @ (Policy::Replace | Policy::Shrink | Policy::Abort) => policy,
    }
}

/// Whether a rank is inside an op that no step holds and that not every rank has behind it.
fn runs_outside(evidence: &Evidence<'_>) -> bool {
    let old = || evidence.reports.values().filter(|r| r.step.state_held.is_none());
    let is_over = |comm: CommId, seq: OpSeq| {
        old().filter_map(|r| r.comms.iter().find(|c| c.comm == comm)).all(|c| {
            let row = c.ops.iter().find(|o| o.seq == seq);
            c.next > seq && row.is_none_or(|o| o.done)
        })
    };
    old().filter(|r| !r.step.open).any(|report| {
        let rows =
            |c: &CommReport| c.ops.iter().filter(|o| o.seq >= c.step_first).any(|o| !is_over(c.comm, o.seq));
        report.comms.iter().any(rows)
    })
}

/// Seats the spares, or leaves seats vacant; who sits newly.
fn reseat(evidence: &Evidence<'_>, policy: Policy) -> Result<(View, BTreeSet<Rank>), Undecided> {
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
        match if crate::planted!(SeatTwice) { evidence.spares.first() } else { spares.next() } {
            Some(&spare) => {
                view.seats[index] = Some(spare);
                reseated.insert(Rank(index as u32));
            }
            None => missing += 1,
        }
    }
    if missing > 0 { Err(Undecided::SpareMissing { seats: missing }) } else { Ok((view, reseated)) }
}

/// What ends an op whatever its ranks hold: an error that a rank was given where the last decision did not know of the
/// op, which binds as well, or calls that differ.
fn failure_in(records: &[(Rank, &OpReport)]) -> Option<FailCause> {
    let given = records.iter().find_map(|(_, o)| o.failed.clone());
    given.or_else(|| {
        let (one, first) = records.first()?;
        let count = |o: &OpReport| if crate::planted!(IgnoreCount) { first.spec.count } else { o.spec.count };
        let differs = |o: &OpReport| Spec { count: count(o), ..o.spec } != first.spec;
        let (two, other) = records.iter().find(|(_, o)| differs(o))?;
        Some(FailCause::Mismatch { one: *one, one_spec: first.spec, two: *two, two_spec: other.spec })
    })
}

struct Judge<'a> {
    evidence: &'a Evidence<'a>,
    policy: Policy,
    view: &'a View,
    reseated: &'a BTreeSet<Rank>,
    survivors: &'a BTreeMap<Rank, &'a Report>,
    committed: u64,
}

impl Judge<'_> {
    fn communicators(&self) -> Vec<(CommId, Vec<Rank>)> {
        let mut groups: BTreeMap<CommId, Vec<Rank>> = BTreeMap::new();
        if let Some(last) = self.evidence.last {
            // One of which no rank is left begins anew when its newcomers split again.
            let lives_on = |group: &[Rank]| group.iter().any(|rank| self.survivors.contains_key(rank));
            let known = last.comms.iter().filter(|c| lives_on(&c.group));
            groups.extend(known.map(|c| (c.comm, c.group.clone())));
        }
        for (rank, report) in self.survivors {
            for c in report.comms.iter().filter(|c| c.group.contains(rank)) {
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

    /// What the last decision says of a communicator.
    fn decided_before(&self, comm: CommId) -> Option<&CommDecision> {
        self.evidence.last?.comms.iter().find(|c| c.comm == comm)
    }

    /// First op that is not covered by a commit. A rank that has joined the last commit without seeing its end has
    /// called all its ops, so where nobody has gone on, its next op begins the new step.
    fn step_first(&self, comm: CommId) -> OpSeq {
        let of = |report: &Report, c: &CommReport| {
            if report.step.committed == self.committed { c.step_first } else { c.next }
        };
        let newest =
            self.comm_reports(comm).filter(|(_, r, _)| r.step.state_held.is_none()).map(|(_, r, c)| of(r, c));
        let before = self.decided_before(comm).map(|c| c.step_first);
        newest.max().max(before).unwrap_or_default()
    }

    /// First op of the step that newcomers run: as a rank in that step has it, else as the ranks before it will.
    fn begins(&self, comm: CommId) -> OpSeq {
        let old = || self.comm_reports(comm).filter(|(_, r, _)| r.step.state_held.is_none());
        let is_in_step = |r: &Report| r.step.open && r.step.committed == self.committed;
        let inside = old().filter(|(_, r, _)| is_in_step(r)).map(|(_, _, c)| c.begins).max();
        let before = self.decided_before(comm).map(|c| c.begins);
        let waiting = || old().map(|(_, _, c)| c.next).max().max(before);
        inside.or_else(waiting).unwrap_or_default()
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
        if let Some(cause) = self.decided_before(comm).and_then(|c| c.broken.clone()) {
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
    ) -> Result<OpDecision, Overdue> {
        let records: Vec<(Rank, &OpReport)> = self
            .comm_reports(id.comm)
            .filter_map(|(rank, _, c)| Some((rank, c.ops.iter().find(|o| o.seq == id.seq)?)))
            .collect();
        let decided = self.evidence.last.and_then(|l| l.ops.iter().find(|o| o.id == id));
        if let Some(failed) = decided.filter(|d| matches!(d.verdict, Verdict::Fail { .. })) {
            // An error binds like an attempt does: somebody may have been given it.
            return Ok(failed.clone());
        }
        let spec = records[0].1.spec;
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
        if let Some(cause) = failure_in(&records) {
            return Ok(fail(cause));
        }
        // A set that lost its root made no progress that could be kept without it: judged as the whole communicator.
        let dense = spec.over(comm_group, &group).unwrap_or(spec);
        let chunk_bytes_max = self.evidence.rules.chunk_bytes_max as usize;
        let plan = match plan::build(&dense, group.len() as u32, Rank(0), chunk_bytes_max) {
            Ok(plan) => plan,
            Err(error) => {
                return Ok(fail(FailCause::Unrecoverable { losses: Vec::new(), why: error.to_string() }));
            }
        };
        let gave_up = broken.is_some() && failed_before;
        let mut parts = self.parts(&records, &group, attempt, &plan, id, gave_up);
        let case = Case {
            id,
            spec: &dense,
            plan: &plan,
            policy: self.policy,
            losses: self.losses_in(&group),
            broken,
            expired: self.evidence.expired.contains(&id),
        };
        let verdict = case.verdict(&mut parts)?;
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
        Ok(OpDecision { id, spec, verdict, attempt, group, held })
    }

    fn parts<'b>(
        &self,
        records: &[(Rank, &'b OpReport)],
        group: &[Rank],
        attempt: Attempt,
        plan: &Plan,
        OpId { comm, seq }: OpId,
        gave_up: bool,
    ) -> Vec<Part<'b>> {
        let chunks = plan.chunks.len() as u32;
        let begins = self.begins(comm);
        let of = |&rank: &Rank| {
            let occupant = self.view.occupant(rank);
            let live = occupant.is_some();
            let found = records.iter().find(|(r, _)| *r == rank).map(|(_, o)| *o);
            // A rank that did not act on the last decision restores first: what it has belongs to an old attempt.
            let record = found.filter(|o| live && o.attempt == attempt);
            let survivor = self.survivors.get(&rank);
            let report = survivor.and_then(|r| r.comms.iter().find(|c| c.comm == comm));
            let is_forgotten = found.is_none() && report.is_some_and(|c| c.next > seq);
            // What was called before the step, outside of one, is not replayed: others have it behind them.
            let is_outside = survivor.is_none() && seq < begins;
            let has_left = occupant.is_some_and(|member| self.evidence.left.contains(&member));
            Part {
                rank,
                live,
                record,
                is_called: found.is_some(),
                survives: survivor.is_some(),
                is_absentee: found.is_none() && !is_forgotten && !is_outside && (gave_up || has_left),
                is_forgotten,
                satisfied: is_forgotten || is_outside || record.is_some_and(|o| o.done),
                held: record.map_or_else(|| Bitmap::empty(chunks), |o| o.held.expand(chunks)),
                lost: record.map_or_else(|| Bitmap::empty(chunks), |o| o.lost.expand(chunks)),
            }
        };
        group.iter().map(of).collect()
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
        let mut providers = choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default();
        // Ranks that name other sizes break the caller's promise, not the transfer: the first that has begun is
        // believed, and one that has not must name the same when it does.
        let named = |rank: &Rank| self.survivors.get(rank).map_or(0, |r| r.step.state_bytes);
        let of_providers = providers.iter().map(named).find(|b| *b > 0);
        let bytes = of_providers.or_else(|| old().map(|(rank, _)| named(rank)).max()).unwrap_or(0);
        providers.retain(|rank| [0, bytes].contains(&named(rank)));
        (Some(StateDecision { committed: self.committed, providers, bytes, newcomers }), ranks)
    }
}
