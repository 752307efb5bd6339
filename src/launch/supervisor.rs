//! The thread that starts children, reaps them, replaces them, and says how the world ended.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::MemberId;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};

use super::{LaunchError, Signal, WorldSpec};
use crate::auth::JobKey;
use crate::control::{ServerHandle, exit_cause};

/// Spares that are still there so long after the run is over are killed.
const SPARES_END_WITHIN: Duration = Duration::from_secs(5);
/// What children printed last is waited for so long; a grandchild may hold their outputs open for ever.
const OUTPUT_WITHIN: Duration = Duration::from_secs(1);

pub(super) enum Order {
    /// The child has ended, but is not reaped yet.
    Ended {
        pid: u32,
        cause: String,
    },
    World(WorldEvent),
    Interrupted(i32),
    Stop,
}

#[derive(Default, Debug)]
struct Shared {
    /// Labels of children that are not reaped: only their ids are certain to be theirs.
    children: BTreeMap<u32, String>,
    code: Option<i32>,
}

/// What other threads may ask of the children.
#[derive(Clone, Default, Debug)]
pub(super) struct Living(Arc<(Mutex<Shared>, Condvar)>);

impl Living {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Single insertions and removals: a panic elsewhere leaves nothing half done.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn list(&self) -> Vec<(u32, String)> {
        self.shared().children.iter().map(|(pid, label)| (*pid, label.clone())).collect()
    }

    pub(super) fn kill(&self, pid: u32, signal: Signal) -> Result<(), LaunchError> {
        // Under the lock, which is also taken to reap: the id cannot pass to a stranger meanwhile.
        let shared = self.shared();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let target = raw.filter(|_| shared.children.contains_key(&pid)).ok_or(LaunchError::NoChild(pid))?;
        kill_process(target, signal.raw()).map_err(|cause| LaunchError::Signal { pid, cause: cause.into() })
    }

    pub(super) fn wait_code(&self) -> i32 {
        let shared =
            self.0.1.wait_while(self.shared(), |s| s.code.is_none()).unwrap_or_else(PoisonError::into_inner);
        shared.code.unwrap_or(1)
    }

