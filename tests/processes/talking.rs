//! Processes that a test starts and listens to: members of a world, or its coordinator.

#![allow(dead_code, reason = "each of several tests uses a part of it")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

pub const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");
/// Far more than anything here takes; only a failure gets near it.
pub const LONG: Duration = Duration::from_secs(30);

/// Who said what.
pub type Said = (&'static str, String);

/// A process whose lines are told; killed when dropped.
pub struct Talking(pub Child);

impl Talking {
    /// Starts it; each line that it prints is sent to `tell` behind `label`.
    pub fn start(command: &mut Command, label: &'static str, tell: &Sender<Said>) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let tell = tell.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tell.send((label, line)).is_err() {
                    return;
                }
            }
        });
        Self(child)
    }

    /// Starts `command`, a `phalanx` that has no words yet, as a member that runs steps: with a seat, or as a spare.
    pub fn member(
        mut command: Command,
        (coordinator, key): (&str, &str),
        label: &'static str,
        rank: Option<u32>,
        tell: &Sender<Said>,
    ) -> Self {
        command.args(["chaos-rank", "--steps", "--bytes", "64K"]);
        command.env("PHALANX_COORDINATOR", coordinator).env("PHALANX_JOB_KEY", key);
        match rank {
            Some(rank) => command.env("PHALANX_RANK", rank.to_string()),
            None => command.env_remove("PHALANX_RANK"),
        };
        Self::start(&mut command, label, tell)
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`, a `phalanx coordinator`, and says where it listens. What others say meanwhile is not kept.
pub fn coordinator(command: &mut Command, tell: &Sender<Said>, said: &Receiver<Said>) -> (Talking, String) {
    let coordinator = Talking::start(command, "coordinator", tell);
    let line = wait_line(said, |label, line| label == "coordinator" && line.starts_with("coordinator at "));
    (coordinator, line.strip_prefix("coordinator at ").unwrap().to_owned())
}

/// Waits for a line; no line may tell of a wrong element.
pub fn wait_line(said: &Receiver<Said>, mut is_wanted: impl FnMut(&str, &str) -> bool) -> String {
    let until = Instant::now() + LONG;
    let mut seen = Vec::new();
    loop {
        match said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((label, line)) => {
                assert!(!line.starts_with("wrong"), "{label}: {line}");
                if is_wanted(label, &line) {
                    return line;
                }
                seen.push((label, line));
            }
            Err(cause) => panic!("{cause}; seen so far: {seen:?}"),
        }
    }
}

/// Waits until each of `labels` has said a line that is wanted.
pub fn wait_all(said: &Receiver<Said>, labels: &[&str], is_wanted: impl Fn(&str) -> bool) {
    let mut missing = labels.to_vec();
    wait_line(said, |label, line| {
        missing.retain(|l| *l != label || !is_wanted(line));
        missing.is_empty()
    });
}
