//! Ctrl-C in the middle of a command: no process, socket or file of it is left, and the exit code says what it was.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "processes/launched.rs"]
mod launched;
#[path = "processes/talking.rs"]
mod talking;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use launched::{Folder, Watched, abstract_sockets, children_of, signal, wait_children, wait_each};
use phalanx::auth::JobKey;
use rustix::process::Signal;
use talking::{PHALANX, Said, Talking, wait_line};

/// Names in /dev/shm that are this project's; memory of ranks has no name at all.
fn named_segments() -> BTreeSet<std::ffi::OsString> {
    let names =
        std::fs::read_dir("/dev/shm").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()));
    names.filter(|name| name.to_string_lossy().contains("phalanx")).collect()
}

/// Starts `phalanx` with `words`, lets `middle` wait until it is busy, sends the signal, and looks at what is left.
fn interrupt(
    words: &[&str],
    with: Signal,
    has_children: bool,
    middle: impl FnOnce(&Talking, &Receiver<Said>),
) {
    // Where the command runs, and where it would put temporary files.
    let folder = Folder::new("interrupt");
    let (tell, said) = channel();
    let mut command = Command::new(PHALANX);
    command.args(words).current_dir(&folder.0).env("TMPDIR", &folder.0).env_remove("PHALANX_JOB_KEY");
    let before = named_segments();
    let mut running = Talking::start(&mut command, "command", &tell);
    middle(&running, &said);
    let me = Watched::open(i32::try_from(running.0.id()).unwrap());
    let children: Vec<Watched> = children_of(running.0.id()).into_iter().map(Watched::open).collect();
    assert_eq!(!children.is_empty(), has_children, "{words:?}");
    let sockets: BTreeSet<String> = children.iter().chain([&me]).flat_map(Watched::sockets).collect();
    assert_eq!(!sockets.is_empty(), has_children, "ranks on one host find each other by sockets with a name");
    signal(me.pid, with);
    assert!(me.ends(), "{words:?} goes on");
    assert_eq!(running.0.wait().unwrap().code(), Some(128 + with.as_raw()), "{words:?}");
    for child in &children {
        assert!(child.ends(), "process {} of {words:?} is left", child.pid);
    }
    let left: Vec<String> =
        abstract_sockets().into_iter().map(|(_, name)| name).filter(|name| sockets.contains(name)).collect();
    assert!(left.is_empty(), "{words:?} leaves {left:?}");
    let files: Vec<_> =
        std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.is_empty(), "{words:?} leaves {files:?}");
    assert!(named_segments().is_subset(&before), "{words:?} leaves a segment");
}

fn run(with: Signal) {
    let words = ["run", "-n", "2", "--spares", "1", "--", PHALANX, "chaos-rank", "--steps", "--bytes", "64K"];
    interrupt(&words, with, true, |_, said| {
        wait_each(said, &[("command", "[r0] progress"), ("command", "[r1] progress")]);
    });
}

#[test]
fn run_ends_whole_by_ctrl_c() {
    run(Signal::INT);
}

#[test]
fn run_ends_whole_when_asked_to() {
    run(Signal::TERM);
}

#[test]
fn what_a_rank_has_started_ends_with_it() {
    // The shell does not pass signals on; its own child is found by its parent, and seen to end.
    let script = "sleep 1000 & echo ready $!; wait";
    let (tell, said) = channel();
    let mut run = Talking::start(
        Command::new(PHALANX).args(["run", "-n", "1", "--", "sh", "-c", script]),
        "run",
        &tell,
    );
    let line = wait_line(&said, |_, line| line.starts_with("[r0] ready "));
    let grandchild = Watched::open(line.strip_prefix("[r0] ready ").unwrap().parse().unwrap());
    signal(i32::try_from(run.0.id()).unwrap(), Signal::INT);
    assert_eq!(run.0.wait().unwrap().code(), Some(130));
    assert!(grandchild.ends(), "process {} is left", grandchild.pid);
}

#[test]
fn demo_ends_whole_by_ctrl_c() {
    interrupt(&["demo", "--steps", "1000000", "--kill", "none"], Signal::INT, true, |demo, _| {
        // Four ranks and a spare; each says who it is once it has a socket for the others.
        let has_sockets = |pid: &i32| !Watched::open(*pid).sockets().is_empty();
        wait_children(demo.0.id(), |children| children.len() == 5 && children.iter().all(has_sockets));
    });
}

#[test]
fn chaos_ends_whole_by_ctrl_c() {
    interrupt(&["chaos", "--kills", "1000000", "--bytes", "1M"], Signal::INT, true, |_, said| {
        wait_line(said, |_, line| line.contains(" killed in op "));
    });
}

#[test]
fn the_coordinator_ends_by_ctrl_c() {
    for with in [Signal::INT, Signal::TERM] {
        interrupt(&["coordinator", "-n", "2"], with, false, |_, said| {
            wait_line(said, |_, line| line.starts_with("coordinator at "));
        });
    }
}

#[test]
fn a_share_of_a_world_ends_whole_by_ctrl_c() {
    let key = JobKey::random().unwrap().to_hex();
    let (tell, said) = channel();
    let mut coordinator = Command::new(PHALANX);
    coordinator.args(["coordinator", "-n", "2"]).env("PHALANX_JOB_KEY", &key);
    let (_coordinator, address) = talking::coordinator(&mut coordinator, &tell, &said);
    let mut run = Command::new(PHALANX);
    run.args(["run", "--coordinator", &address, "-n", "2"]).env("PHALANX_JOB_KEY", &key);
    let mut run = launched::stepping(&mut run, "run", &tell);
    wait_each(&said, &[("run", "[r0] progress"), ("run", "[r1] progress")]);
    let children: Vec<Watched> = children_of(run.0.id()).into_iter().map(Watched::open).collect();
    assert_eq!(children.len(), 2);
    signal(i32::try_from(run.0.id()).unwrap(), Signal::INT);
    assert_eq!(run.0.wait().unwrap().code(), Some(130));
    for child in &children {
        assert!(child.ends(), "process {} is left", child.pid);
    }
}
