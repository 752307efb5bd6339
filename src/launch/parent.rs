//! A child that must not outlive its launcher.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::LaunchError;

/// Whether the system ends this process with its launcher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tie {
    /// It does, also when the launcher is killed.
    Tied,
    /// The launcher is not the parent (a shell in between, say): only the lost control connection tells.
    NotAChild,
}

/// Ties the calling process to its launcher `parent_pid`. Called by a member at its start.
///
/// # Errors
/// [`LaunchError::ParentGone`] when the launcher has ended already; the caller should end too.
pub fn tie_to_parent(parent_pid: u32) -> Result<Tie, LaunchError> {
    let parent = i32::try_from(parent_pid).ok().and_then(Pid::from_raw);
    let parent = parent.ok_or(LaunchError::ParentGone(parent_pid))?;
    let refused =
        |cause: rustix::io::Errno| LaunchError::Signal { pid: std::process::id(), cause: cause.into() };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(refused)?;
    // Asked after the signal is set: a parent that ended before it was set is noticed here.
    if getppid() == Some(parent) {
        return Ok(Tie::Tied);
    }
    set_parent_process_death_signal(None).map_err(refused)?;
    match rustix::process::test_kill_process(parent) {
        Err(rustix::io::Errno::SRCH) => Err(LaunchError::ParentGone(parent_pid)),
        // One that has ended and is not reaped yet can still be signalled.
        Ok(()) | Err(_) if has_ended(parent_pid) => Err(LaunchError::ParentGone(parent_pid)),
        Ok(()) | Err(_) => Ok(Tie::NotAChild),
    }
}

/// Whether nothing is left of the process but its exit code.
fn has_ended(pid: u32) -> bool {
    stat_of(pid, 0).is_some_and(|state| matches!(state.as_str(), "Z" | "X"))
}

/// The process by which the launcher `parent_pid` knows the calling one: its child that this one is, or descends from
/// (a shell in between, say). The calling process itself where neither is so.
#[must_use]
pub fn child_of(parent_pid: u32) -> u32 {
    const GENERATIONS: usize = 64;
    let own = std::process::id();
    let mut child = own;
    for _ in 0..GENERATIONS {
        match parent_of(child) {
            Some(parent) if parent == parent_pid => return child,
            Some(parent) => child = parent,
            None => break,
        }
    }
    own
}

fn parent_of(pid: u32) -> Option<u32> {
    stat_of(pid, 1)?.parse().ok().filter(|parent| *parent != 0)
}

/// From `/proc`: a field behind the name, which stands in brackets and may have any bytes in it.
fn stat_of(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_has_ended_and_is_not_reaped_is_gone() {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let mut launcher = std::process::Command::new("true").spawn().unwrap();
        let pid = launcher.id();
        let ended = WaitId::Pid(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
        waitid(ended, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        assert!(matches!(tie_to_parent(pid), Err(LaunchError::ParentGone(gone)) if gone == pid));
        launcher.wait().unwrap();
        assert!(matches!(tie_to_parent(pid), Err(LaunchError::ParentGone(_))));
        assert_eq!(tie_to_parent(std::process::id()).unwrap(), Tie::NotAChild);
    }

    #[test]
    fn the_way_up_ends_at_the_child_of_the_launcher() {
        let own = std::process::id();
        let parent = parent_of(own).unwrap();
        assert_eq!(child_of(parent), own);
        if let Some(grandparent) = parent_of(parent) {
            assert_eq!(child_of(grandparent), parent);
        }
        assert_eq!(child_of(u32::MAX), own, "no such launcher");
    }
}
