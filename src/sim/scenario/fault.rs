//! What goes wrong, and when.

use phalanx_core::ids::Rank;
use phalanx_core::spec::Collective;

use super::Scenario;
use crate::sim::coverage::Phase;

/// A fault. Ranks and hosts are numbers, a spare is the n-th; times are in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The occupant of a rank is killed.
    KillRank(u32),
    /// The n-th spare is killed.
    KillSpare(u32),
    /// All members of a host are killed.
    KillHost(u32),
    /// The occupant of a rank stops for longer than its eviction, then goes on.
    Stop(u32),
    /// The coordinator dies and comes back from its store.
    RestartCoordinator,
    /// So many ranks in a row are killed at once.
    KillRun(u32, u32),
    /// The links between two ranks break; both live.
    BreakLink(u32, u32),
    /// The control connection of a rank is gone for a while, its links to other ranks are not.
    Cut(u32),
    /// The lowest rank that holds a chunk of an op which another one lacks is killed.
    KillHolder,
    /// The lowest rank whose occupant has a seat and not yet the state and the step is killed.
    KillNewcomer,
    /// The first rank takes its link with the second for broken; it is whole.
    Suspect(u32, u32),
    /// The links between two ranks break again and again.
    Flap(u32, u32),
    /// The links between two ranks break, and every new one does so for so long.
    LinkDown(u32, u32, u32),
    /// What the first rank sends to the second stays under way for so long; the other direction works.
    OneWay(u32, u32, u32),
    /// So many ranks in a row are split from the other ranks and from the coordinator for so long.
    Partition(u32, u32, u32),
    /// What a rank says to the coordinator stays under way for so long.
    Mute(u32, u32),
    /// What the coordinator says to a rank stays under way for so long.
    Deaf(u32, u32),
    /// Every turn of a rank comes late for so long.
    Slow(u32, u32),
    /// The coordinator dies and never comes back.
    LoseCoordinator,
    /// The store takes so long for its next write.
    SlowStore(u32),
    /// The store refuses the next write, which ends the coordinator; it comes back later. True: the write was made, and
    /// only the answer was lost.
    RefusingStore(bool),
}

/// What kind of fault it is: a row of the coverage table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// One rank is killed.
    KillRank,
    /// Ranks in a row are killed at once.
    KillRun,
    /// A host is killed.
    KillHost,
    /// A rank that others wait for is killed.
    KillHolder,
    /// A spare that just took a seat is killed.
    KillNewcomer,
    /// A spare is killed.
    KillSpare,
    /// A process stops and goes on.
    Stop,
    /// A process is slow.
    Slow,
    /// A link breaks.
    BreakLink,
    /// A link breaks again and again.
    Flap,
    /// A link is down for a while.
    LinkDown,
    /// A link works in one direction only.
    OneWay,
    /// A link is suspected without reason.
    Suspect,
    /// Some ranks are split from the others and the coordinator.
    Partition,
    /// A control connection breaks.
    Cut,
    /// The coordinator does not hear a rank.
    Mute,
    /// A rank does not hear the coordinator.
    Deaf,
    /// The coordinator dies and comes back.
    RestartCoordinator,
    /// The coordinator is gone for good.
    LoseCoordinator,
    /// The store is slow.
    SlowStore,
    /// The store refuses.
    RefusingStore,
}

impl FaultKind {
    /// Every kind, in the order of the table.
    pub const ALL: [Self; 21] = [
        Self::KillRank,
        Self::KillRun,
        Self::KillHost,
        Self::KillHolder,
        Self::KillNewcomer,
        Self::KillSpare,
        Self::Stop,
        Self::Slow,
        Self::BreakLink,
        Self::Flap,
        Self::LinkDown,
        Self::OneWay,
        Self::Suspect,
        Self::Partition,
        Self::Cut,
        Self::Mute,
        Self::Deaf,
        Self::RestartCoordinator,
        Self::LoseCoordinator,
        Self::SlowStore,
        Self::RefusingStore,
    ];
}

impl Fault {
    /// It strikes at a write, not at a time.
    #[must_use]
    pub fn is_of_store(self) -> bool {
        matches!(self, Self::SlowStore(_) | Self::RefusingStore(_))
    }

