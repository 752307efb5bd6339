//! What the ranks of a run have said, and whether that is right: nothing here knows how a fault is done.

use std::collections::{BTreeMap, BTreeSet};

use phalanx::Rank;
use phalanx::core::policy::Policy;

use crate::chaos_report::{Ending, Report};

/// An op up to this size may be over at a rank before any other has its result (rule R2).
pub const SMALL_BYTES: u64 = 64 * 1024;
/// Reports since the mark that show that a rank goes on: the first may have been under way.
const GOES_ON: u32 = 2;

/// What one process has said.
#[derive(Default)]
pub struct Member {
    pub rank: Option<Rank>,
    /// From which op on who contributed.
    sets: Vec<(u64, Vec<Rank>)>,
    /// Of the last op that was told with it.
    epoch: u64,
    /// Reports since the mark.
    fresh: u32,
    pub ended: Option<(u64, Ending, String)>,
    pub last: String,
}

/// What all processes have said.
#[derive(Default)]
pub struct Heard {
    pub members: BTreeMap<u32, Member>,
    /// Who had each seat first.
    pub first: BTreeMap<Rank, u32>,
    /// Reports of wrong elements.
    pub wrong: Vec<String>,
}

impl Heard {
    /// Takes a line that a rank printed; `false`: it is no report.
    pub fn take(&mut self, line: &str) -> bool {
        let (Some(report), Some(pid)) = (Report::parse(line), Report::pid_of(line)) else { return false };
        let member = self.members.entry(pid).or_default();
        line.clone_into(&mut member.last);
        member.fresh += 1;
        let rank = match report {
            Report::Progress { rank, .. } => Some(rank),
            Report::Disturbed { rank, epoch, .. } => {
                member.epoch = epoch;
                Some(rank)
            }
            Report::Contributors { rank, op, ranks } => {
                member.sets.push((op, ranks));
                Some(rank)
            }
            Report::Wrong { rank, .. } => {
                self.wrong.push(line.to_owned());
                Some(rank)
            }
            Report::Ended { rank, op, how, text } => {
                member.ended = Some((op, how, text));
                rank
            }
        };
        if let Some(rank) = rank {
            member.rank = Some(rank);
            self.first.entry(rank).or_insert(pid);
        }
        true
    }

    /// From here on it counts who goes on.
    pub fn mark(&mut self) {
        self.members.values_mut().for_each(|member| member.fresh = 0);
    }

    /// Whoever has the seats now has had them from the first: of the others nothing need be known any more.
    pub fn settle(&mut self) {
        let epoch = self.epoch();
        let holds = |(pid, member): (&u32, &Member)| {
            (member.ended.is_none() && member.epoch == epoch).then_some((member.rank?, *pid))
        };
        self.first = self.members.iter().filter_map(holds).collect();
        let seated: BTreeSet<u32> = self.first.values().copied().collect();
        self.members.retain(|pid, _| seated.contains(pid));
        self.mark();
    }

    /// The latest epoch that anybody has told.
    pub fn epoch(&self) -> u64 {
        self.members.values().map(|member| member.epoch).max().unwrap_or(0)
    }

    /// Whether every rank has told the result of its first op.
    pub fn all_run(&self, ranks: u32) -> bool {
        (0..ranks).map(Rank).all(|rank| {
            self.first.get(&rank).and_then(|pid| self.members.get(pid)).is_some_and(|m| !m.sets.is_empty())
        })
    }

    /// How the process ended its run, if it told so.
    pub fn ended(&self, pid: u32) -> Option<&(u64, Ending, String)> {
        self.members.get(&pid)?.ended.as_ref()
    }

    /// Who ran in the seat at first and goes on.
    fn original(&self, rank: Rank) -> Option<&Member> {
        let member = self.members.get(self.first.get(&rank)?)?;
        member.ended.is_none().then_some(member)
    }
}

/// How a run came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// The same processes go on, and every result was right.
    Exact,
    /// Others sit in the lost seats, and every result was that of the run without a fault.
    Replaced,
    /// The survivors go on, and every result was the sum over those that it names.
    Shrunk,
    /// Every survivor has the same typed error about the same op.
    Aborted,
}

impl Outcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Replaced => "replaced",
            Self::Shrunk => "shrunk",
            Self::Aborted => "aborted",
        }
    }
}

/// What must come of a fault.
#[derive(Clone, Debug)]
pub struct Right {
    pub policy: Policy,
    pub ranks: u32,
    /// Who is lost.
    pub must: BTreeSet<Rank>,
    /// Who may be lost besides.
    pub may: BTreeSet<Rank>,
    /// The epoch after which everybody goes on.
    pub after_epoch: u64,
    /// Whether an op may be over at a rank before any other has its result.
    pub is_small: bool,
}

