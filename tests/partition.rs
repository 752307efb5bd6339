//! A network that splits: two network namespaces with one link between them. Needs the right to make them; without it
//! the test says so and does nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/launched.rs"]
mod launched;
#[path = "processes/talking.rs"]
mod talking;

use std::process::Command;
use std::sync::mpsc::channel;

use launched::{
    Watched, child_for, children_of, rank_of, signal, stepping, wait_children, wait_disturbed, wait_each,
};
use phalanx::auth::JobKey;
use rustix::process::Signal;
use talking::{PHALANX, Talking, wait_line};

/// The near side's address, and the far side's.
const NEAR: &str = "10.231.7.1";
const FAR: &str = "10.231.7.2";

fn ip(words: &[&str]) -> Result<(), String> {
    let ran = Command::new("ip").args(words).output().map_err(|e| format!("`ip` cannot be run: {e}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&ran.stderr).trim()))
}

/// Two namespaces, joined; gone when dropped.
struct Split {
    near: String,
    far: String,
}

impl Split {
    fn make() -> Result<Self, String> {
        let id = std::process::id();
        let split = Self { near: format!("phx-near-{id}"), far: format!("phx-far-{id}") };
        let (near, far) = (split.near.as_str(), split.far.as_str());
        ip(&["netns", "add", near])?;
        ip(&["netns", "add", far])?;
        ip(&["-n", near, "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", far])?;
        for (space, link, address) in [(near, "near", NEAR), (far, "far", FAR)] {
            ip(&["-n", space, "address", "add", &format!("{address}/24"), "dev", link])?;
            ip(&["-n", space, "link", "set", "lo", "up"])?;
            ip(&["-n", space, "link", "set", link, "up"])?;
        }
        Ok(split)
    }

    /// Takes the far side's end of the link down or up.
    fn link(&self, state: &str) {
        ip(&["-n", &self.far, "link", "set", "far", state]).unwrap();
    }

    fn command(&self, space: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", space, PHALANX]);
        command
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        // One that was never made is no loss.
        let _ = ip(&["netns", "del", &self.near]);
        let _ = ip(&["netns", "del", &self.far]);
    }
}

/// Children of a launcher that are there now, to see them end.
fn children(launcher: &Talking) -> Vec<Watched> {
    children_of(launcher.0.id()).into_iter().map(Watched::open).collect()
}

#[test]
fn a_launcher_on_each_host_and_a_network_that_splits_between_them() {
    let split = match Split::make() {
        Ok(split) => split,
        Err(why) => {
            eprintln!("skipped because network namespaces cannot be made here: {why}");
            return;
        }
    };
    let key = JobKey::random().unwrap().to_hex();
    let (tell, said) = channel();
    let mut coordinator = split.command(&split.near);
    coordinator.args(["coordinator", "--listen", &format!("{NEAR}:0"), "-n", "4", "--lease-ms", "1500"]);
    coordinator.args(["--domains-lost-max", "2"]).env("PHALANX_JOB_KEY", &key);
    let (_coordinator, address) = talking::coordinator(&mut coordinator, &tell, &said);
    let start = |space: &str, label, options: &[&str]| {
        let mut run = split.command(space);
        run.args(["run", "--coordinator", &address]).args(options).env("PHALANX_JOB_KEY", &key);
        stepping(&mut run, label, &tell)
    };
    // Two ranks on each side, and two spares where the coordinator is; no more come on that side.
    let mut near = start(&split.near, "near", &["-n", "2", "--spares", "2", "--no-respawn"]);
    let mut far = start(&split.far, "far", &["-n", "2", "--rank-from", "2"]);
    let progress = [("near", "[r0] progress"), ("near", "[r1] progress")];
    wait_each(&said, &progress);
    wait_each(&said, &[("far", "[r2] progress"), ("far", "[r3] progress")]);

    // A rank of one host is killed: a spare of the other has its seat, and its name. Its own launcher, which saw the
    // end, starts a spare in its place.
    signal(child_for(&far, 2), Signal::KILL);
    wait_disturbed(&said, "near", 2, 2);
    let spare = |children: &[i32]| children.iter().any(|pid| rank_of(*pid).is_none());
    wait_children(far.0.id(), |children| children.len() == 2 && spare(children));

    // The network splits: the rank beyond it is replaced too.
    split.link("down");
    wait_disturbed(&said, "near", 3, 3);
    wait_each(&said, &progress);

    // It is whole again: the rank learns that it is out, and its launcher starts a spare for it.
    split.link("up");
    wait_line(&said, |label, line| {
        label == "far" && line.starts_with("[r3] ended") && line.contains("how=evicted")
    });
    wait_children(far.0.id(), |children| {
        children.iter().all(|pid| rank_of(*pid).is_none()) && spare(children)
    });
    // No spare is left on the near side; one of the far side takes over.
    signal(child_for(&near, 0), Signal::KILL);
    wait_disturbed(&said, "far", 0, 4);
    wait_each(&said, &[("near", "[r1] progress"), ("near", "[r2] progress"), ("near", "[r3] progress")]);

    for launcher in [&mut near, &mut far] {
        let children = children(launcher);
        assert!(!children.is_empty());
        launcher.0.kill().unwrap();
        launcher.0.wait().unwrap();
        for child in children {
            assert!(child.ends(), "process {} outlives its launcher", child.pid);
        }
    }
}
