//! What becomes of one op: what its ranks hold, under rules R2 and R3 of the protocol.

use super::Overdue;
use crate::bitmap::Bitmap;
use crate::ids::{ChunkId, OpId, Rank};
use crate::plan::Plan;
use crate::policy::Policy;
use crate::spec::{Collective, Spec};
use crate::wire::message::{FailCause, Holding, Loss, OpReport, Verdict};

/// What one rank brings to one op.
pub(super) struct Part<'a> {
    pub(super) rank: Rank,
    pub(super) live: bool,
    pub(super) record: Option<&'a OpReport>,
    /// It has called the op; without a record, in another attempt than this.
    pub(super) is_called: bool,
    /// It answered the fence: not seated just now.
    pub(super) survives: bool,
    /// It has not called the op and never will: it left the run, or was given an error before.
    pub(super) is_absentee: bool,
    /// It called the op and knows it no more: it knew that every rank had it.
    pub(super) is_forgotten: bool,
    /// Had all it is due: it lacks nothing, whatever it holds now.
    pub(super) satisfied: bool,
    pub(super) held: Bitmap,
    pub(super) lost: Bitmap,
}

impl Part<'_> {
    pub(super) fn holding(&self) -> Holding {
        if self.satisfied && self.held.count() == 0 && !self.held.is_empty() {
            Holding::Satisfied {}
        } else if self.held.is_empty() {
            Holding::Nothing {}
        } else {
            Holding::of(&self.held)
        }
    }

    /// Lives and may still call the op.
    fn is_uncalled(&self) -> bool {
        self.live && !self.is_called && !self.satisfied
    }

    fn is_released(&self) -> bool {
        self.is_forgotten || self.record.is_some_and(|o| o.released)
    }
}

/// One op, as the ledgers show it.
pub(super) struct Case<'a> {
    pub(super) id: OpId,
    /// Over the contributor set, roots in its ranks.
    pub(super) spec: &'a Spec,
    pub(super) plan: &'a Plan,
    pub(super) policy: Policy,
    /// Losses among its ranks.
    pub(super) losses: Vec<Loss>,
    /// The error that later calls of its communicator get.
    pub(super) broken: Option<&'a FailCause>,
    /// Its deadline is over.
    pub(super) expired: bool,
}

