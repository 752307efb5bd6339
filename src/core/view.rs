//! The one thing that is agreed on: who sits where in an epoch.

use std::net::SocketAddr;

use crate::ids::{DomainId, Epoch, MemberId, Rank};

/// What everybody must know about one process to reach it and to judge what dies with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Its id, chosen at random at start, never used twice.
    pub member: MemberId,
    /// Same value: same host, so shared memory reaches it.
    pub host: u64,
    /// What dies together with it.
    pub domain: DomainId,
    /// Its TCP data listener.
    pub tcp: Option<SocketAddr>,
    /// Name of its Unix socket for shared memory.
    pub shm: Option<String>,
    /// Its process id on its host, for messages and for the launcher.
    pub pid: u32,
    /// The seat it asks for in the forming view; `None`: it waits as a spare.
    pub wants: Option<Rank>,
}

/// Who sits where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// The view's number.
    pub epoch: Epoch,
    /// The occupant of every rank of the world; `None`: vacant.
    pub seats: Vec<Option<MemberId>>,
    /// Everybody in a seat and every spare.
    pub members: Vec<MemberInfo>,
}

impl View {
    /// Seats of the world, vacant ones included.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.seats.len() as u32
    }

    /// The occupant of `rank`.
    #[must_use]
    pub fn occupant(&self, rank: Rank) -> Option<MemberId> {
        self.seats.get(rank.index()).copied().flatten()
    }

    /// The seat of `member`.
    #[must_use]
    pub fn rank_of(&self, member: MemberId) -> Option<Rank> {
        self.seats.iter().position(|s| *s == Some(member)).map(|i| Rank(i as u32))
    }

    /// What is known of `member`.
    #[must_use]
    pub fn info(&self, member: MemberId) -> Option<&MemberInfo> {
        self.members.iter().find(|m| m.member == member)
    }

    /// The failure domain of the occupant of `rank`; a vacant seat is a domain of its own.
    #[must_use]
    pub fn domain(&self, rank: Rank) -> DomainId {
        self.occupant(rank).and_then(|m| self.info(m)).map_or(DomainId(u64::MAX - u64::from(rank.0)), |i| i.domain)
    }

    /// The members that have no seat, in the order they joined.
    pub fn spares(&self) -> impl Iterator<Item = &MemberInfo> + '_ {
        self.members.iter().filter(|m| self.rank_of(m.member).is_none())
    }
}
