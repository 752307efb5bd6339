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
        Ok(()) | Err(_) => Ok(Tie::NotAChild),
    }
}