impl Right {
    fn all(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.ranks).map(Rank)
    }

    fn survivors(&self) -> impl Iterator<Item = Rank> {
        self.all().filter(|rank| !self.must.contains(rank))
    }

    /// Whether nobody need wait any more: all that must come has come, or something came that must not.
    pub fn is_over(&self, heard: &Heard) -> bool {
        self.outcome(heard).is_some() || !heard.wrong.is_empty() || !self.bad_ends(heard).is_empty()
    }

    /// How it came out; `None`: it has not yet.
    pub fn outcome(&self, heard: &Heard) -> Option<Outcome> {
        let epoch = heard.epoch();
        // Who ends with an error tells no epoch.
        let tells = self.policy != Policy::Abort || self.must.is_empty();
        if tells && epoch < self.after_epoch {
            return None;
        }
        let goes_on = |member: &Member| {
            member.epoch == epoch && member.fresh >= if self.must.is_empty() { GOES_ON } else { 1 }
        };
        let is_original = |rank: Rank| heard.original(rank).is_some_and(goes_on);
        if self.must.is_empty() && self.all().all(is_original) {
            return Some(Outcome::Exact);
        }
        match self.policy {
            Policy::Replace => {
                let has_occupant = |rank: Rank| {
                    let first = heard.first.get(&rank).filter(|_| self.must.contains(&rank));
                    heard.members.iter().any(|(pid, m)| {
                        m.rank == Some(rank) && m.ended.is_none() && Some(pid) != first && goes_on(m)
                    })
                };
                self.all().all(has_occupant).then_some(Outcome::Replaced)
            }
            Policy::Shrink => {
                let set_of = |rank: Rank| heard.original(rank).filter(|m| goes_on(m))?.sets.last();
                let (_, set) = self.survivors().find_map(set_of)?;
                let agree = set.iter().all(|rank| set_of(*rank).is_some_and(|(_, other)| other == set));
                let is_right = self.all().all(|rank| {
                    let is_lost = !set.contains(&rank);
                    if is_lost { self.may_be_lost(rank) } else { !self.must.contains(&rank) }
                });
                (agree && is_right && set.len() < self.ranks as usize).then_some(Outcome::Shrunk)
            }
            Policy::Abort => {
                let has_ended =
                    |rank: Rank| heard.first.get(&rank).is_some_and(|pid| heard.ended(*pid).is_some());
                let mut sure = self.survivors().filter(|rank| !self.may.contains(rank));
                sure.all(has_ended).then_some(Outcome::Aborted)
            }
        }
    }

    fn may_be_lost(&self, rank: Rank) -> bool {
        self.must.contains(&rank) || self.may.contains(&rank)
    }

    /// Endings that are not right.
    fn bad_ends(&self, heard: &Heard) -> Vec<String> {
        let is_allowed = |pid: u32, member: &Member, how: Ending| {
            let is_first = member.rank.is_some_and(|rank| heard.first.get(&rank) == Some(&pid));
            let may =
                member.rank.is_none_or(|rank| self.may_be_lost(rank)) && (is_first || member.rank.is_none());
            let is_common = self.policy == Policy::Abort && !(self.must.is_empty() && self.may.is_empty());
            // Who is lost may end in any way but with a wrong number. Its successor may be put out as well, where a
            // rank cannot reach anybody.
            let is_out = how == Ending::Evicted && !self.may.is_empty();
            let is_successor = member.rank.is_some_and(|rank| self.may_be_lost(rank));
            may || (is_successor && is_out) || (is_common && how == Ending::Aborted)
        };
        let bad = heard.members.iter().filter_map(|(pid, member)| {
            let (op, how, text) = member.ended.as_ref()?;
            (!is_allowed(*pid, member, *how)).then(|| {
                let rank = member.rank.map_or_else(|| "a spare".to_owned(), |rank| rank.to_string());
                format!("{rank} (process {pid}) ended in op {op}: {text}")
            })
        });
        bad.collect()
    }

    /// All that is not right about what was said, once it is over.
    pub fn complaints(&self, heard: &Heard) -> Vec<String> {
        let mut out = heard.wrong.clone();
        out.extend(self.bad_ends(heard));
        out.extend(match self.policy {
            Policy::Replace => self.without_all(heard),
            Policy::Shrink => self.other_sets(heard),
            Policy::Abort => self.other_ends(heard),
        });
        out
    }

    /// Under replace every result is that of all ranks.
    fn without_all(&self, heard: &Heard) -> Vec<String> {
        let all: Vec<Rank> = self.all().collect();
        let sets = heard.members.values().flat_map(|m| m.sets.iter().map(move |set| (m.rank, set)));
        let bad = sets.filter(|(_, (_, set))| *set != all);
        bad.map(|(rank, (op, set))| format!("{rank:?}: op {op} is the sum over {set:?} only")).collect()
    }

    /// Under shrink the survivors name the same contributors from the same ops on, and no op that is over at a lost
    /// rank has others at a survivor.
    fn other_sets(&self, heard: &Heard) -> Vec<String> {
        let member = |rank: Rank| heard.first.get(&rank).and_then(|pid| heard.members.get(pid));
        let mut out = Vec::new();
        let last = self.survivors().filter_map(|rank| Some((rank, member(rank)?)));
        let Some((witness, of)) = last.max_by_key(|(_, m)| m.sets.len()) else { return out };
        let survives = |rank: &Rank| of.sets.last().is_some_and(|(_, set)| set.contains(rank));
        for (rank, m) in self.all().filter_map(|rank| Some((rank, member(rank)?))) {
            if survives(&rank) && m.sets != of.sets {
                out.push(format!("contributors differ: {rank} {:?}, {witness} {:?}", m.sets, of.sets));
            }
            let Some((op, ..)) = m.ended.as_ref().filter(|_| !survives(&rank) && !self.is_small) else {
                continue;
            };
            // It has the results of all ops before the one that it ended in.
            let set_at = |op: u64, sets: &[(u64, Vec<Rank>)]| {
                sets.iter().rev().find(|(from, _)| *from <= op).map(|(_, set)| set.clone())
            };
            let before = op.checked_sub(1);
            if let Some(op) = before.filter(|op| set_at(*op, &m.sets) != set_at(*op, &of.sets)) {
                out.push(format!(
                    "op {op} has others at {rank}, which was lost: {:?}, {:?}",
                    m.sets, of.sets
                ));
            }
        }
        out
    }

    /// Under abort the survivors have the same error about the same op.
    fn other_ends(&self, heard: &Heard) -> Vec<String> {
        let sure = self.survivors().filter(|rank| !self.may.contains(rank));
        let ends = sure.filter_map(|rank| heard.ended(*heard.first.get(&rank)?));
        // Before its cause an error names the rank that it came to, and the epoch in which it did.
        let cause = |text: &str| {
            text.split_once(" in e").and_then(|(_, of)| of.split_once(": ")).map(|(_, c)| c.to_owned())
        };
        let distinct: BTreeSet<(u64, Option<String>)> =
            ends.map(|(op, _, text)| (*op, cause(text))).collect();
        if distinct.len() > 1 { vec![format!("the errors differ: {distinct:?}")] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: u32 = 3;

    fn right(policy: Policy, must: &[u32], may: &[u32]) -> Right {
        let set = |ranks: &[u32]| ranks.iter().copied().map(Rank).collect();
        let after_epoch = if must.is_empty() { 0 } else { 2 };
        Right { policy, ranks: RANKS, must: set(must), may: set(may), after_epoch, is_small: false }
    }

    fn ranks(list: &[u32]) -> Vec<Rank> {
        list.iter().copied().map(Rank).collect()
    }

    fn tell(heard: &mut Heard, pid: u32, report: Report) {
        assert!(heard.take(&report.to_line(pid)));
    }

    fn disturbed(heard: &mut Heard, pid: u32, rank: u32, epoch: u64) {
        tell(heard, pid, Report::Disturbed { rank: Rank(rank), op: 1, epoch, done_us: 0, fill_us: 0 });
    }

    fn contributors(heard: &mut Heard, rank: u32, op: u64, of: &[u32]) {
        tell(heard, rank, Report::Contributors { rank: Rank(rank), op, ranks: ranks(of) });
    }

    fn ended(heard: &mut Heard, rank: u32, op: u64, how: Ending) {
        let text = format!("op {op} failed on r{rank} in e2: lost r1");
        tell(heard, rank, Report::Ended { rank: Some(Rank(rank)), op, how, text });
    }

    /// Ranks 0 to 2 are processes 0 to 2, and run.
    fn running() -> Heard {
        let mut heard = Heard::default();
        for rank in 0..RANKS {
            disturbed(&mut heard, rank, rank, 1);
            contributors(&mut heard, rank, 0, &[0, 1, 2]);
        }
        assert!(heard.all_run(RANKS) && !heard.all_run(RANKS + 1));
        heard.mark();
        heard
    }

    #[test]
    fn nobody_lost_means_that_the_same_processes_go_on() {
        let right = right(Policy::Replace, &[], &[]);
        let mut heard = running();
        let progress = |heard: &mut Heard, pid: u32, rank: u32| {
            tell(heard, pid, Report::Progress { rank: Rank(rank), op: 9, op_us: 1 });
        };
        for rank in [0, 0, 1, 1, 2] {
            progress(&mut heard, rank, rank);
        }
        assert_eq!(right.outcome(&heard), None, "one report may have been under way");
        progress(&mut heard, 7, 2);
        assert!(!right.is_over(&heard), "another process is no proof");
        progress(&mut heard, 2, 2);
        assert_eq!(right.outcome(&heard), Some(Outcome::Exact));
        assert!(right.complaints(&heard).is_empty());
        ended(&mut heard, 1, 12, Ending::Evicted);
        assert!(right.is_over(&heard) && right.complaints(&heard).len() == 1);
    }

    #[test]
    fn a_replaced_rank_is_another_process_in_the_epoch_of_all() {
        let right = right(Policy::Replace, &[1], &[]);
        let mut heard = running();
        for rank in [0, 1, 2] {
            disturbed(&mut heard, rank, rank, 2);
        }
        assert_eq!(right.outcome(&heard), None, "the lost one itself is no successor");
        disturbed(&mut heard, 7, 1, 2);
        assert_eq!(right.outcome(&heard), Some(Outcome::Replaced));
        disturbed(&mut heard, 0, 0, 3);
        assert_eq!(right.outcome(&heard), None, "the others have not come to the last epoch");
        assert!(right.complaints(&heard).is_empty());
        contributors(&mut heard, 0, 5, &[0, 2]);
        assert_eq!(right.complaints(&heard).len(), 1, "a sum without a rank is another one");
    }

    #[test]
    fn a_wrong_element_is_never_right() {
        for policy in [Policy::Replace, Policy::Shrink, Policy::Abort] {
            let (right, mut heard) = (right(policy, &[1], &[0, 2]), running());
            tell(&mut heard, 1, Report::Wrong { rank: Rank(1), op: 3, elements: 1, at: 0, is: 1, should: 2 });
            assert!(right.is_over(&heard));
            assert_eq!(right.complaints(&heard).len(), 1, "{policy}");
        }
    }

    #[test]
    fn a_shrunk_world_names_the_same_contributors_from_the_same_op_on() {
        let right = right(Policy::Shrink, &[1], &[]);
        let shrunk = |last_op: u64, of: &[u32]| {
            let mut heard = running();
            for (rank, op) in [(0, 4), (2, last_op)] {
                disturbed(&mut heard, rank, rank, 2);
                contributors(&mut heard, rank, op, if rank == 0 { &[0, 2] } else { of });
            }
            heard
        };
        let good = shrunk(4, &[0, 2]);
        assert_eq!((right.outcome(&good), right.complaints(&good).len()), (Some(Outcome::Shrunk), 0));
        assert_eq!(right.complaints(&shrunk(5, &[0, 2])).len(), 1, "from another op on");
        assert_eq!(right.outcome(&shrunk(4, &[2])), None, "another set");
        // The lost one was given an op that the survivors have without it.
        let mut heard = shrunk(4, &[0, 2]);
        ended(&mut heard, 1, 5, Ending::Evicted);
        assert_eq!(right.complaints(&heard).len(), 1);
        assert!(Right { is_small: true, ..right.clone() }.complaints(&heard).is_empty());
        let mut heard = shrunk(4, &[0, 2]);
        ended(&mut heard, 1, 4, Ending::Evicted);
        assert!(right.complaints(&heard).is_empty());
        let surprised = Right { must: BTreeSet::new(), after_epoch: 0, ..right };
        assert_eq!(surprised.outcome(&good), None, "nobody had to be lost");
    }

    #[test]
    fn an_abort_is_the_same_error_about_the_same_op_at_every_survivor() {
        let right = right(Policy::Abort, &[1], &[]);
        let aborted = |op, how| {
            let mut heard = running();
            disturbed(&mut heard, 0, 0, 2);
            ended(&mut heard, 0, 6, Ending::Aborted);
            assert_eq!(right.outcome(&heard), None, "rank 2 goes on");
            ended(&mut heard, 2, op, how);
            heard
        };
        let good = aborted(6, Ending::Aborted);
        assert_eq!((right.outcome(&good), right.complaints(&good).len()), (Some(Outcome::Aborted), 0));
        assert_eq!(right.complaints(&aborted(7, Ending::Aborted)).len(), 1, "another op");
        assert_eq!(right.complaints(&aborted(6, Ending::Failed)).len(), 1, "another error");
    }

    #[test]
    fn who_may_be_lost_may_also_go_on() {
        let may = right(Policy::Shrink, &[], &[1]);
        let mut heard = running();
        for rank in [0, 0, 1, 1, 2, 2] {
            disturbed(&mut heard, rank, rank, 2);
        }
        assert_eq!(may.outcome(&heard), Some(Outcome::Exact));
        contributors(&mut heard, 0, 9, &[0, 2]);
        contributors(&mut heard, 2, 9, &[0, 2]);
        ended(&mut heard, 1, 9, Ending::Evicted);
        assert_eq!((may.outcome(&heard), may.complaints(&heard).len()), (Some(Outcome::Shrunk), 0));
    }
}