    pub(super) fn wait_code_within(&self, within: Duration) -> Option<i32> {
        let waited = self.0.1.wait_timeout_while(self.shared(), within, |s| s.code.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.code
    }

    fn finish(&self, code: i32) {
        self.shared().code.get_or_insert(code);
        self.0.1.notify_all();
    }
}

struct Started {
    child: Child,
    has_rank: bool,
}

struct Ended {
    pid: u32,
    code: i32,
    has_rank: bool,
}

pub(super) struct Supervisor {
    spec: WorldSpec,
    envs: Vec<(&'static str, String)>,
    server: Arc<ServerHandle>,
    living: Living,
    orders: Sender<Order>,
    children: BTreeMap<u32, Started>,
    ended: Vec<Ended>,
    /// Processes of members, as the decided views name them.
    pids: BTreeMap<MemberId, u32>,
    /// Processes that ever had a seat in a decided view.
    seated: BTreeSet<u32>,
    /// Processes of members that were declared dead.
    lost: BTreeSet<u32>,
    spares_started: u32,
    has_formed: bool,
    finished: Option<Instant>,
    /// Set once the world is being ended by force: its exit code.
    verdict: Option<i32>,
    /// Held by readers of outputs.
    open: (Sender<()>, Receiver<()>),
}

impl Supervisor {
    pub(super) fn new(
        spec: WorldSpec,
        key: &JobKey,
        server: Arc<ServerHandle>,
        living: Living,
        orders: Sender<Order>,
    ) -> Self {
        let mut at = server.address();
        if at.ip().is_unspecified() {
            at.set_ip(if at.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let mut envs = vec![
            ("PHALANX_COORDINATOR", at.to_string()),
            ("PHALANX_JOB_KEY", key.to_hex()),
            ("PHALANX_WORLD_SIZE", spec.ranks.to_string()),
            ("PHALANX_DOMAIN", spec.domain.name().to_owned()),
            ("PHALANX_PARENT_PID", std::process::id().to_string()),
        ];
        envs.extend(spec.transport.clone().map(|t| ("PHALANX_TRANSPORT", t)));
        Self {
            spec,
            envs,
            server,
            living,
            orders,
            children: BTreeMap::new(),
            ended: Vec::new(),
            pids: BTreeMap::new(),
            seated: BTreeSet::new(),
            lost: BTreeSet::new(),
            spares_started: 0,
            has_formed: false,
            finished: None,
            verdict: None,
            open: channel(),
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>, ready: &SyncSender<Result<(), LaunchError>>) {
        let started = (0..self.spec.ranks)
            .try_for_each(|rank| self.spawn(Some(rank)))
            .and_then(|()| (0..self.spec.spares).try_for_each(|_| self.spawn(None)));
        let is_up = started.is_ok();
        let _ = ready.send(started);
        if !is_up {
            self.end(1);
        }
        while !self.children.is_empty() {
            match self.next(orders) {
                Some(Order::Ended { pid, cause }) => {
                    // The coordinator hears how it ended before the process is reaped and nobody can tell any more.
                    self.server.exit_seen(pid, &cause);
                    self.reap(pid);
                }
                Some(Order::World(event)) => self.handle_event(&event),
                Some(Order::Interrupted(signal)) => self.end(128 + signal),
                Some(Order::Stop) => self.end(128 + 9),
                None => self.end_spares(),
            }
        }
        // Events that were on their way when the last child ended.
        while let Ok(order) = orders.try_recv() {
            if let Order::World(event) = order {
                self.handle_event(&event);
            }
        }
        drop(self.open.0);
        let until = Instant::now() + OUTPUT_WITHIN;
        while self.open.1.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
        let is_finished = self.finished.is_some();
        self.living.finish(
            self.verdict.unwrap_or_else(|| code_of(&self.ended, &self.lost, &self.seated, is_finished)),
        );
    }

    fn next(&self, orders: &Receiver<Order>) -> Option<Order> {
        let only_spares = || self.children.iter().all(|(pid, c)| !c.has_rank && !self.seated.contains(pid));
        let stopped = || Order::Stop;
        match self.finished.filter(|_| only_spares()) {
            Some(since) => {
                let left = (since + SPARES_END_WITHIN).saturating_duration_since(Instant::now());
                match orders.recv_timeout(left) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => Some(stopped()),
                }
            }
            None => Some(orders.recv().unwrap_or_else(|_| stopped())),
        }
    }

    fn spawn(&mut self, rank: Option<u32>) -> Result<(), LaunchError> {
        let (program, arguments) = self.spec.command.split_first().ok_or(LaunchError::NoCommand)?;
        let refused = |cause| LaunchError::Spawn { command: program.clone(), cause };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.envs(self.envs.iter().map(|(name, value)| (*name, value)));
        command.envs(self.spec.envs.iter().map(|(name, value)| (name, value)));
        let label = match rank {
            Some(rank) => {
                command.env("PHALANX_RANK", rank.to_string());
                format!("r{rank}")
            }
            None => {
                command.env_remove("PHALANX_RANK");
                self.spares_started += 1;
                format!("spare {}", self.spares_started - 1)
            }
        };
        self.spec.output.prepare(&mut command);
        let mut child = command.spawn().map_err(refused)?;
        let pid = child.id();
        let followed = self.spec.output.follow(&mut child, &label, &self.open.0);
        // Listed before anything can fail, so that it is reaped whatever happens.
        self.living.shared().children.insert(pid, label);
        self.children.insert(pid, Started { child, has_rank: rank.is_some() });
        let telling = self.orders.clone();
        let waiter = std::thread::Builder::new().name(format!("phalanx-wait-{pid}"));
        let waits = waiter.spawn(move || {
            let _ = telling.send(Order::Ended { pid, cause: wait_ended(pid) });
        });
        if let Err(cause) = waits {
            // Nobody would notice its end: it is ended here.
            let _ = self.living.kill(pid, Signal::Kill);
            self.reap(pid);
            return Err(LaunchError::Thread(cause));
        }
        followed.map_err(LaunchError::Thread)?;
        self.server.watch_child(pid)?;
        Ok(())
    }

    fn reap(&mut self, pid: u32) {
        let Some(mut started) = self.children.remove(&pid) else { return };
        let waited = {
            let mut shared = self.living.shared();
            shared.children.remove(&pid);
            started.child.wait()
        };
        let status = waited.unwrap_or_else(|_| ExitStatus::from_raw(1 << 8));
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let has_rank = started.has_rank;
        self.ended.push(Ended { pid, code, has_rank });
        if self.verdict.is_some() || self.finished.is_some() {
            return;
        }
        if has_rank && !self.has_formed && self.server.snapshot().epoch.0 == 0 {
            tracing::error!(pid, code, "a rank ended before the world had formed");
            self.end(if code == 0 { 1 } else { code });
        } else if !has_rank && !self.seated.contains(&pid) && status.signal().is_some() {
            self.respawn();
        }
    }

    fn handle_event(&mut self, event: &WorldEvent) {
        match event {
            WorldEvent::Formed => self.has_formed = true,
            WorldEvent::Decided(decision) => {
                let view = &decision.view;
                for info in &view.members {
                    self.pids.insert(info.member, info.pid);
                    if view.rank_of(info.member).is_some() {
                        self.seated.insert(info.pid);
                    }
                }
            }
            WorldEvent::Lost(loss) => {
                if let Some(&pid) = self.pids.get(&loss.member) {
                    self.lost.insert(pid);
                    // It may be stopped rather than dead: out is out.
                    let _ = self.living.kill(pid, Signal::Kill);
                }
                self.respawn();
            }
            WorldEvent::Finished => self.finished = Some(Instant::now()),
            WorldEvent::Unrecoverable(why) => {
                tracing::error!(%why, "the run cannot go on");
                self.end(1);
            }
            WorldEvent::Fenced(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::SpareReady(_) => {}
        }
    }

    fn respawn(&mut self) {
        if !self.spec.respawn || self.verdict.is_some() || self.finished.is_some() || self.children.is_empty()
        {
            return;
        }
        if let Err(cause) = self.spawn(None) {
            tracing::error!(%cause, "no new spare for the one that is gone");
        }
    }

    fn end(&mut self, code: i32) {
        self.verdict.get_or_insert(code);
        for &pid in self.children.keys() {
            let _ = self.living.kill(pid, Signal::Kill);
        }
    }

    fn end_spares(&mut self) {
        for &pid in self.children.keys() {
            let _ = self.living.kill(pid, Signal::Kill);
        }
        self.finished = Some(Instant::now());
    }
}

/// Blocks until the child `pid` has ended, says how it did, and leaves it to be reaped.
fn wait_ended(pid: u32) -> String {
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

/// The exit code of a world whose children have all ended, in the order they did.
fn code_of(ended: &[Ended], lost: &BTreeSet<u32>, seated: &BTreeSet<u32>, is_finished: bool) -> i32 {
    let failed = |e: &&Ended| e.code != 0;
    let counts = |e: &&Ended| !lost.contains(&e.pid) && (e.has_rank || seated.contains(&e.pid));
    let first = ended.iter().filter(failed).find(counts);
    let any = || ended.iter().find(failed).map_or(1, |e| e.code);
    match first {
        Some(one) => one.code,
        None if is_finished => 0,
        None => any(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_death_does_not_count_but_a_world_that_never_finished_does() {
        let ended = |pid, code, has_rank| Ended { pid, code, has_rank };
        let (lost, seated) = (BTreeSet::from([2]), BTreeSet::from([1, 2, 4]));
        let replaced = [ended(2, 137, true), ended(3, 137, false), ended(1, 0, true), ended(4, 0, false)];
        assert_eq!(code_of(&replaced, &lost, &seated, true), 0);
        assert_eq!(code_of(&replaced, &lost, &seated, false), 137, "nobody finished");
        let failed = [ended(2, 137, true), ended(4, 3, false), ended(1, 5, true)];
        assert_eq!(code_of(&failed, &lost, &seated, true), 3, "the first that was not replaced");
        assert_eq!(code_of(&[ended(1, 0, true)], &lost, &seated, false), 1);
    }
}
