//! What must hold in every run, one property a file.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_core::error::OpError;
use phalanx_core::ids::{DomainId, MemberId, OpId, Rank};
use phalanx_core::spec::Spec;
use phalanx_core::wire::message::Decision;

use super::scenario::Scenario;
use super::timeline::What;

mod bounded;
mod exact;
mod fence;
mod holders;
mod input;
mod liveness;
mod replay;
mod seats;
mod uniform;

pub use bounded::{Kept, at_rest};
pub use fence::stale;
pub use holders::{Part, orphan};
pub use input::spoiled;
pub use liveness::{deadline_us, hang};

/// The verdict of one op at one member.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The member.
    pub member: MemberId,
    /// Its seat.
    pub rank: Rank,
    /// The op.
    pub op: OpId,
    /// Contributors and the bytes it got, or the error.
    pub result: Result<(Vec<Rank>, Vec<u8>), Option<OpError>>,
}

/// The name of the checker that a violation comes from, as in `I4 holders`.
#[must_use]
pub fn checker_of(violation: &str) -> &str {
    violation.split(':').next().unwrap_or(violation)
}

/// All checkers of a run.
#[derive(Debug, Default)]
pub struct Checkers {
    exact: exact::Exact,
    uniform: uniform::Uniform,
    seats: seats::Seats,
    violations: Vec<String>,
    /// Calls and their ends since the timeline took them, where one is written.
    pub told: Option<Vec<What>>,
    /// Failure domains lost since everything was whole last.
    budget: BTreeSet<DomainId>,
    promised: u32,
    /// Ops that ended, with a result and with an error.
    pub ended: (u64, u64),
    /// Some op completed over fewer ranks than its communicator has.
    pub shrunk: bool,
}

impl Checkers {
    /// A member called an op.
    pub fn called(
        &mut self,
        s: &Scenario,
        by: MemberId,
        op: OpId,
        at: (u64, usize),
        spec: &Spec,
        state: u64,
    ) {
        self.told.iter_mut().for_each(|t| t.push(What::Calls(op, *spec)));
        self.uniform.unretained = s.unretained;
        self.exact.called(s, by, op, at, spec, state, &mut self.violations);
    }

    /// An op ended at a member.
    pub fn finished(&mut self, f: &Finished) {
        match f.result {
            Ok(_) => self.ended.0 += 1,
            Err(_) => self.ended.1 += 1,
        }
        let ends = |f: &Finished| match &f.result {
            Ok((ranks, _)) => Ok(ranks.len()),
            Err(error) => Err(error.as_ref().map_or_else(String::new, OpError::to_string)),
        };
        self.told.iter_mut().for_each(|t| t.push(What::Returns(f.op, ends(f))));
        self.exact.finished(f, &mut self.violations);
        let is_beyond = self.budget.len() > self.promised as usize;
        self.uniform.finished(f, is_beyond, &mut self.violations);
    }

    /// A decision was written.
    pub fn decided(&mut self, decision: &Decision) {
        self.seats.decided(decision, &mut self.violations);
        let is_beyond = self.budget.len() > self.promised as usize;
        self.uniform.decided(decision, is_beyond, &mut self.violations);
    }

    /// What a member keeps while ops run.
    pub fn kept(&mut self, member: MemberId, ops: usize, bytes: usize, ops_max: usize) {
        bounded::running(Kept { member, ops, bytes }, ops_max, &mut self.violations);
    }

    /// What a member keeps when all is over.
    pub fn kept_at_rest(&mut self, member: MemberId, ops: usize, bytes: usize) {
        at_rest(Kept { member, ops, bytes }, &mut self.violations);
    }

    /// Whether one more loss of `more` domains is still within the promise.
    pub fn is_within(&self, more: &BTreeSet<DomainId>, promised: u32) -> bool {
        self.budget.union(more).count() <= promised as usize
    }

    /// The coordinator gave the world up: more was lost than promised, or it must not.
    pub fn given_up(&mut self, why: &str) {
        if self.budget.len() <= self.promised as usize {
            let lost = &self.budget;
            self.violations.push(format!("P6 within the promise: given up with {lost:?} lost: {why}"));
        }
    }

    /// A violation seen elsewhere.
    pub fn report(&mut self, text: String) {
        self.violations.push(text);
    }

    /// A domain was lost, of so many that may be.
    pub fn domain_lost(&mut self, domain: DomainId, promised: u32) {
        self.budget.insert(domain);
        self.promised = promised;
    }

    /// Everything is whole again: the budget is renewed. False: nothing was spent of it.
    pub fn whole_again(&mut self) -> bool {
        !std::mem::take(&mut self.budget).is_empty()
    }

    /// A member was declared dead: what it says from here on does not count (P2, last sentence).
    pub fn lost(&mut self, member: MemberId) {
        self.uniform.lost(member);
        self.exact.lost(member);
    }

    /// Its death was declared by a coordinator that died before it wrote that: it goes on as before.
    pub fn not_lost(&mut self, member: MemberId) {
        self.uniform.not_lost(member);
        self.exact.not_lost(member);
    }

    /// What was found so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The results by op: for comparison with another run.
    pub fn results(&self) -> &BTreeMap<(OpId, Rank), u64> {
        self.uniform.results()
    }
}
