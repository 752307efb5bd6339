//! Who leads the world of a launcher's children: the coordinator inside this process, or one elsewhere.

use std::sync::Arc;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::MemberId;
use phalanx_core::view::View;
use phalanx_core::wire::message::Loss;

use super::LaunchError;
use super::host::host_id;
use crate::control::{Launcher, LauncherEvent, ServerHandle, ToLauncher};

/// What a launcher must know of the world.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// Who sits where; of epoch 0: which seats are taken so far.
    Seats(View),
    Lost(Loss),
    Finished,
    GivenUp(String),
    /// Everything is told that was known when this number was asked for.
    Answered(u64),
}

impl News {
    /// What an event of a coordinator in this process tells.
    pub(super) fn of_event(event: &WorldEvent) -> Option<Self> {
        match event {
            WorldEvent::Decided(decision) => Some(Self::Seats(decision.view.clone())),
            WorldEvent::Lost(loss) => Some(Self::Lost(loss.clone())),
            WorldEvent::Finished => Some(Self::Finished),
            WorldEvent::Unrecoverable(why) => Some(Self::GivenUp(why.clone())),
            WorldEvent::Formed
            | WorldEvent::Fenced(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::SpareReady(_) => None,
        }
    }

    /// What a coordinator elsewhere tells.
    pub(super) fn of_launcher(event: LauncherEvent) -> Option<Self> {
        match event {
            LauncherEvent::Told(ToLauncher::Seats { view }) => Some(Self::Seats(view)),
            LauncherEvent::Told(ToLauncher::Lost { loss }) => Some(Self::Lost(loss)),
            LauncherEvent::Told(ToLauncher::Finished {}) => Some(Self::Finished),
            LauncherEvent::Told(ToLauncher::GivenUp { why }) => Some(Self::GivenUp(why)),
            LauncherEvent::Told(ToLauncher::BeatSeen { number }) => Some(Self::Answered(number)),
            // Only the first of each connection, and that one was taken when the ranks were started.
            LauncherEvent::Told(ToLauncher::Welcome { .. }) => None,
            LauncherEvent::Told(ToLauncher::Refused { reason: cause })
            | LauncherEvent::Lost { cause, .. } => {
                tracing::warn!(%cause, "no connection to the coordinator");
                None
            }
        }
    }
}

/// The coordinator as a launcher reaches it.
#[derive(Clone, Debug)]
pub(super) enum Lead {
    Here(Arc<ServerHandle>),
    Elsewhere(Arc<Launcher>),
}

impl Lead {
    /// The child has started.
    pub(super) fn watch(&self, pid: u32) -> Result<(), LaunchError> {
        match self {
            Self::Here(server) => Ok(server.watch_child(pid)?),
            Self::Elsewhere(_) => Ok(()),
        }
    }

    /// The child has ended, and was this member if any is known.
    pub(super) fn ended(&self, pid: u32, member: Option<MemberId>, cause: &str) {
        match self {
            Self::Here(server) => server.exit_seen(pid, cause),
            Self::Elsewhere(launcher) => {
                // One that is in no view yet is lost with its connection.
                if let Some(member) = member {
                    launcher.ended(member, cause);
                }
            }
        }
    }

    /// Asks to be told everything that is known now. `false`: what is known here is always told at once.
    pub(super) fn ask(&self, number: u64) -> bool {
        match self {
            Self::Here(_) => false,
            Self::Elsewhere(launcher) => {
                launcher.ask(number);
                true
            }
        }
    }

    /// The world as it is this moment, where that can be known.
    pub(super) fn seats_now(&self) -> Option<View> {
        match self {
            Self::Here(server) => Some(server.snapshot().view),
            Self::Elsewhere(_) => None,
        }
    }

    /// Spares that stand by; 0 where they may be anybody's.
    pub(super) fn spares_now(&self) -> usize {
        match self {
            Self::Here(server) => server.snapshot().spares,
            Self::Elsewhere(_) => 0,
        }
    }

    /// Which members of a view run on this host.
    pub(super) fn host(&self) -> Option<u64> {
        match self {
            // Its children are on this host whatever namespace they are in, and so far nobody else has joined.
            Self::Here(_) => None,
            Self::Elsewhere(_) => Some(host_id()),
        }
    }
}
