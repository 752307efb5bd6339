//! This host's share of a world that spans several: its ranks and spares, under a coordinator elsewhere.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use phalanx_core::ids::Rank;
use phalanx_core::policy::{Policy, Rules};
use phalanx_core::view::View;

use super::crew::Crew;
use super::lead::{Lead, News};
use super::living::Living;
use crate::auth::JobKey;
use crate::control::{Launcher, LauncherConfig, LauncherEvent, ToLauncher};
use crate::launch::supervisor::{Order, Supervisor};
use crate::launch::{LaunchError, WorldSpec, host_id, member_envs};

/// A coordinator that is not there yet is waited for so long: hosts do not start in order.
const COORDINATOR_WITHIN: Duration = Duration::from_secs(30);

/// The world that the share is of.
#[derive(Clone, Debug)]
pub struct ShareSpec {
    /// `host:port` of its coordinator.
    pub coordinator: String,
    /// The job key.
    pub key: JobKey,
}

/// Running ranks of one host. Dropping it kills and reaps every child that still lives.
#[derive(Debug)]
pub struct Share {
    crew: Crew,
}

impl Share {
    /// Connects to the coordinator, which says how large the world is and by which rules it plays, and starts
    /// `spec.ranks` ranks from `spec.rank_from` on, and the spares. The rules in `spec` are not looked at;
    /// `spec.respawn` counts where the policy is to replace.
    ///
    /// # Errors
    /// When the coordinator cannot be reached in half a minute or holds another key, when the ranks are taken or
    /// outside of the world, when anything cannot be started. What was started by then is ended.
    pub fn spawn(mut spec: WorldSpec, share: ShareSpec) -> Result<Self, LaunchError> {
        if spec.command.is_empty() {
            return Err(LaunchError::NoCommand);
        }
        if spec.ranks == 0 && spec.spares == 0 {
            return Err(LaunchError::NoRanks);
        }
        let (orders, taken) = channel();
        let (tell, told) = channel();
        let (telling, living) = (orders.clone(), Living::default());
        let (labels, host) = (living.clone(), host_id());
        let config = LauncherConfig { coordinator: share.coordinator.clone(), key: share.key.clone() };
        let launcher = Launcher::start(config, move |event| {
            if let LauncherEvent::Told(ToLauncher::Seats { view }) = &event {
                labels.relabel(view, Some(host));
            }
            // Nobody hears it once the world is known.
            let _ = tell.send(event.clone());
            if let Some(news) = News::of_launcher(event) {
                let _ = telling.send(Order::World(news));
            }
        })?;
        let (rules, view) = world(&told, &share.coordinator)?;
        drop(told);
        let free = seats_are_free(&view, spec.rank_from, spec.ranks, rules.world_size);
        free.map_err(LaunchError::Seats)?;
        spec.respawn &= rules.policy == Policy::Replace;
        let envs = member_envs(&spec, &share.coordinator, &share.key, rules.world_size);
        spec.rules = rules;
        let lead = Lead::Elsewhere(Arc::new(launcher));
        let stops = spec.stops_on_interrupt;
        let supervisor = Supervisor::new(spec, envs, lead, living.clone(), orders.clone());
        Ok(Self { crew: Crew::start(supervisor, living, (orders, taken), stops)? })
    }

    /// Blocks until every child of this host has ended, and says how, as [`World::wait`](super::World::wait) does: a
    /// rank that was replaced does not count, on whatever host its successor is.
    #[must_use]
    pub fn wait(&self) -> i32 {
        self.crew.wait()
    }

    /// As [`World::failure`](super::World::failure).
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.crew.failure()
    }
}

/// What the coordinator says first.
fn world(told: &Receiver<LauncherEvent>, at: &str) -> Result<(Rules, View), LaunchError> {
    let until = Instant::now() + COORDINATOR_WITHIN;
    let mut rules = None;
    let mut last = format!("the coordinator at {at} has not answered");
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(LauncherEvent::Told(ToLauncher::Welcome { rules: these })) => rules = Some(these),
            Ok(LauncherEvent::Told(ToLauncher::Seats { view })) => {
                if let Some(rules) = rules.take() {
                    return Ok((rules, view));
                }
            }
            Ok(LauncherEvent::Told(ToLauncher::Refused { reason })) => {
                let why = format!("the coordinator at {at} refused this launcher: {reason}");
                return Err(LaunchError::Coordinator(why));
            }
            Ok(LauncherEvent::Told(
                ToLauncher::Lost { .. }
                | ToLauncher::Finished {}
                | ToLauncher::GivenUp { .. }
                | ToLauncher::BeatSeen { .. },
            )) => {}
            Ok(LauncherEvent::Lost { cause, is_mistrust: true }) => {
                let why = format!("{cause} Set PHALANX_JOB_KEY to the key of this coordinator's world");
                return Err(LaunchError::Coordinator(why));
            }
            Ok(LauncherEvent::Lost { cause, is_mistrust: false }) => {
                tracing::warn!(%cause, "waiting for the coordinator");
                last = cause;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let why = format!(
                    "{last}, for {} s; start `phalanx coordinator` there, or correct --coordinator",
                    COORDINATOR_WITHIN.as_secs()
                );
                return Err(LaunchError::Coordinator(why));
            }
        }
    }
}

/// Whether `ranks` ranks from `from` on can be started here.
fn seats_are_free(view: &View, from: u32, ranks: u32, world_size: u32) -> Result<(), String> {
    if ranks == 0 {
        return Ok(());
    }
    if from.checked_add(ranks).is_none_or(|end| end > world_size) {
        let last = u64::from(from) + u64::from(ranks) - 1;
        return Err(format!(
            "ranks {from} to {last} are not all inside a world of {world_size}; correct -n and --rank-from"
        ));
    }
    if view.epoch.0 > 0 {
        let why =
            "the world has formed, all its ranks were started; to start spares here use -n 0 --spares M";
        return Err(why.to_owned());
    }
    let taken = (from..from + ranks).map(Rank).find(|rank| view.occupant(*rank).is_some());
    taken.map_or(Ok(()), |rank| {
        Err(format!("rank {} was started already, here or on another host; correct --rank-from", rank.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Epoch, MemberId};

    #[test]
    fn ranks_that_cannot_be_started_here_are_named() {
        let seats = vec![None, Some(MemberId(4)), None, None];
        let forming = View { seats, ..View::default() };
        assert_eq!(seats_are_free(&forming, 2, 2, 4), Ok(()));
        assert!(seats_are_free(&forming, 0, 2, 4).unwrap_err().contains("rank 1 was started already"));
        assert!(seats_are_free(&forming, 3, 2, 4).unwrap_err().contains("ranks 3 to 4"));
        assert!(seats_are_free(&forming, u32::MAX, 2, 4).is_err());
        let formed = View { epoch: Epoch(3), ..forming };
        assert!(seats_are_free(&formed, 2, 2, 4).unwrap_err().contains("-n 0 --spares M"));
        assert_eq!(seats_are_free(&formed, 0, 0, 4), Ok(()));
    }
}
