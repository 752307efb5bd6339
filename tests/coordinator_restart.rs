//! `phalanx coordinator --state DIR` is killed, started again with nothing but the folder, and goes on.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/launched.rs"]
mod launched;
#[path = "processes/talking.rs"]
mod talking;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};

use launched::{Folder, child_for, signal, stepping, wait_disturbed, wait_each};
use phalanx::auth::JobKey;
use rustix::process::Signal;
use talking::{PHALANX, Said, Talking};

/// What the coordinator makes itself.
fn state(folder: &Folder) -> PathBuf {
    folder.0.join("state")
}

/// `phalanx coordinator --state` on the folder.
fn on(folder: &Folder, options: &[&str]) -> Command {
    let mut command = Command::new(PHALANX);
    command.args(["coordinator", "--state"]).arg(state(folder)).args(options).env_remove("PHALANX_JOB_KEY");
    command
}

/// What it says when it refuses to start.
fn refused(folder: &Folder, options: &[&str], key: Option<&str>) -> String {
    let mut command = on(folder, options);
    let Output { status, stderr, .. } = command.envs(key.map(|k| ("PHALANX_JOB_KEY", k))).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{options:?}: {text}");
    assert!(text.starts_with("phalanx: ") && text.lines().count() == 1, "{options:?}: {text}");
    text
}

fn end(coordinator: &mut Talking, with: Signal) {
    signal(i32::try_from(coordinator.0.id()).unwrap(), with);
    coordinator.0.wait().unwrap();
}

/// A world of three ranks and a spare, all of them running.
fn world(folder: &Folder, tell: &Sender<Said>, said: &Receiver<Said>) -> (Talking, Talking, String) {
    let key = JobKey::random().unwrap().to_hex();
    let mut first = on(folder, &["-n", "3", "--lease-ms", "1500"]);
    first.env("PHALANX_JOB_KEY", &key);
    let (coordinator, address) = talking::coordinator(&mut first, tell, said);
    let mut run = Command::new(PHALANX);
    run.args(["run", "--coordinator", &address, "-n", "3", "--spares", "1"]).env("PHALANX_JOB_KEY", &key);
    let run = stepping(&mut run, "run", tell);
    wait_each(said, &[("run", "[r0] progress"), ("run", "[r1] progress"), ("run", "[r2] progress")]);
    (coordinator, run, address)
}

#[test]
fn ranks_find_a_coordinator_that_was_started_again_and_a_death_after_that_is_repaired() {
    let folder = Folder::new("restart");
    let (tell, said) = channel();
    let (mut coordinator, run, address) = world(&folder, &tell, &said);
    end(&mut coordinator, Signal::KILL);
    let (_coordinator, again) = talking::coordinator(&mut on(&folder, &[]), &tell, &said);
    assert_eq!(again, address);
    // A coordinator that comes back fences first.
    wait_disturbed(&said, "run", 0, 2);
    signal(child_for(&run, 1), Signal::KILL);
    // The spare, under its rank's name, and with it everybody.
    wait_disturbed(&said, "run", 1, 3);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r2] progress")]);
}

#[test]
fn a_death_while_there_is_no_coordinator_is_repaired_by_the_next_one() {
    let folder = Folder::new("restart");
    let (tell, said) = channel();
    let (mut coordinator, run, _) = world(&folder, &tell, &said);
    end(&mut coordinator, Signal::KILL);
    signal(child_for(&run, 2), Signal::KILL);
    let (_coordinator, _) = talking::coordinator(&mut on(&folder, &[]), &tell, &said);
    wait_disturbed(&said, "run", 2, 2);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress")]);
}

#[test]
fn what_contradicts_the_folder_is_refused_and_the_first_words_are_fine() {
    let folder = Folder::new("restart");
    let (tell, said) = channel();
    let words = ["-n", "3", "--policy", "shrink", "--lease-ms", "900", "--listen", "127.0.0.1:0"];
    let (mut coordinator, address) = talking::coordinator(&mut on(&folder, &words), &tell, &said);
    let settings = state(&folder).join("settings");
    assert_eq!(std::fs::metadata(&settings).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(refused(&folder, &[], None).contains("another coordinator holds the store"));
    end(&mut coordinator, Signal::TERM);
    for (options, key, part) in [
        (&["-n", "4"][..], None, "-n 4 contradicts"),
        (&["--policy", "replace"], None, "--policy replace contradicts"),
        (&["--lease-ms", "1000"], None, "--lease-ms 1000 contradicts"),
        (&["--listen", "127.0.0.1:1"], None, "--listen 127.0.0.1:1 contradicts"),
        (&["--listen", "127.0.0.2:0"], None, "--listen 127.0.0.2:0 contradicts"),
        (&[], Some(JobKey::random().unwrap().to_hex()), "PHALANX_JOB_KEY contradicts"),
    ] {
        let text = refused(&folder, options, key.as_deref());
        assert!(text.contains(part) && text.contains("empty folder"), "{text}");
    }
    let (mut coordinator, again) = talking::coordinator(&mut on(&folder, &words), &tell, &said);
    assert_eq!(again, address, "whatever starts it again may use the same words");
    end(&mut coordinator, Signal::KILL);
    let taken = std::net::TcpListener::bind(&address).unwrap();
    let text = refused(&folder, &[], None);
    assert!(text.contains(&address) && text.contains("free the address"), "{text}");
    drop(taken);
    std::fs::set_permissions(&settings, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&folder, &[], None).contains("chmod 600"));
    std::fs::remove_file(&settings).unwrap();
    let (mut coordinator, _) = talking::coordinator(&mut on(&folder, &words), &tell, &said);
    end(&mut coordinator, Signal::TERM);
}

#[test]
fn a_run_that_is_over_is_not_gone_on_with() {
    let folder = Folder::new("restart");
    let (tell, said) = channel();
    let key = JobKey::random().unwrap().to_hex();
    let mut first = on(&folder, &["-n", "1"]);
    first.env("PHALANX_JOB_KEY", &key);
    let (mut coordinator, address) = talking::coordinator(&mut first, &tell, &said);
    let mut run = Command::new(PHALANX);
    run.args([
        "run",
        "--coordinator",
        &address,
        "-n",
        "1",
        "--",
        PHALANX,
        "chaos-rank",
        "--steps",
        "--ops",
        "3",
    ]);
    let ended = run.env("PHALANX_JOB_KEY", &key).output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(coordinator.0.wait().unwrap().code(), Some(0));
    assert!(refused(&folder, &[], None).contains("is over"));
}
