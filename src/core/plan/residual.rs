//! What is left to do of an op after a fence: rules R2 and R3 of the protocol for one op.
//!
//! A residual plan has two phases, both in ascending chunk order at every rank.
//!
//! **Hand on** (phase H): a chunk that a live rank holds as Final goes to every live receiver that lacks it. A lacking
//! rank takes it from its nearest live ancestor on the chunk's path, whether that one held it from the start or takes
//! it first itself. A lacking *head*, a rank with no live ancestor (the owner, or a rank whose ancestors are all
//! vacant), takes it from the lowest live rank that holds it: any holder may serve a head, the lowest is a choice that
//! all ranks make alike. A rank that was released with all it is due, and holds the chunk no longer, is passed over
//! like a vacant one: it can neither take it nor hand it on.
//!
//! **Reduce again** (phase R): a chunk that nobody holds is still Input everywhere, so the plan's own steps for it run
//! again, which gives the same association and the same bits. A rank that is vacant has no input: then the op needs
//! a new attempt over the survivors, and [`residual`] says so.
//!
//! *No deadlock, even with one slot a link.* Phase H: order the steps by chunk, within a chunk by depth below the rank
//! that serves first. A take of chunk `c` waits for a rank that is busy with a smaller chunk, or with `c` at a
//! smaller depth, or with another send of `c`. A send of `c` waits for its receiver to take an earlier message of
//! the same link, which is about a smaller chunk. So a waiting step waits for a smaller one only, and the smallest
//! runs. Phase R: a step waits for (1) the step before it, (2) the send of what it takes, (3) the take of the message
//! `slots` places ahead of it on the link. Leaving out all steps of some chunks at all ranks brings messages of a
//! link nearer together, never farther apart, so each remaining wait is implied by waits of the whole plan, which
//! has no cycle. In sequence: on every link the messages of phase H come first, so no step of H waits for one of R.

use std::borrow::Cow;

use crate::bitmap::Bitmap;
use crate::ids::{ChunkId, DomainId, Rank};
use crate::plan::{Chunk, Place, Plan, Spread, Step};

/// Why an op cannot be finished from where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResidualError {
    /// No live rank holds the chunk, and a vacant rank's input for it is gone.
    #[error("no live rank holds {chunk} and {vacant} is vacant; begin a new attempt over the survivors")]
    Lost {
        /// The chunk.
        chunk: ChunkId,
        /// The lowest vacant rank.
        vacant: Rank,
    },
    /// The tables do not describe this plan.
    #[error("{what} has {given} entries where the plan has {wanted}; the ledgers are of another op or view")]
    Shape {
        /// Which table.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The plan's.
        wanted: usize,
    },
    /// A vacant rank has no part.
    #[error("{rank} is vacant; a residual plan is for a rank that lives")]
    VacantRank {
        /// The rank asked for.
        rank: Rank,
    },
}

/// The paths of an op with some ranks left out: the vacant ones, and for one chunk those that [`away`] names.
#[derive(Clone, Copy)]
pub(crate) struct Paths<'a> {
    pub(crate) spread: Spread,
    pub(crate) world_size: u32,
    pub(crate) away: &'a [bool],
}

/// Who has no part in handing on `chunk`: vacant ranks, and satisfied ones that do not hold it.
pub(crate) fn away<'a>(
    chunk: ChunkId,
    holdings: &[Bitmap],
    satisfied: &[bool],
    vacant: &'a [bool],
) -> Cow<'a, [bool]> {
    let passes = |i: usize| satisfied[i] && !holdings[i].has(chunk);
    if !(0..vacant.len()).any(passes) {
        return Cow::Borrowed(vacant);
    }
    vacant.iter().enumerate().map(|(i, v)| *v || passes(i)).collect()
}

