//! Child processes of this one: their end, seen by pidfd at once, and whether they run.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Opens the process with id `pid`, which must not have been reaped.
pub(super) fn open(pid: u32) -> std::io::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits for the end of the process, and says how it ended if it is a child that nobody has reaped yet.
pub(super) async fn exited(process: OwnedFd) -> std::io::Result<String> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd's does not, and it stays \
                  open inside"
    )]
    let process = AsyncFd::with_interest(process, Interest::READABLE)?;
    let _ready = process.readable().await?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(process.get_ref().as_fd()), options);
    Ok(status.ok().flatten().map_or_else(|| "process exited".to_owned(), |status| exit_cause(&status)))
}

/// "exit code 1", "signal 9 (SIGKILL)".
pub(crate) fn exit_cause(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => signal_name(signal),
        (None, None) => "process exited".to_owned(),
    }
}

/// "signal 9 (SIGKILL)".
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// Whether the process is running or waiting for its turn on a processor, or for a page or a disk: slow, not stopped.
/// One that sleeps, was stopped, or is gone does not count.
pub(super) fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| matches!(state(&stat), Some('R' | 'D')))
}

/// The state letter; the name before it is in parentheses and may itself hold any character.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_found_behind_any_name() {
        assert_eq!(state("12 (sleep) S 1 2"), Some('S'));
        assert_eq!(state("12 (a) R (b)) D 1 2"), Some('D'));
        assert_eq!(state("12 (sleep"), None);
        assert!(!is_running(u32::MAX), "no panic on a pid that is not there");
    }

    #[test]
    fn a_busy_child_runs_and_a_stopped_one_does_not() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = child.id();
        let until = |wanted: bool| {
            while is_running(pid) != wanted {
                std::thread::yield_now();
            }
        };
        until(true);
        rustix::process::kill_process(Pid::from_child(&child), rustix::process::Signal::STOP).unwrap();
        until(false);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_a_child_is_seen_with_its_cause() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (script, expected) in [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9 (SIGKILL)")] {
            let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let process = open(child.id()).unwrap();
            assert_eq!(runtime.block_on(exited(process)).unwrap(), expected);
            child.wait().unwrap();
        }
        assert!(open(u32::MAX).is_err());
    }
}
