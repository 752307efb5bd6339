//! What happened in a run, as data: who did what when, and which message led from one place to another.
//!
//! It is written only where somebody asks for it, and nothing of the run depends on it.

use std::fmt;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::{Epoch, MemberId, OpId, Rank};
use phalanx_core::spec::Spec;
use phalanx_core::wire::Header;
use phalanx_core::wire::message::{Downward, Upward};

use super::scenario::{Fault, Trap};

mod sentences;

/// Where something happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// In no process: a fault, something about the whole world.
    World,
    /// At the coordinator.
    Coordinator,
    /// In its store.
    Store,
    /// At a member, with the seat it had then.
    Member(MemberId, Option<Rank>),
}

/// Where a message came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The sender.
    pub from: Place,
    /// When it was sent.
    pub sent_us: u64,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A member's process starts; the seat it asks for.
    Starts(Option<Rank>),
    /// A message of a member reaches the coordinator.
    Up(Box<Upward>),
    /// A message of the coordinator reaches a member.
    Down(Box<Downward>),
    /// A control message is lost with its connection.
    Lost,
    /// The store has the epoch, and the decision of an epoch.
    Stored(Epoch, Option<Epoch>),
    /// The coordinator tells a watcher.
    Tells(Box<WorldEvent>),
    /// A fault strikes.
    Strikes(Fault),
    /// A member comes to where a trap waits.
    Springs(Trap),
    /// A process ends, without a word.
    Dies,
    /// A process is stopped.
    Stops,
    /// A stopped process goes on.
    GoesOn,
    /// A control connection is gone.
    IsCut,
    /// A control connection is back.
    IsConnected,
    /// The coordinator is there again, with what its store has.
    IsBack,
    /// A member goes on in an epoch, and the seat it takes if it had none.
    Enters(Epoch, Option<Rank>),
    /// A program calls an op.
    Calls(OpId, Spec),
    /// Every chunk due to a rank is Final there, and the caller still waits: how many chunks the op has.
    Has(OpId, usize),
    /// A call returns: over so many ranks, or with an error.
    Returns(OpId, Result<usize, String>),
    /// So many steps are committed at a member.
    Commits(u64),
    /// Every op that was in flight at a loss is complete everywhere again.
    IsWhole,
    /// A checker found something.
    Breaks(String),
}

/// One line of the timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When.
    pub time_us: u64,
    /// Where.
    pub place: Place,
    /// The message that brought it there, where one did.
    pub link: Option<Link>,
    /// What.
    pub what: What,
}

/// A message on a link between two members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data {
    /// Its sender.
    pub from: MemberId,
    /// Its receiver.
    pub to: MemberId,
    /// When it was sent.
    pub sent_us: u64,
    /// When it is there to be taken.
    pub arrives_us: u64,
    /// When it was taken; `None`: it was lost, or nobody wanted it any more.
    pub taken_us: Option<u64>,
    /// It was of an earlier epoch, and dropped.
    pub stale: bool,
    /// What it says.
    pub header: Header,
}

/// All that happened in a run, in its order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    /// The scenario in words.
    pub title: String,
    /// What happened at one place, and control messages.
    pub entries: Vec<Entry>,
    /// Messages between members.
    pub data: Vec<Data>,
}

/// Width of the column that says who.
const WHO_COLUMNS: usize = 11;

impl Timeline {
    /// The text: the scenario, then a line an entry. The same on every machine.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for e in &self.entries {
            text += &format!("{:>10}  {:<WHO_COLUMNS$}  {e}\n", ms(e.time_us), e.place.to_string());
        }
        let taken = self.data.iter().filter(|d| d.taken_us.is_some() && !d.stale).count();
        let stale = self.data.iter().filter(|d| d.stale).count();
        let left = self.data.len() - taken - stale;
        text += &format!(
            "data messages: {} sent, {taken} taken, {stale} of an earlier epoch, {left} lost or not wanted\n",
            self.data.len()
        );
        text
    }
}

/// Microseconds as milliseconds, with all digits.
#[must_use]
pub fn ms(time_us: u64) -> String {
    format!("{}.{:03}", time_us / 1000, time_us % 1000)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => write!(f, "world"),
            Self::Coordinator => write!(f, "coordinator"),
            Self::Store => write!(f, "store"),
            Self::Member(member, Some(rank)) => write!(f, "{rank} ({member})"),
            Self::Member(member, None) => write!(f, "{member}"),
        }
    }
}