impl Paths<'_> {
    fn is_away(&self, rank: Rank) -> bool {
        self.away.get(rank.index()).copied().unwrap_or(false)
    }

    /// The nearest rank above `rank` that takes part.
    fn parent(&self, owner: Rank, rank: Rank) -> Option<Rank> {
        self.spread.ancestors(owner, rank, self.world_size).find(|&above| !self.is_away(above))
    }

    /// `ranks` with each one that is away replaced by those just below it that are not.
    fn live(&self, owner: Rank, mut ranks: Vec<Rank>) -> Vec<Rank> {
        let mut out = Vec::new();
        ranks.reverse();
        while let Some(rank) = ranks.pop() {
            if self.is_away(rank) {
                ranks.extend(self.spread.children(owner, rank, self.world_size).into_iter().rev());
            } else {
                out.push(rank);
            }
        }
        out
    }

    /// The live ranks just below `rank`.
    fn children(&self, owner: Rank, rank: Rank) -> Vec<Rank> {
        self.live(owner, self.spread.children(owner, rank, self.world_size))
    }

    /// The live receivers without a live ancestor.
    fn heads(&self, owner: Rank) -> Vec<Rank> {
        self.live(owner, vec![owner])
    }

    /// Who hands `rank` the Final of a chunk of `owner`, given the rank that serves heads. `None`: nobody, it is made
    /// there.
    pub(crate) fn server(&self, owner: Rank, rank: Rank, lowest_holder: Option<Rank>) -> Option<Rank> {
        self.parent(owner, rank).or(lowest_holder)
    }

    /// The live ranks to which a Final spreads from `from`, each with at most `domains_max` domains strictly between
    /// it and the ranks above `from`.
    fn reach(&self, owner: Rank, from: Vec<Rank>, domain_of: &[DomainId], domains_max: u32) -> Vec<Rank> {
        let mut out = Vec::new();
        let mut open: Vec<(Rank, Vec<DomainId>)> = from.into_iter().map(|rank| (rank, Vec::new())).collect();
        while let Some((rank, mut between)) = open.pop() {
            out.push(rank);
            let domain = domain_of[rank.index()];
            if !between.contains(&domain) {
                between.push(domain);
            }
            if between.len() <= domains_max as usize {
                open.extend(self.children(owner, rank).into_iter().map(|below| (below, between.clone())));
            }
        }
        out
    }
}

/// The lowest live rank that holds `chunk` and may serve it.
pub(crate) fn lowest_holder(
    paths: &Paths<'_>,
    holdings: &[Bitmap],
    owner: Rank,
    chunk: ChunkId,
) -> Option<Rank> {
    let serves = |rank: &Rank| paths.spread != Spread::Single || *rank == owner;
    let holds = |rank: &Rank| !paths.is_away(*rank) && holdings[rank.index()].has(chunk);
    (0..paths.world_size).map(Rank).find(|rank| holds(rank) && serves(rank))
}

/// The part of `plan.rank` in finishing the op of `plan`: `holdings[r]` are the chunks rank `r` holds as Final (none,
/// for a newcomer), `satisfied[r]` says that it was released with all it is due (it lacks nothing, and serves only
/// what it holds), `vacant[r]` that nobody sits there. All ranks must pass the same tables.
///
/// # Errors
/// When a chunk that a live rank lacks is held by no live rank while a rank is vacant; when a table is not of this op;
/// when the rank is vacant.
pub fn residual(
    plan: &Plan,
    holdings: &[Bitmap],
    satisfied: &[bool],
    vacant: &[bool],
) -> Result<Plan, ResidualError> {
    check(plan, holdings, satisfied, vacant)?;
    let mut again = Bitmap::empty(plan.chunks.len() as u32);
    let mut steps = Vec::new();
    for (i, chunk) in plan.chunks.iter().enumerate() {
        let id = ChunkId(i as u32);
        let away = away(id, holdings, satisfied, vacant);
        let paths = Paths { spread: plan.spread, world_size: plan.world_size, away: &away };
        let lacks =
            |rank: &Rank| !paths.is_away(*rank) && !holdings[rank.index()].has(id) && plan.is_due(id, *rank);
        if !(0..plan.world_size).map(Rank).any(|rank| lacks(&rank)) {
            continue;
        }
        match lowest_holder(&paths, holdings, chunk.owner, id) {
            Some(lowest) => hand_on(plan.rank, id, chunk.owner, lowest, &paths, lacks, &mut steps),
            None => again.insert(id),
        }
    }
    let gone = vacant.iter().position(|&v| v);
    if let (Some(chunk), Some(vacant)) = (again.iter().next(), gone) {
        return Err(ResidualError::Lost { chunk, vacant: Rank(vacant as u32) });
    }
    steps.extend(plan.steps.iter().filter(|step| again.has(step.chunk())));
    Ok(Plan { steps, chunks: plan.chunks.clone(), ..*plan })
}

