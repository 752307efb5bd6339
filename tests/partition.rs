//! A network that splits: two network namespaces with one link between them. Needs the right to make them; without it
//! the test says so and does nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/talking.rs"]
mod talking;

use std::process::Command;
use std::sync::mpsc::channel;

use phalanx::auth::JobKey;
use talking::{PHALANX, Talking, wait_all, wait_line};

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

#[test]
fn ranks_beyond_a_split_are_replaced_and_learn_it_when_the_network_is_whole_again() {
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
    coordinator.args(["coordinator", "--listen", &format!("{NEAR}:0"), "--ranks", "4", "--lease-ms", "500"]);
    coordinator.args(["--domains-lost-max", "2"]).env("PHALANX_JOB_KEY", &key);
    let _coordinator = Talking::start(&mut coordinator, "coordinator", &tell);
    let line = wait_line(&said, |label, line| label == "coordinator" && line.starts_with("coordinator at "));
    let address = line.strip_prefix("coordinator at ").unwrap();
    let start =
        |space: &str, label, rank| Talking::member(split.command(space), (address, &key), label, rank, &tell);
    // Two on each side, and two spares where the coordinator is.
    let _near = [start(&split.near, "r0", Some(0)), start(&split.near, "r1", Some(1))];
    let mut far = [start(&split.far, "r2", Some(2)), start(&split.far, "r3", Some(3))];
    let _spares = [start(&split.near, "spare 0", None), start(&split.near, "spare 1", None)];
    wait_all(&said, &["r0", "r1", "r2", "r3"], |line| line.starts_with("progress"));
    split.link("down");
    wait_all(&said, &["r0", "r1", "spare 0", "spare 1"], |line| {
        line.starts_with("disturbed") && !line.contains(" epoch=1 ")
    });
    wait_all(&said, &["r0", "r1", "spare 0", "spare 1"], |line| line.starts_with("progress"));
    split.link("up");
    wait_all(&said, &["r2", "r3"], |line| line.starts_with("ended") && line.contains("how=evicted"));
    for rank in &mut far {
        assert!(!rank.0.wait().unwrap().success());
    }
}
