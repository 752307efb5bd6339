//! How a world of child processes ended: its exit code, and the one sentence about it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A child that has ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) pid: u32,
    pub(super) code: i32,
    pub(super) has_rank: bool,
    /// Its label at the end: `r1`, `spare 0`.
    pub(super) label: String,
    /// "exit code 3", "signal 9 (SIGKILL)".
    pub(super) cause: String,
}

/// The code that a shell would give: 128 and the number for a signal.
pub(super) fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Ended {
    fn has_failed(&self) -> bool {
        self.code != 0
    }

    /// "rank 1 (process 4711) ended with exit code 3"
    pub(super) fn what(&self) -> String {
        let who =
            self.label.strip_prefix('r').map_or_else(|| self.label.clone(), |rank| format!("rank {rank}"));
        format!("{who} (process {}) ended with {}", self.pid, self.cause)
    }

    /// What to do about it.
    pub(super) fn advice(&self) -> String {
        let output = format!("its output above, behind [{}], says why", self.label);
        match self.code {
            137 => "if nobody killed it, see in `dmesg` whether the memory ran out".to_owned(),
            132 | 134 | 135 | 136 | 139 => format!("it crashed; {output}, if anything does"),
            126 | 127 => format!("{output}; is the command on every host?"),
            _ => output,
        }
    }
}

/// The failure that decides the exit code of a world whose children have all ended, in the order they did: the first
/// that counts and was not replaced. `None`: 0.
pub(super) fn failure(
    ended: &[Ended],
    is_replaced: impl Fn(u32) -> bool,
    is_seated: impl Fn(u32) -> bool,
    is_finished: bool,
) -> Option<&Ended> {
    let mut failed = ended.iter().filter(|e| e.has_failed());
    let counts = |e: &&Ended| !is_replaced(e.pid) && (e.has_rank || is_seated(e.pid));
    let first = ended.iter().filter(|e| e.has_failed()).find(counts);
    // Of a world that never finished nobody was replaced for good.
    first.or_else(|| failed.next().filter(|_| !is_finished))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(pid: u32, code: i32, has_rank: bool) -> Ended {
        let cause = if code > 128 { format!("signal {}", code - 128) } else { format!("exit code {code}") };
        Ended { pid, code, has_rank, label: format!("r{pid}"), cause }
    }

    #[test]
    fn a_replaced_death_does_not_count_but_in_a_world_that_never_finished_it_does() {
        let code = |ended: &[Ended], is_finished| {
            failure(ended, |pid| pid == 2, |pid| [1, 2, 4].contains(&pid), is_finished).map_or(0, |e| e.code)
        };
        let replaced = [ended(2, 137, true), ended(3, 137, false), ended(1, 0, true), ended(4, 0, false)];
        assert_eq!(code(&replaced, true), 0);
        assert_eq!(code(&replaced, false), 137, "nobody finished");
        let failed = [ended(2, 137, true), ended(4, 3, false), ended(1, 5, true)];
        assert_eq!(code(&failed, true), 3, "the first that was not replaced");
        assert_eq!(code(&[ended(1, 0, true)], false), 0, "it never joined, and nothing failed");
    }

    #[test]
    fn a_failure_is_one_sentence_with_who_why_and_what_next() {
        let one = Ended { label: "r1".into(), ..ended(4711, 3, true) };
        assert_eq!(one.what(), "rank 1 (process 4711) ended with exit code 3");
        assert!(one.advice().contains("[r1]"));
        let spare = Ended { label: "spare 0".into(), ..ended(9, 137, false) };
        assert_eq!(spare.what(), "spare 0 (process 9) ended with signal 9");
        assert!(spare.advice().contains("dmesg"));
        assert!(ended(1, 139, true).advice().starts_with("it crashed"));
    }
}