fn check(plan: &Plan, holdings: &[Bitmap], satisfied: &[bool], vacant: &[bool]) -> Result<(), ResidualError> {
    let (ranks, chunks) = (plan.world_size as usize, plan.chunks.len());
    let shape = |what, given, wanted| {
        if given == wanted { Ok(()) } else { Err(ResidualError::Shape { what, given, wanted }) }
    };
    shape("the table of holdings", holdings.len(), ranks)?;
    shape("the table of satisfied ranks", satisfied.len(), ranks)?;
    shape("the table of vacant ranks", vacant.len(), ranks)?;
    for held in holdings {
        shape("a rank's holdings", held.len() as usize, chunks)?;
    }
    if vacant[plan.rank.index()] {
        return Err(ResidualError::VacantRank { rank: plan.rank });
    }
    Ok(())
}

/// Phase H for one chunk at `me`: take it if it is lacking, then send it to those that lack it and hang on `me`.
fn hand_on(
    me: Rank,
    chunk: ChunkId,
    owner: Rank,
    lowest: Rank,
    paths: &Paths<'_>,
    lacks: impl Fn(&Rank) -> bool,
    steps: &mut Vec<Step>,
) {
    if paths.spread == Spread::Single || paths.is_away(me) {
        return;
    }
    if lacks(&me)
        && let Some(from) = paths
            .server(owner, me, Some(lowest))
            .map(|s| if crate::planted!(OutOfOrder) { lowest } else { s })
    {
        steps.push(Step::Take { chunk, from, into: Place::Output });
    }
    let heads = if me == lowest { paths.heads(owner) } else { Vec::new() };
    if crate::planted!(OutOfOrder) {
        let all = (0..paths.world_size).map(Rank).filter(|to| me == lowest && lacks(to));
        steps.extend(all.map(|to| Step::Send { chunk, from: Place::Output, to }));
        return;
    }
    let served = heads.into_iter().chain(paths.children(owner, me)).filter(lacks);
    steps.extend(served.map(|to| Step::Send { chunk, from: Place::Output, to }));
}

/// Rule R2: the ranks that must have confirmed the whole op before `wait()` may return at `rank`.
///
/// For each chunk these are the live ranks further down its path with at most `domains_lost_max` domains strictly
/// between, and, on a tree, if `rank` is a top rank (its live ancestors lie in at most so many domains), all other top
/// ranks.
/// With [`Spread::Single`] it is every live rank: stronger than the rule asks, which counts partials kept before the
/// owner. Sorted, without `rank` itself. `domain_of` and `vacant` are per rank.
///
/// # Panics
/// When a table is shorter than `world_size`.
#[must_use]
pub fn release_set(
    spread: Spread,
    chunks: &[Chunk],
    rank: Rank,
    world_size: u32,
    domain_of: &[DomainId],
    vacant: &[bool],
    domains_lost_max: u32,
) -> Vec<Rank> {
    let ranks = world_size as usize;
    assert!(domain_of.len() >= ranks && vacant.len() >= ranks, "a table is shorter than {ranks} ranks");
    let paths = Paths { spread, world_size, away: vacant };
    let mut wanted = vec![false; ranks];
    let mut seen = vec![false; ranks];
    for owner in chunks.iter().map(|chunk| chunk.owner) {
        if std::mem::replace(&mut seen[owner.index()], true) {
            continue;
        }
        let mut add = |found: Vec<Rank>| found.iter().for_each(|r| wanted[r.index()] = true);
        match spread {
            Spread::Single => add((0..world_size).map(Rank).filter(|r| !paths.is_away(*r)).collect()),
            Spread::Chain => {
                add(paths.reach(owner, paths.children(owner, rank), domain_of, domains_lost_max))
            }
            Spread::Kary(_) | Spread::Binomial | Spread::Doubling | Spread::Star => {
                add(paths.reach(owner, paths.children(owner, rank), domain_of, domains_lost_max));
                let top = paths.reach(owner, paths.heads(owner), domain_of, domains_lost_max);
                if top.contains(&rank) && !crate::planted!(NoTopRule) {
                    add(top);
                }
            }
        }
    }
    wanted[rank.index()] = false;
    (0..world_size).map(Rank).filter(|r| wanted[r.index()]).collect()
}

#[cfg(test)]
#[path = "residual_tests.rs"]
mod tests;