    /// Its row in the coverage table.
    #[must_use]
    pub fn kind(self) -> FaultKind {
        match self {
            Self::KillRank(_) => FaultKind::KillRank,
            Self::KillSpare(_) => FaultKind::KillSpare,
            Self::KillHost(_) => FaultKind::KillHost,
            Self::Stop(_) => FaultKind::Stop,
            Self::RestartCoordinator => FaultKind::RestartCoordinator,
            Self::KillRun(..) => FaultKind::KillRun,
            Self::BreakLink(..) => FaultKind::BreakLink,
            Self::Cut(_) => FaultKind::Cut,
            Self::KillHolder => FaultKind::KillHolder,
            Self::KillNewcomer => FaultKind::KillNewcomer,
            Self::Suspect(..) => FaultKind::Suspect,
            Self::Flap(..) => FaultKind::Flap,
            Self::LinkDown(..) => FaultKind::LinkDown,
            Self::OneWay(..) => FaultKind::OneWay,
            Self::Partition(..) => FaultKind::Partition,
            Self::Mute(..) => FaultKind::Mute,
            Self::Deaf(..) => FaultKind::Deaf,
            Self::Slow(..) => FaultKind::Slow,
            Self::LoseCoordinator => FaultKind::LoseCoordinator,
            Self::SlowStore(_) => FaultKind::SlowStore,
            Self::RefusingStore(_) => FaultKind::RefusingStore,
        }
    }
}

/// What some rank must come to before a trap is sprung; the first that does so springs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It gets a result and has so many then.
    Result(u32),
    /// It has given the buffer of an op back that another live rank still lacks a part of.
    Ahead,
    /// An op of it has a part of its chunks Final.
    Midway,
}

/// A fault that strikes when a rank has come to some point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// What happens.
    pub when: When,
    /// In this epoch or a later one; 2 is the first after a loss.
    pub epoch_min: u64,
    /// How much later it strikes.
    pub after_us: u64,
    /// What strikes; its rank counts from the rank that sprang the trap.
    pub fault: Fault,
}

/// A fault that is meant for one cell of the coverage table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aim {
    /// The world is in this phase,
    pub phase: Phase,
    /// an op of this kind is in flight (`None`: no op is),
    pub op: Option<Collective>,
    /// and both have been seen so often before.
    pub skip: u32,
    /// What strikes.
    pub fault: Fault,
}

/// Links that are slower than the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlowLinks {
    /// How many of them, in percent.
    pub percent: u64,
    /// How much slower.
    pub factor: u64,
}

/// A moment of a recovery at which a second fault may strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A loss is declared: the fence is being written.
    Declared,
    /// Every survivor has answered the fence.
    Fenced,
    /// The next view is written.
    Decided,
    /// A newcomer has the state.
    StateHeld,
    /// A newcomer has replayed.
    Replayed,
}

impl Scenario {
    /// The fault of a trap that `rank` sprang.
    #[must_use]
    pub fn counted_from(&self, fault: Fault, rank: Rank) -> Fault {
        let at = |offset: u32| (rank.0 + offset) % self.rules.world_size;
        match fault {
            Fault::KillRank(offset) => Fault::KillRank(at(offset)),
            Fault::KillRun(offset, count) => Fault::KillRun(at(offset), count),
            Fault::KillHost(offset) => Fault::KillHost(at(offset) / self.ranks_per_host),
            Fault::Stop(offset) => Fault::Stop(at(offset)),
            Fault::Cut(offset) => Fault::Cut(at(offset)),
            Fault::BreakLink(one, two) => Fault::BreakLink(at(one), at(two)),
            Fault::Suspect(one, two) => Fault::Suspect(at(one), at(two)),
            Fault::Flap(one, two) => Fault::Flap(at(one), at(two)),
            Fault::LinkDown(one, two, ms) => Fault::LinkDown(at(one), at(two), ms),
            Fault::OneWay(one, two, ms) => Fault::OneWay(at(one), at(two), ms),
            Fault::Partition(first, count, ms) => Fault::Partition(at(first), count, ms),
            Fault::Mute(offset, ms) => Fault::Mute(at(offset), ms),
            Fault::Deaf(offset, ms) => Fault::Deaf(at(offset), ms),
            Fault::Slow(offset, ms) => Fault::Slow(at(offset), ms),
            Fault::KillSpare(_)
            | Fault::KillHolder
            | Fault::KillNewcomer
            | Fault::RestartCoordinator
            | Fault::LoseCoordinator
            | Fault::SlowStore(_)
            | Fault::RefusingStore(_) => fault,
        }
    }
}
