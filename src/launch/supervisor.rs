//! The thread that starts children, reaps them, replaces them, and says how the world ended.

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::{Duration, Instant};

use phalanx_core::ids::{MemberId, Rank};
use phalanx_core::policy::Policy;
use phalanx_core::view::View;
use phalanx_core::wire::message::Loss;

use super::lead::{Lead, News};
use super::living::{Living, Over, wait_ended};
use super::outcome::{Ended, code_of, failure};
use super::output::Label;
use super::{LaunchError, Signal, WorldSpec};

/// Spares that are still there so long after the run is over are killed.
const SPARES_END_WITHIN: Duration = Duration::from_secs(5);
/// What children printed last is waited for so long; a grandchild may hold their outputs open for ever.
const OUTPUT_WITHIN: Duration = Duration::from_secs(1);
/// A child that a coordinator elsewhere has put out has so long to learn it and to say so; then it is killed. After a
/// split of the network its connection may come back seconds later than the launcher's.
const LEARN_WITHIN: Duration = Duration::from_secs(15);
/// A coordinator elsewhere that is silent for so long will not say what became of the last children.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often the seats are looked at once a rank has ended without taking one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// So many spares may be killed one after the other before it is no accident: a program that crashes at its start is
/// not started again and again.
const SPARES_KILLED_MAX: u32 = 8;

pub(super) enum Order {
    /// The child has ended, but is not reaped yet.
    Ended {
        pid: u32,
        cause: String,
    },
    World(News),
    Interrupted(i32),
    Stop,
}

struct Started {
    child: Child,
    label: Label,
    has_rank: bool,
}

