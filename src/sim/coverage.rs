//! Which states a fault has struck: phase × fault × kind of op in flight × policy, counted.
//!
//! A cell that a long run never reaches is a failure of the draw; a cell that cannot exist says why.

use phalanx_core::policy::Policy;
use phalanx_core::spec::Collective;

use super::scenario::FaultKind;

/// Where the world stands when a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Not every seat has been taken yet, or the first view is being written.
    Forming,
    /// No fence is open and nothing is left to repair.
    Steady,
    /// A loss is being written, or survivors are being asked.
    Fencing,
    /// All have answered; a seat waits for a spare.
    Vacant,
    /// The decision is being written.
    Deciding,
    /// A newcomer has not the state and the step yet.
    Reseating,
    /// All seats have who belongs there; not everyone has acted on the decision, or ops are being repaired.
    Repairing,
    /// The coordinator is away, or is back and waits for its members.
    Leaderless,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 8] = [
        Self::Forming,
        Self::Steady,
        Self::Fencing,
        Self::Vacant,
        Self::Deciding,
        Self::Reseating,
        Self::Repairing,
        Self::Leaderless,
    ];
}

/// Kinds of op in flight; `None`: no op is.
pub const OPS: [Option<Collective>; 9] = [
    None,
    Some(Collective::AllReduce),
    Some(Collective::AllGather),
    Some(Collective::ReduceScatter),
    Some(Collective::Broadcast),
    Some(Collective::Reduce),
    Some(Collective::Barrier),
    Some(Collective::Commit),
    Some(Collective::State),
];

/// One cell of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    /// The world's policy.
    pub policy: Policy,
    /// Where the world stands.
    pub phase: Phase,
    /// What strikes.
    pub fault: FaultKind,
    /// What is in flight.
    pub op: Option<Collective>,
}

impl Cell {
    /// Every cell, those that cannot exist too.
    pub fn all() -> impl Iterator<Item = Self> {
        let phases = |policy| Phase::ALL.into_iter().map(move |phase| (policy, phase));
        let faults = |(policy, phase)| FaultKind::ALL.into_iter().map(move |fault| (policy, phase, fault));
        let ops = |(policy, phase, fault)| OPS.into_iter().map(move |op| Self { policy, phase, fault, op });
        Policy::ALL.iter().copied().flat_map(phases).flat_map(faults).flat_map(ops)
    }

    fn index(self) -> usize {
        let at = |found: Option<usize>| found.unwrap_or(0);
        let policy = at(Policy::ALL.iter().position(|p| *p == self.policy));
        let op = at(OPS.iter().position(|o| *o == self.op));
        ((policy * Phase::ALL.len() + self.phase as usize) * FaultKind::ALL.len() + self.fault as usize)
            * OPS.len()
            + op
    }

    /// Why there is no such state; `None`: there is.
    #[must_use]
    pub fn impossible(self) -> Option<&'static str> {
        let replaces = self.policy == Policy::Replace;
        let step_only = matches!(self.op, Some(Collective::Commit | Collective::State));
        if self.phase == Phase::Forming && self.op.is_some() {
            return Some("no op is called before the world has formed");
        }
        if !replaces && matches!(self.phase, Phase::Vacant | Phase::Reseating) {
            return Some("only under replace does a vacant seat wait for a spare");
        }
        if !replaces && step_only {
            return Some("only a step has a state and a commit");
        }
        if self.op == Some(Collective::State) && matches!(self.phase, Phase::Steady | Phase::Repairing) {
            return Some("a state under way is what makes the phase reseating");
        }
        match self.fault {
            FaultKind::BreakLink | FaultKind::Flap if self.phase == Phase::Forming => {
                Some("no link has carried anything before the world has formed")
            }
            FaultKind::KillHolder if self.op.is_none() => Some("without an op nobody holds a part of one"),
            FaultKind::KillNewcomer
                if !replaces || matches!(self.phase, Phase::Forming | Phase::Steady | Phase::Repairing) =>
            {
                Some("there is no newcomer then")
            }
            FaultKind::SlowStore | FaultKind::RefusingStore
                if !matches!(self.phase, Phase::Forming | Phase::Fencing | Phase::Deciding) =>
            {
                Some("nothing is written then")
            }
            FaultKind::KillRank
            | FaultKind::KillRun
            | FaultKind::KillHost
            | FaultKind::KillHolder
            | FaultKind::KillNewcomer
            | FaultKind::KillSpare
            | FaultKind::Stop
            | FaultKind::Slow
            | FaultKind::BreakLink
            | FaultKind::Flap
            | FaultKind::LinkDown
            | FaultKind::OneWay
            | FaultKind::Suspect
            | FaultKind::Partition
            | FaultKind::Cut
            | FaultKind::Mute
            | FaultKind::Deaf
            | FaultKind::RestartCoordinator
            | FaultKind::LoseCoordinator
            | FaultKind::SlowStore
            | FaultKind::RefusingStore => None,
        }
    }

    fn name(self) -> String {
        let op = self.op.map_or("no op", Collective::name);
        format!("{} {:?} {:?} {op}", self.policy.name(), self.phase, self.fault)
    }
}

