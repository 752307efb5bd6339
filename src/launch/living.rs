//! The children that are not reaped yet, for all threads.

use std::collections::BTreeMap;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_core::view::View;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use super::output::Label;
use super::{LaunchError, Signal};
use crate::control::exit_cause;

/// How it all ended.
#[derive(Clone, Debug)]
pub(super) struct Over {
    pub(super) code: i32,
    /// The sentence about a failure.
    pub(super) why: Option<String>,
}

#[derive(Default, Debug)]
struct Shared {
    /// Labels of children that are not reaped: only their ids are certain to be theirs.
    children: BTreeMap<u32, Label>,
    over: Option<Over>,
}

/// What other threads may ask of the children.
#[derive(Clone, Default, Debug)]
pub(super) struct Living(Arc<(Mutex<Shared>, Condvar)>);

impl Living {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Single insertions and removals: a panic elsewhere leaves nothing half done.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, pid: u32, label: Label) {
        self.shared().children.insert(pid, label);
    }

    pub(super) fn list(&self) -> Vec<(u32, String)> {
        self.shared().children.iter().map(|(pid, label)| (*pid, label.text())).collect()
    }

    /// Names the children after the ranks they have in `view`: those members of it that run on `host`, or all.
    pub(super) fn relabel(&self, view: &View, host: Option<u64>) {
        let shared = self.shared();
        for info in view.members.iter().filter(|info| host.is_none_or(|h| h == info.host)) {
            if let (Some(label), Some(rank)) = (shared.children.get(&info.pid), view.rank_of(info.member)) {
                label.set(rank.to_string());
            }
        }
    }

    /// Reaps a child that has ended. From here on its id may be a stranger's.
    pub(super) fn reap(&self, pid: u32, child: &mut Child) -> std::io::Result<ExitStatus> {
        let mut shared = self.shared();
        shared.children.remove(&pid);
        child.wait()
    }

    pub(super) fn kill(&self, pid: u32, signal: Signal) -> Result<(), LaunchError> {
        self.send(pid, |target| kill_process(target, signal.raw()))
    }

    /// Kills the child and what it has started, unless that has left its group.
    pub(super) fn kill_all_of(&self, pid: u32) {
        let _ = self.send(pid, |target| kill_process_group(target, rustix::process::Signal::KILL));
        // It may have left the group itself.
        let _ = self.kill(pid, Signal::Kill);
    }

    fn send(&self, pid: u32, kill: impl FnOnce(Pid) -> rustix::io::Result<()>) -> Result<(), LaunchError> {
        // Under the lock, which is also taken to reap: the id cannot pass to a stranger meanwhile.
        let shared = self.shared();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let target = raw.filter(|_| shared.children.contains_key(&pid)).ok_or(LaunchError::NoChild(pid))?;
        kill(target).map_err(|cause| LaunchError::Signal { pid, cause: cause.into() })
    }

    pub(super) fn wait(&self) -> Over {
        let shared =
            self.0.1.wait_while(self.shared(), |s| s.over.is_none()).unwrap_or_else(PoisonError::into_inner);
        shared.over.clone().unwrap_or(Over { code: 1, why: None })
    }

    pub(super) fn wait_within(&self, within: Duration) -> Option<Over> {
        let waited = self.0.1.wait_timeout_while(self.shared(), within, |s| s.over.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.over.clone()
    }

    pub(super) fn finish(&self, over: Over) {
        self.shared().over.get_or_insert(over);
        self.0.1.notify_all();
    }
}

/// Blocks until the child `pid` has ended, says how it did, and leaves it to be reaped.
pub(super) fn wait_ended(pid: u32) -> String {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return "process exited".to_owned();
    };
    loop {
        match waitid(WaitId::Pid(target), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(Some(status)) => return exit_cause(&status),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return "process exited".to_owned(),
        }
    }
}