pub(super) struct Supervisor {
    spec: WorldSpec,
    envs: Vec<(&'static str, String)>,
    lead: Lead,
    living: Living,
    orders: Sender<Order>,
    children: BTreeMap<u32, Started>,
    ended: Vec<Ended>,
    view: View,
    /// Processes of members, as the decided views name them.
    pids: BTreeMap<MemberId, u32>,
    /// Processes that ever had a seat in a decided view, and the last one.
    seated: BTreeMap<u32, Rank>,
    /// Processes of members that were declared dead, and when they are killed in case they are not dead.
    lost: BTreeMap<u32, Option<Instant>>,
    /// A rank that has ended with 0 and without a seat before the world had formed.
    absent: Option<Ended>,
    spares_started: u32,
    /// Spares that a signal ended since the last one was seated.
    spares_killed: u32,
    finished: Option<Instant>,
    /// Set once the world is being ended by force.
    verdict: Option<Over>,
    /// What was asked of a coordinator elsewhere, and what it has answered.
    asked: u64,
    answered: u64,
    /// When it was heard, or asked, last.
    heard: Instant,
    /// Ranks that failed before this launcher had heard that the world has formed: judged when that is certain.
    unjudged: Vec<Ended>,
    /// Held by readers of outputs.
    open: (Sender<()>, Receiver<()>),
}

impl Supervisor {
    pub(super) fn new(
        spec: WorldSpec,
        envs: Vec<(&'static str, String)>,
        lead: Lead,
        living: Living,
        orders: Sender<Order>,
    ) -> Self {
        Self {
            spec,
            envs,
            lead,
            living,
            orders,
            children: BTreeMap::new(),
            ended: Vec::new(),
            view: View::default(),
            pids: BTreeMap::new(),
            seated: BTreeMap::new(),
            lost: BTreeMap::new(),
            absent: None,
            spares_started: 0,
            spares_killed: 0,
            finished: None,
            verdict: None,
            asked: 0,
            answered: 0,
            heard: Instant::now(),
            unjudged: Vec::new(),
            open: channel(),
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>, ready: &SyncSender<Result<(), LaunchError>>) {
        let spares = if self.spec.spares_once_formed { 0 } else { self.spec.spares };
        let mut ranks = self.spec.rank_from..self.spec.rank_from + self.spec.ranks;
        let started = ranks
            .try_for_each(|rank| self.spawn(Some(rank)))
            .and_then(|()| (0..spares).try_for_each(|_| self.spawn(None)));
        let is_up = started.is_ok();
        let _ = ready.send(started);
        if !is_up {
            self.end(1, None);
        }
        while !self.children.is_empty() || self.awaits_word() {
            match self.next(orders) {
                Some(Order::Ended { pid, cause }) => {
                    // The coordinator hears how it ended before the process is reaped and nobody can tell any more.
                    self.lead.ended(pid, self.member_of(pid), &cause);
                    self.reap(pid, cause);
                }
                Some(Order::World(news)) => self.handle_news(news),
                Some(Order::Interrupted(signal)) => self.end(128 + signal, None),
                Some(Order::Stop) => self.end(128 + 9, None),
                None => self.handle_time(),
            }
        }
        // What was on its way when the last child ended.
        while let Ok(order) = orders.try_recv() {
            if let Order::World(news) = order {
                self.handle_news(news);
            }
        }
        let over = self.over();
        drop(self.open.0);
        let until = Instant::now() + OUTPUT_WITHIN;
        while self.open.1.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
        self.living.finish(over);
    }

    /// How it ended, once all children have.
    fn over(&self) -> Over {
        if let Some(over) = &self.verdict {
            return over.clone();
        }
        // A world elsewhere goes on without the children of this host.
        let is_finished = self.finished.is_some() || matches!(self.lead, Lead::Elsewhere(_));
        let failed = failure(
            &self.ended,
            |pid| self.is_replaced(pid),
            |pid| self.seated.contains_key(&pid),
            is_finished,
        );
        failed.map_or(Over { code: 0, why: None }, |one| Over {
            code: one.code,
            why: Some(format!("{}; {}", one.what(), one.advice())),
        })
    }

    fn has_formed(&self) -> bool {
        self.view.epoch.0 > 0 || self.lead.seats_now().is_some_and(|view| view.epoch.0 > 0)
    }

    /// The member that the child was when it was seen last.
    fn member_of(&self, pid: u32) -> Option<MemberId> {
        let current = |(member, of): &(&MemberId, &u32)| **of == pid && self.view.info(**member).is_some();
        self.pids.iter().find(current).map(|(member, _)| *member)
    }

    /// Whether the world does without the process that was declared dead: another one sits in its seat, or the
    /// policy leaves it out.
    fn is_replaced(&self, pid: u32) -> bool {
        let Some(rank) = self.seated.get(&pid).filter(|_| self.lost.contains_key(&pid)) else { return false };
        let rules = &self.spec.rules;
        let shrinks =
            [rules.policy, rules.fallback].contains(&Policy::Shrink) && rules.policy != Policy::Abort;
        match self.view.occupant(*rank) {
            Some(member) => self.pids.get(&member) != Some(&pid),
            None => shrinks,
        }
    }

    /// With no child left, whether a coordinator elsewhere may still say what became of one: that it was lost, which
    /// may call for a new spare, and that it was replaced, which makes its failure none.
    fn awaits_word(&self) -> bool {
        let is_open = |pid: &u32| self.seated.contains_key(pid) && !self.is_replaced(*pid);
        let is_open = self.spec.rules.policy == Policy::Replace && self.lost.keys().any(is_open);
        let is_awaited = self.answered < self.asked || is_open;
        let is_over = self.verdict.is_some() || self.finished.is_some() || matches!(self.lead, Lead::Here(_));
        !is_over && is_awaited && self.heard.elapsed() < ANSWER_WITHIN
    }

    /// Asks a coordinator elsewhere what it knows; `false`: the one here has told it.
    fn ask(&mut self) -> bool {
        if !self.lead.ask(self.asked + 1) {
            return false;
        }
        self.asked += 1;
        self.heard = Instant::now();
        true
    }

    /// The next order; `None`: [`handle_time`](Self::handle_time) has something to do.
    fn next(&self, orders: &Receiver<Order>) -> Option<Order> {
        let living = |pid: &u32| self.children.contains_key(pid);
        let doomed = self.lost.iter().filter(|(pid, _)| living(pid)).filter_map(|(_, at)| *at);
        let spares = self.finished.filter(|_| self.only_spares_are_left()).map(|at| at + SPARES_END_WITHIN);
        let look = self.absent.as_ref().map(|_| Instant::now() + LOOK_AGAIN);
        let last_words = self.children.is_empty().then(|| self.heard + ANSWER_WITHIN);
        let received = match doomed.chain(spares).chain(look).chain(last_words).min() {
            Some(due) => orders.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
        }
    }

    fn only_spares_are_left(&self) -> bool {
        self.children.iter().all(|(pid, child)| !child.has_rank && !self.seated.contains_key(pid))
    }

    /// Kills whom time has run out for.
    fn handle_time(&mut self) {
        let now = Instant::now();
        for (pid, at) in &mut self.lost {
            if at.take_if(|at| *at <= now).is_some() {
                self.living.kill_all_of(*pid);
            }
        }
        if self.finished.is_some_and(|at| at + SPARES_END_WITHIN <= now) && self.only_spares_are_left() {
            self.kill_all();
            self.finished = Some(now);
        }
        self.judge_absence();
    }

    fn spawn(&mut self, rank: Option<u32>) -> Result<(), LaunchError> {
        let (program, arguments) = self.spec.command.split_first().ok_or(LaunchError::NoCommand)?;
        let refused = |cause| LaunchError::Spawn { command: program.clone(), cause };
        let mut command = Command::new(program);
        // A group of its own: what a child has started ends with it when the world is ended by force.
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        command.envs(self.envs.iter().map(|(name, value)| (*name, value)));
        command.envs(self.spec.envs.iter().map(|(name, value)| (name, value)));
        let label = match rank {
            Some(rank) => {
                command.env("PHALANX_RANK", rank.to_string());
                Label::new(Rank(rank).to_string())
            }
            None => {
                command.env_remove("PHALANX_RANK");
                self.spares_started += 1;
                Label::new(format!("spare {}", self.spares_started - 1))
            }
        };
        self.spec.output.prepare(&mut command);
        let mut child = command.spawn().map_err(refused)?;
        let pid = child.id();
        let followed = self.spec.output.follow(&mut child, &label, &self.open.0);
        // Listed before anything can fail, so that it is reaped whatever happens.
        self.living.insert(pid, label.clone());
        self.children.insert(pid, Started { child, label, has_rank: rank.is_some() });
        // The number may have belonged to a process that is gone.
        self.seated.remove(&pid);
        self.lost.remove(&pid);
        self.pids.retain(|_, of| *of != pid);
        let telling = self.orders.clone();
        let waiter = std::thread::Builder::new().name(format!("phalanx-wait-{pid}"));
        let waits = waiter.spawn(move || {
            let _ = telling.send(Order::Ended { pid, cause: wait_ended(pid) });
        });
        if let Err(cause) = waits {
            // Nobody would notice its end: it is ended here.
            let _ = self.living.kill(pid, Signal::Kill);
            self.reap(pid, "no thread to wait for it".to_owned());
            return Err(LaunchError::Thread(cause));
        }
        followed.map_err(LaunchError::Thread)?;
        self.lead.watch(pid)
    }

    fn reap(&mut self, pid: u32, cause: String) {
        let Some(mut started) = self.children.remove(&pid) else { return };
        let waited = self.living.reap(pid, &mut started.child);
        let status = waited.unwrap_or_else(|_| ExitStatus::from_raw(1 << 8));
        let (code, label, has_rank) = (code_of(status), started.label.text(), started.has_rank);
        let ended = Ended { pid, code, has_rank, label, cause };
        self.ended.push(ended.clone());
        if self.verdict.is_some() || self.finished.is_some() {
            return;
        }
        let is_told = !self.ask();
        if has_rank && !self.has_formed() {
            self.unjudged.push(ended);
            if is_told {
                self.judge();
            }
        } else if !has_rank && !self.seated.contains_key(&pid) && status.signal().is_some() {
            self.spares_killed += 1;
            if self.spares_killed <= SPARES_KILLED_MAX {
                self.respawn();
            } else {
                let killed = self.spares_killed;
                tracing::error!(killed, "spares are killed as soon as they come; no more are started");
            }
        }
    }

    /// A rank that ends before there is a world takes it along, unless it never wanted one.
    fn judge(&mut self) {
        for ended in std::mem::take(&mut self.unjudged) {
            if self.has_formed() || self.verdict.is_some() {
                continue;
            }
            if ended.code == 0 {
                self.absent = Some(ended);
                self.judge_absence();
            } else {
                let why = format!("{} before the world had formed; {}", ended.what(), ended.advice());
                self.end(ended.code, Some(why));
            }
        }
    }

    /// A command that exits with 0 and never joins is no failure: unless others have joined and wait for it.
    fn judge_absence(&mut self) {
        let Some(absent) = self.absent.clone() else { return };
        if self.has_formed() || self.verdict.is_some() {
            self.absent = None;
            return;
        }
        let seats = self.lead.seats_now().unwrap_or_else(|| self.view.clone()).seats;
        if seats.iter().any(Option::is_some) {
            let why = format!(
                "{} before the world had formed, while others wait for it; every rank must join, or none",
                absent.what()
            );
            self.end(1, Some(why));
        } else if self.children.values().all(|child| !child.has_rank) && self.lead.spares_now() > 0 {
            // No rank is left that a spare which has joined could stand by for; one that joins nothing ends by itself.
            self.end(0, None);
        }
    }

    fn handle_news(&mut self, news: News) {
        self.heard = Instant::now();
        match news {
            News::Seats(view) => self.handle_seats(view),
            News::Lost(loss) => self.handle_loss(&loss),
            News::Finished => self.finished = Some(Instant::now()),
            News::GivenUp(why) => {
                // Of ranks that are ended by force all die; that is no news.
                let first = self.ended.iter().find(|ended| ended.code != 0 && !self.is_replaced(ended.pid));
                let code = first.map_or(1, |ended| ended.code);
                let who = first.map(|ended| format!("{}, and ", ended.what())).unwrap_or_default();
                self.end(code, Some(format!("{who}the run cannot go on: {why}")));
            }
            News::Answered(number) => {
                self.answered = self.answered.max(number);
                if self.answered == self.asked {
                    self.judge();
                }
            }
        }
    }

    fn handle_seats(&mut self, view: View) {
        let had_formed = self.view.epoch.0 > 0;
        let host = self.lead.host();
        for info in view.members.iter().filter(|info| host.is_none_or(|h| h == info.host)) {
            let is_own =
                self.children.contains_key(&info.pid) || self.ended.iter().any(|e| e.pid == info.pid);
            if host.is_some() && !is_own {
                continue;
            }
            self.pids.insert(info.member, info.pid);
            if let Some(rank) = view.rank_of(info.member) {
                self.seated.insert(info.pid, rank);
                if self.children.get(&info.pid).is_some_and(|child| !child.has_rank) {
                    self.spares_killed = 0;
                }
            }
        }
        let before = std::mem::replace(&mut self.view, view);
        if self.view.epoch.0 == 0 {
            self.judge_absence();
            return;
        }
        // A loss that a coordinator elsewhere told while there was no connection shows in the view after it.
        let before = if host.is_some() { before } else { View::default() };
        for (rank, member) in (0..).map(Rank).zip(&before.seats) {
            let Some(member) = member.filter(|m| self.view.rank_of(*m).is_none()) else { continue };
            let cause = "it has no seat any more".to_owned();
            self.handle_loss(&Loss { rank, member, cause });
        }
        if !had_formed && self.spec.spares_once_formed {
            for _ in 0..self.spec.spares {
                self.respawn_now();
            }
        }
    }

    fn handle_loss(&mut self, loss: &Loss) {
        let here = matches!(self.lead, Lead::Here(_));
        let Some(&pid) = self.pids.get(&loss.member) else {
            // A coordinator elsewhere tells of members of all hosts.
            if here {
                self.respawn();
            }
            return;
        };
        if self.lost.contains_key(&pid) {
            return;
        }
        // It may be stopped rather than dead: out is out.
        let at = Instant::now() + if here { Duration::ZERO } else { LEARN_WITHIN };
        self.lost.insert(pid, Some(at));
        self.handle_time();
        self.respawn();
    }

    fn respawn(&mut self) {
        if self.spec.respawn {
            self.respawn_now();
        }
    }

    fn respawn_now(&mut self) {
        // A coordinator elsewhere tells of the last child's loss when no child is left.
        let is_idle = self.children.is_empty() && matches!(self.lead, Lead::Here(_));
        if self.verdict.is_some() || self.finished.is_some() || is_idle {
            return;
        }
        if let Err(cause) = self.spawn(None) {
            tracing::error!(%cause, "no new spare for the one that is gone");
        }
    }

    fn end(&mut self, code: i32, why: Option<String>) {
        self.verdict.get_or_insert(Over { code, why });
        self.kill_all();
    }

    fn kill_all(&self) {
        for &pid in self.children.keys() {
            self.living.kill_all_of(pid);
        }
    }
}
