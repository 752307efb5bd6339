//! A running `phalanx` whose children a test looks at: what they print, who they are, whether they are gone.

#![allow(dead_code, reason = "each of several tests uses a part of it")]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use phalanx::auth::JobKey;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::talking::{LONG, PHALANX, Said, Talking, wait_line};

/// A folder with a name of its own, gone when dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(of: &str) -> Self {
        let unique = JobKey::random().unwrap().to_hex();
        let folder = std::env::temp_dir().join(format!("phalanx-{of}-{}", &unique[..16]));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that can be waited for although it is no child of the test.
pub struct Watched {
    pub pid: i32,
    process: OwnedFd,
}

impl Watched {
    pub fn open(pid: i32) -> Self {
        Self { pid, process: pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap() }
    }

    /// Whether it ends in time.
    pub fn ends(&self) -> bool {
        let flags = rustix::event::PollFlags::IN;
        let mut polled = [rustix::event::PollFd::from_borrowed_fd(self.process.as_fd(), flags)];
        let within = rustix::event::Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&within)).unwrap() == 1
    }

    /// Names of the abstract sockets that it has open.
    pub fn sockets(&self) -> BTreeSet<String> {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        let inodes: BTreeSet<String> = targets
            .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        abstract_sockets()
            .into_iter()
            .filter(|(inode, _)| inodes.contains(inode))
            .map(|(_, name)| name)
            .collect()
    }
}

/// Inode and name of every abstract socket of this network namespace that has a name.
pub fn abstract_sockets() -> Vec<(String, String)> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let row = |line: &str| {
        let mut fields = line.split_whitespace().skip(6);
        let inode = fields.next()?.to_owned();
        fields.next().filter(|name| name.starts_with('@')).map(|name| (inode, name.to_owned()))
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// The children of all threads of a process.
pub fn children_of(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// Polls until the process has children that are wanted.
pub fn wait_children(pid: u32, is_wanted: impl Fn(&[i32]) -> bool) -> Vec<i32> {
    let until = Instant::now() + LONG;
    loop {
        let children = children_of(pid);
        if is_wanted(&children) {
            return children;
        }
        assert!(Instant::now() < until, "the children of {pid} are {children:?}");
        std::thread::yield_now();
    }
}

/// The seat that a child was started for; `None`: a spare.
pub fn rank_of(child: i32) -> Option<u32> {
    let environment = std::fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
    let mut texts = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    texts.find_map(|text| text.strip_prefix("PHALANX_RANK=")?.parse().ok())
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The child of a launcher that was started for `rank`.
pub fn child_for(launcher: &Talking, rank: u32) -> i32 {
    let children = children_of(launcher.0.id());
    let mine: Vec<i32> = children.into_iter().filter(|pid| rank_of(*pid) == Some(rank)).collect();
    assert_eq!(mine.len(), 1, "rank {rank} runs once: {mine:?}");
    mine[0]
}

/// Starts the rest of a `phalanx run` whose ranks run steps for ever, checking every element.
pub fn stepping(run: &mut Command, label: &'static str, tell: &Sender<Said>) -> Talking {
    run.args(["--", PHALANX, "chaos-rank", "--steps", "--bytes", "64K"]);
    Talking::start(run, label, tell)
}

/// The epoch of a line `[…] disturbed rank=1 op=7 epoch=2 …`, if it is one of that rank. Its label is not looked at: a
/// launcher elsewhere than its coordinator may hear of a seat after the first lines from it.
pub fn disturbed(line: &str, rank: u32) -> Option<u64> {
    let rest = line.split_once("] disturbed ")?.1.strip_prefix(&format!("rank={rank} "))?;
    rest.split(' ').find_map(|word| word.strip_prefix("epoch=")?.parse().ok())
}

/// Waits until each of `wanted`, pairs of a launcher's label and a line's beginning, was said. No rank may tell of a
/// wrong element.
pub fn wait_each(said: &Receiver<Said>, wanted: &[(&str, &str)]) {
    let mut missing = wanted.to_vec();
    wait_line(said, |label, line| {
        assert!(!line.contains("] wrong "), "{label}: {line}");
        missing.retain(|(of, beginning)| *of != label || !line.starts_with(beginning));
        missing.is_empty()
    });
}

/// Waits until `rank`, under the launcher that a test calls `of`, has gone through an epoch from `epoch` on, and then
/// goes on under its name.
pub fn wait_disturbed(said: &Receiver<Said>, of: &str, rank: u32, epoch: u64) {
    wait_line(said, |label, line| {
        assert!(!line.contains("] wrong "), "{label}: {line}");
        label == of && disturbed(line, rank).is_some_and(|seen| seen >= epoch)
    });
    wait_each(said, &[(of, &format!("[r{rank}] progress"))]);
}