/// How often a fault struck each cell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        let cells = Policy::ALL.len() * Phase::ALL.len() * FaultKind::ALL.len() * OPS.len();
        Self { counts: vec![0; cells] }
    }
}

impl Coverage {
    /// Counts a strike.
    pub fn count(&mut self, cell: Cell) {
        self.counts[cell.index()] += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, more)| *mine += more);
    }

    /// Strikes in a cell.
    #[must_use]
    pub fn of(&self, cell: Cell) -> u64 {
        self.counts[cell.index()]
    }

    /// Cells that exist.
    #[must_use]
    pub fn possible() -> usize {
        Cell::all().filter(|c| c.impossible().is_none()).count()
    }

    /// Cells that exist and that no fault struck, by name.
    #[must_use]
    pub fn unreached(&self) -> Vec<String> {
        let empty = Cell::all().filter(|c| c.impossible().is_none() && self.of(*c) == 0);
        empty.map(Cell::name).collect()
    }

    /// Cells that cannot exist and that a fault struck all the same: the reason is wrong.
    #[must_use]
    pub fn absurd(&self) -> Vec<String> {
        let struck = Cell::all().filter(|c| c.impossible().is_some() && self.of(*c) > 0);
        struck.map(Cell::name).collect()
    }

    /// Tables in Markdown, one a policy: a row a fault, a column a phase; in each cell the fewest strikes over the
    /// kinds of op that can be in flight there, `-` where none can.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for &policy in Policy::ALL {
            text += &format!("\n| {} |", policy.name());
            Phase::ALL.iter().for_each(|phase| text += &format!(" {phase:?} |"));
            text += &format!("\n|---|{}", "---|".repeat(Phase::ALL.len()));
            for fault in FaultKind::ALL {
                text += &format!("\n| {fault:?} |");
                for phase in Phase::ALL {
                    let cells = OPS.into_iter().map(|op| Cell { policy, phase, fault, op });
                    let least = cells.filter(|c| c.impossible().is_none()).map(|c| self.of(c)).min();
                    text += &least.map_or_else(|| " - |".to_owned(), |n| format!(" {n} |"));
                }
            }
            text.push('\n');
        }
        text
    }

    /// The reasons why cells do not exist, each with how many cells it rules out.
    #[must_use]
    pub fn reasons() -> Vec<(&'static str, usize)> {
        let mut reasons: Vec<(&str, usize)> = Vec::new();
        for reason in Cell::all().filter_map(Cell::impossible) {
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, cells)) => *cells += 1,
                None => reasons.push((reason, 1)),
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_a_place_of_its_own_and_an_empty_one_is_named() {
        let places: std::collections::BTreeSet<usize> = Cell::all().map(Cell::index).collect();
        assert_eq!(places.len(), Cell::all().count());
        let mut coverage = Coverage::default();
        Cell::all().filter(|c| c.impossible().is_none()).for_each(|c| coverage.count(c));
        assert_eq!((coverage.unreached(), coverage.absurd()), (Vec::new(), Vec::new()));
        let ruled_out: usize = Coverage::reasons().iter().map(|(_, cells)| cells).sum();
        assert_eq!(ruled_out + Coverage::possible(), Cell::all().count());
        let cell = Cell {
            policy: Policy::Shrink,
            phase: Phase::Forming,
            fault: FaultKind::Stop,
            op: Some(Collective::Barrier),
        };
        coverage.count(cell);
        assert_eq!(coverage.absurd(), ["shrink Forming Stop barrier"]);
        assert_eq!(Coverage::default().unreached().len(), Coverage::possible());
    }
}
