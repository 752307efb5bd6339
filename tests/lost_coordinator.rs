//! A coordinator that dies and never comes back: every call ends with a typed error, nobody waits for ever.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/talking.rs"]
mod talking;

use std::process::Command;
use std::sync::mpsc::channel;

use phalanx::auth::JobKey;
use talking::{PHALANX, Talking, wait_all};

#[test]
fn members_that_lose_their_coordinator_for_good_end_with_a_typed_error() {
    let key = JobKey::random().unwrap().to_hex();
    let (tell, said) = channel();
    let mut coordinator = Command::new(PHALANX);
    coordinator.args(["coordinator", "--listen", "127.0.0.1:0", "--ranks", "3", "--lease-ms", "500"]);
    coordinator.args(["--op-timeout-ms", "1500"]).env("PHALANX_JOB_KEY", &key);
    let (mut coordinator, address) = talking::coordinator(&mut coordinator, &tell, &said);
    let start = |label, rank| {
        Talking::member(Command::new(PHALANX), (address.as_str(), key.as_str()), label, rank, &tell)
    };
    let mut ranks = [start("r0", Some(0)), start("r1", Some(1)), start("r2", Some(2))];
    let mut spare = start("spare 0", None);
    wait_all(&said, &["r0", "r1", "r2"], |line| line.starts_with("progress"));
    coordinator.0.kill().unwrap();
    wait_all(&said, &["r0", "r1", "r2"], |line| line.starts_with("ended") && line.contains("how=evicted"));
    for member in ranks.iter_mut().chain([&mut spare]) {
        assert!(!member.0.wait().unwrap().success());
    }
}