impl Case<'_> {
    /// The verdict. Marks who is served nothing: where somebody has gone on with the result, an absentee does not
    /// hold up the others.
    ///
    /// # Errors
    /// When somebody has gone on with the result and others let the deadline pass without a call: they are the fault,
    /// not the op.
    pub(super) fn verdict(&self, parts: &mut [Part<'_>]) -> Result<Verdict, Overdue> {
        let released = parts.iter().any(Part::is_released);
        if released {
            parts.iter_mut().filter(|p| p.is_absentee).for_each(|p| p.satisfied = true);
        }
        let mut tally = Tally::of(self.spec, self.plan, parts);
        // A reduce whose root is gone: nobody lacks anything, and there is no sum.
        let is_rootless = self.spec.collective == Collective::Reduce
            && parts.get(self.spec.root.index()).is_some_and(|p| !p.live);
        if !tally.anybody_lacks && (released || !is_rootless) {
            return Ok(Verdict::Keep {});
        }
        tally.all_held &= tally.anybody_lacks;
        if released { self.of_released(&tally, parts) } else { Ok(self.of_unreleased(&tally, parts)) }
    }

    /// Somebody has gone on with the result: all others get it too, or more was lost than promised (P6).
    fn of_released(&self, tally: &Tally, parts: &[Part<'_>]) -> Result<Verdict, Overdue> {
        let late: Vec<Rank> = self.lacking_uncalled(parts).filter(|p| p.survives).map(|p| p.rank).collect();
        if self.expired && !late.is_empty() {
            return Err(Overdue { op: self.id, ranks: late });
        }
        if tally.all_held {
            return Ok(Verdict::Repair {});
        }
        let by = parts.iter().find(|p| p.is_released()).map_or_else(String::new, |p| p.rank.to_string());
        let absentee = parts.iter().find(|p| p.live && p.is_absentee);
        let why = if parts.iter().any(|p| !p.live) && !crate::planted!(ShrinkReleased) {
            format!("{by} was released from it, and a chunk of it is lost")
        } else if let Some(why) = &tally.lost_for_good {
            why.clone()
        } else if let Some(p) = absentee {
            format!(
                "{by} was released from it, a chunk of it is lost, and {} gives its Input no more",
                p.rank
            )
        } else if parts.iter().any(|p| !p.live) {
            return Ok(self.by_policy(parts)); // Reached with a planted fault only.
        } else {
            return Ok(Verdict::Repair {});
        };
        Ok(self.unrecoverable(why))
    }

    fn of_unreleased(&self, tally: &Tally, parts: &[Part<'_>]) -> Verdict {
        let missing: Vec<Rank> = parts.iter().filter(|p| p.is_uncalled()).map(|p| p.rank).collect();
        let gone = self.lacking_uncalled(parts).any(|p| p.is_absentee)
            || !tally.all_held && self.contributors(parts).any(|p| p.is_absentee);
        if let Some(cause) = self.broken.filter(|_| gone) {
            return Verdict::Fail { cause: cause.clone() };
        }
        if gone || self.expired && self.lacking_uncalled(parts).next().is_some() {
            return Verdict::Fail { cause: FailCause::Expired { missing } };
        }
        let vacancies = parts.iter().any(|p| !p.live);
        if tally.all_held && (vacancies || self.expired) && self.policy != Policy::Abort {
            // Final everywhere it can be served from: no reason to fail or to begin again.
            return Verdict::Repair {};
        }
        if let Some(cause) = self.broken {
            // Some caller has been given the error of an earlier op and will not call on.
            return Verdict::Fail { cause: cause.clone() };
        }
        if self.expired {
            return Verdict::Fail { cause: FailCause::Expired { missing } };
        }
        if vacancies {
            return self.by_policy(parts);
        }
        match &tally.lost_for_good {
            Some(why) => self.unrecoverable(why.clone()),
            None => Verdict::Repair {},
        }
    }

    /// A seat stays vacant and a chunk is nowhere Final.
    fn by_policy(&self, parts: &[Part<'_>]) -> Verdict {
        match self.policy {
            Policy::Shrink => shrink(self.spec, parts, self.losses.clone()),
            Policy::Replace | Policy::Abort => {
                Verdict::Fail { cause: FailCause::RankLost { losses: self.losses.clone() } }
            }
        }
    }

    fn unrecoverable(&self, why: String) -> Verdict {
        Verdict::Fail { cause: FailCause::Unrecoverable { losses: self.losses.clone(), why } }
    }

    /// Ranks whose Input some chunk needs.
    fn contributors<'p, 'b>(&self, parts: &'p [Part<'b>]) -> impl Iterator<Item = &'p Part<'b>> {
        let n = parts.len() as u32;
        let gives =
            move |rank| self.plan.chunks.iter().any(|c| contributes(self.spec, c.start, c.len, rank, n));
        parts.iter().enumerate().filter(move |(i, _)| gives(Rank(*i as u32))).map(|(_, p)| p)
    }

    /// Ranks that have not called it and are due something of it.
    fn lacking_uncalled<'p, 'b>(&self, parts: &'p [Part<'b>]) -> impl Iterator<Item = &'p Part<'b>> {
        let lacks = |i: usize, p: &Part<'_>| p.is_uncalled() && self.plan.lacks(Rank(i as u32), &p.held);
        parts.iter().enumerate().filter(move |(i, p)| lacks(*i, p)).map(|(_, p)| p)
    }
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
    /// Each chunk that somebody lacks is held by somebody else.
    all_held: bool,
    /// A chunk that is not held, and whose Input somebody has no longer.
    lost_for_good: Option<String>,
}

impl Tally {
    fn of(spec: &Spec, plan: &Plan, parts: &[Part<'_>]) -> Self {
        let n = parts.len() as u32;
        let mut tally = Self { anybody_lacks: false, all_held: true, lost_for_good: None };
        for (index, chunk) in plan.chunks.iter().enumerate() {
            let id = ChunkId(index as u32);
            let is_due = |i: usize| plan.is_due(id, Rank(i as u32));
            let lacks = |(i, p): (usize, &Part<'_>)| is_due(i) && p.live && !p.held.has(id) && !p.satisfied;
            if !parts.iter().enumerate().any(lacks) {
                continue;
            }
            tally.anybody_lacks = true;
            if parts.iter().any(|p| p.live && p.held.has(id)) {
                continue;
            }
            tally.all_held = false;
            let loser = parts.iter().enumerate().find(|(i, p)| {
                let gives = contributes(spec, chunk.start, chunk.len, Rank(*i as u32), n) && p.lost.has(id);
                // Whoever was released can neither serve it nor take it a second time.
                p.live && (gives || p.satisfied && is_due(*i))
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
