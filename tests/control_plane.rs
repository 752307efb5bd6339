//! Coordinator and members over real connections, with real engines and real child processes, but no data transport.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use phalanx::auth::{Handshake, Hello, JobKey, Purpose};
use phalanx::control::{
    COORDINATOR, Client, ClientConfig, ControlEvent, FileStore, MemoryStore, Server, ServerConfig,
    ServerHandle, Store,
};
use phalanx_core::coordinator::WorldEvent;
use phalanx_core::engine::{Action, Engine};
use phalanx_core::ids::{DomainId, Epoch, MemberId, Rank};
use phalanx_core::policy::{Policy, Rules};
use phalanx_core::view::MemberInfo;
use phalanx_core::wire::codec::Wire;
use phalanx_core::wire::message::{Downward, Upward, VERSION};
use rustix::process::{Pid, Signal, kill_process};

#[path = "control_plane/launched.rs"]
mod launched;

/// Far more than anything here takes; only a failure gets near it.
const LONG: Duration = Duration::from_secs(20);
const CHILD: &str = "PHALANX_TEST_CHILD";

fn rules(world_size: u32) -> Rules {
    Rules { replace_within_ms: 10_000, ..Rules::new(world_size, Policy::Replace) }
}

fn serve(listen: SocketAddr, key: &JobKey, rules: Rules, store: Box<dyn Store + Send>) -> ServerHandle {
    Server::start(ServerConfig { listen, key: key.clone(), rules, store }, |_, _| {}).unwrap()
}

fn fresh_world(key: &JobKey, rules: Rules) -> ServerHandle {
    serve(([127, 0, 0, 1], 0).into(), key, rules, Box::new(MemoryStore::default()))
}

fn info(member: u64, pid: u32, wants: Option<u32>) -> MemberInfo {
    let wants = wants.map(Rank);
    MemberInfo {
        member: MemberId(member),
        host: 1,
        domain: DomainId(member),
        tcp: None,
        shm: None,
        pid,
        wants,
    }
}

#[derive(Clone, PartialEq, Debug)]
enum Note {
    At { epoch: Epoch, rank: Option<Rank>, steady: bool },
    Halted(String),
    RunOver,
    Lost(String),
}

fn steady(epoch: u64, rank: u32) -> Note {
    Note::At { epoch: Epoch(epoch), rank: Some(Rank(rank)), steady: true }
}

#[expect(clippy::large_enum_variant, reason = "a test")]
enum Tell {
    Control(ControlEvent),
    Leave,
    Crash,
}

/// An engine and its client on a thread; whoever drops it without `leave` makes it crash.
struct Member {
    tell: Sender<Tell>,
    notes: Receiver<Note>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Member {
    fn start(info: MemberInfo, at: SocketAddr, key: &JobKey) -> Self {
        let (tell, told) = channel();
        let (note, notes) = channel();
        let (key, telling) = (key.clone(), tell.clone());
        let thread = std::thread::spawn(move || live(info, at, key, telling, &told, &note));
        Self { tell, notes, thread: Some(thread) }
    }

    fn wait(&self, mut wanted: impl FnMut(&Note) -> bool) -> Note {
        let until = Instant::now() + LONG;
        let mut seen = Vec::new();
        loop {
            match self.notes.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(note) if wanted(&note) => return note,
                Ok(note) => seen.push(note),
                Err(cause) => panic!("{cause}; seen so far: {seen:?}"),
            }
        }
    }

    fn wait_epoch(&self, wanted: u64) -> Note {
        self.wait(|n| matches!(n, Note::At { epoch, steady: true, .. } if epoch.0 >= wanted))
    }

    /// A newcomer has its seat, but not the state of the step yet.
    fn wait_seat(&self, wanted: u64, seat: u32) {
        self.wait(
            |n| matches!(n, Note::At { epoch, rank, .. } if epoch.0 == wanted && *rank == Some(Rank(seat))),
        );
    }

    fn leave(mut self) {
        self.tell.send(Tell::Leave).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.tell.send(Tell::Crash);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn live(
    info: MemberInfo,
    at: SocketAddr,
    key: JobKey,
    telling: Sender<Tell>,
    told: &Receiver<Tell>,
    note: &Sender<Note>,
) {
    let started = Instant::now();
    let now = || started.elapsed().as_millis() as u64;
    let (inbox, events) = channel();
    let wake = Box::new(move || {
        while let Ok(event) = events.try_recv() {
            let _ = telling.send(Tell::Control(event));
        }
    });
    let config = ClientConfig { coordinator: at.to_string(), key, me: info.member };
    let client = Client::start(config, inbox, wake).unwrap();
    let mut engine = Engine::new(info, 0);
    let mut last = None;
    loop {
        while let Some(message) = engine.poll_message() {
            client.send(message);
        }
        let steady = engine.phase() == phalanx_core::engine::Phase::Steady;
        let here = Note::At { epoch: engine.epoch(), rank: engine.rank(), steady };
        if last.as_ref() != Some(&here) {
            last = Some(here.clone());
            let _ = note.send(here);
        }
        let wait = engine.poll_timeout().map_or(LONG, |t| Duration::from_millis(t.saturating_sub(now())));
        match told.recv_timeout(wait.min(LONG)) {
            Ok(Tell::Control(ControlEvent::Connected)) => engine.handle_connected(),
            Ok(Tell::Control(ControlEvent::Message(message))) => engine.handle_message(message, now()),
            Ok(Tell::Control(ControlEvent::Lost { cause })) => {
                let _ = note.send(Note::Lost(cause));
            }
            Ok(Tell::Leave) => {
                engine.handle_leave();
                while let Some(message) = engine.poll_message() {
                    client.send(message);
                }
                assert!(client.flush(Instant::now() + LONG) && client.close(Instant::now() + LONG));
                return;
            }
            Ok(Tell::Crash) => return,
            Err(_) => {}
        }
        engine.handle_timeout(now());
        while let Some(action) = engine.poll_action() {
            match action {
                Action::Revoke { .. } => engine.handle_revoked(),
                Action::Halt { error } => drop(note.send(Note::Halted(error.to_string()))),
                Action::RunOver => drop(note.send(Note::RunOver)),
                Action::Open { .. } | Action::Save { .. } | Action::Restore { .. } | Action::Log { .. } => {}
                Action::Complete { .. } | Action::Free { .. } | Action::StepBegun { .. } => {}
            }
        }
    }
}

/// A child process that is a member; killed and reaped at the end.
struct Process(Child);

impl Process {
    fn spawn(server: &ServerHandle, key: &JobKey, member: u64, rank: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "a_child_is_a_member_until_it_is_killed", "--nocapture"])
            .stdout(Stdio::null());
        command.env(CHILD, format!("{} {} {member} {rank}", server.address(), key.to_hex()));
        let child = command.spawn().unwrap();
        server.watch_child(child.id()).unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the re-executed binary runs; without its variable there is nothing to do.
#[test]
fn a_child_is_a_member_until_it_is_killed() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let fields: Vec<&str> = text.split(' ').collect();
    let (at, key) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
    let (member, rank) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
    let me = Member::start(info(member, std::process::id(), Some(rank)), at, &key);
    // Out of the view, or nobody has killed it: either way it ends.
    let _ =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| me.wait(|n| matches!(n, Note::Halted(_)))));
}

fn started(ranks: u32, spares: u32, server: &ServerHandle, key: &JobKey) -> Vec<Member> {
    let pid = std::process::id();
    let seated = (0..ranks).map(|r| info(u64::from(r) + 1, pid, Some(r)));
    let spare = (0..spares).map(|s| info(100 + u64::from(s), pid, None));
    seated.chain(spare).map(|i| Member::start(i, server.address(), key)).collect()
}

fn lost(event: &WorldEvent) -> bool {
    matches!(event, WorldEvent::Lost(_))
}

#[test]
fn a_world_forms_leaves_and_lets_its_spare_go() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(3));
    let mut members = started(3, 1, &server, &key);
    for (rank, member) in members.iter().take(3).enumerate() {
        assert_eq!(member.wait_epoch(1), steady(1, rank as u32));
    }
    let whole = server.wait_until(LONG, |s| s.is_steady && s.spares == 1).unwrap();
    assert_eq!(whole.view.seats, [Some(MemberId(1)), Some(MemberId(2)), Some(MemberId(3))]);
    let spare = members.pop().unwrap();
    members.into_iter().for_each(Member::leave);
    let finished = server.wait_event(0, LONG, |e| *e == WorldEvent::Finished);
    assert!(finished.is_some(), "{:?} {:?}", server.snapshot(), server.wait_event(0, LONG, lost));
    spare.wait(|n| *n == Note::RunOver);
    assert!(server.wait_event(0, Duration::ZERO, lost).is_none(), "who leaves is not lost");
}

#[test]
fn a_killed_child_is_fenced_within_100_ms_and_replaced() {
    let mut took = Vec::new();
    for _ in 0..7 {
        let key = JobKey::random().unwrap();
        let server = fresh_world(&key, rules(3));
        let mut child = Process::spawn(&server, &key, 50, 2);
        let members = started(2, 1, &server, &key);
        members.iter().take(2).for_each(|m| drop(m.wait_epoch(1)));
        let ready = server.wait_until(LONG, |s| s.is_steady && s.spares == 1).unwrap();
        assert_eq!(ready.joined, [child.0.id()]);
        let begin = Instant::now();
        child.0.kill().unwrap();
        let fenced = server.wait_event(0, LONG, |e| matches!(e, WorldEvent::Fenced(_))).unwrap();
        took.push(begin.elapsed());
        assert_eq!(fenced.event, WorldEvent::Fenced(Epoch(2)));
        let seen = server.wait_event(0, LONG, lost).unwrap();
        assert!(
            matches!(&seen.event, WorldEvent::Lost(l) if l.cause == "signal 9 (SIGKILL)" && l.rank == Rank(2))
        );
        members[2].wait_seat(2, 2);
    }
    took.sort();
    println!("kill to fence, sorted: {took:?}");
    assert!(took[took.len() / 2] < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_stopped_child_is_evicted_when_its_lease_is_over() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, Rules { lease_ms: 2_000, ..rules(2) });
    let child = Process::spawn(&server, &key, 50, 1);
    let members = started(1, 1, &server, &key);
    members[0].wait_epoch(1);
    server.wait_until(LONG, |s| s.is_steady && s.spares == 1).unwrap();
    kill_process(Pid::from_child(&child.0), Signal::STOP).unwrap();
    let seen = server.wait_event(0, LONG, lost).unwrap();
    assert!(matches!(&seen.event, WorldEvent::Lost(l) if l.cause.contains("silent")), "{seen:?}");
    members[1].wait_seat(2, 1);
}

#[test]
fn a_member_elsewhere_is_lost_with_its_connection_unless_it_returns_at_once() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(2));
    let members = started(1, 0, &server, &key);
    let (inbox, events) = channel();
    let config =
        ClientConfig { coordinator: server.address().to_string(), key: key.clone(), me: MemberId(9) };
    let join = |epoch| Upward::Join { version: VERSION, info: info(9, 1, Some(1)), epoch: Epoch(epoch) };
    let first = Client::start(config.clone(), inbox.clone(), Box::new(|| {})).unwrap();
    first.send(join(0));
    let welcome = || {
        let until = Instant::now() + LONG;
        let next = || events.recv_timeout(until.saturating_duration_since(Instant::now())).unwrap();
        while !matches!(next(), ControlEvent::Message(Downward::Welcome { .. })) {}
    };
    welcome();
    members[0].wait_epoch(1);
    drop(first);
    let second = Client::start(config, inbox, Box::new(|| {})).unwrap();
    second.send(join(1));
    welcome();
    assert!(server.wait_event(0, Duration::from_millis(400), lost).is_none(), "it came back");
    drop(second);
    let seen = server.wait_event(0, LONG, lost).unwrap();
    assert!(
        matches!(&seen.event, WorldEvent::Lost(l) if l.member == MemberId(9) && l.cause == "connection lost")
    );
}

#[test]
fn a_child_that_ended_before_its_join_is_refused() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(2));
    let mut child = Command::new("true").spawn().unwrap();
    server.watch_child(child.id()).unwrap();
    server.exit_seen(child.id(), "exit code 0");
    let member = Member::start(info(5, child.id(), Some(0)), server.address(), &key);
    child.wait().unwrap();
    let halted = member.wait(|n| matches!(n, Note::Halted(_)));
    assert!(
        matches!(&halted, Note::Halted(why) if why.contains("has ended already (exit code 0)")),
        "{halted:?}"
    );
}

fn dial(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Everything the server says until it closes; a reset counts as closed.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&bytes[..n]),
            Err(cause) if cause.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(cause) => panic!("still open after {LONG:?}: {cause}"),
        }
    }
}

fn prove(at: SocketAddr, key: &JobKey, member: u64) -> TcpStream {
    let mut stream = dial(at);
    let hello = Hello { purpose: Purpose::Control, member: MemberId(member), receiver: COORDINATOR };
    let mut handshake = Handshake::connect(key, hello).unwrap();
    while handshake.peer().is_none() {
        let mut bytes = vec![0; handshake.wanted_bytes()];
        stream.read_exact(&mut bytes).unwrap();
        handshake.handle_bytes(&bytes).unwrap();
        if let Some(out) = handshake.poll_bytes() {
            stream.write_all(&out).unwrap();
        }
    }
    stream
}

#[test]
fn strangers_get_a_nonce_and_nothing_else() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(2));
    let other = JobKey::random().unwrap();
    let stranger = Member::start(info(7, std::process::id(), Some(0)), server.address(), &other);
    stranger.wait(|n| matches!(n, Note::Lost(why) if why.contains("job key")));
    for garbage in [vec![0; 4096], b"GET / HTTP/1.1\r\n\r\n".repeat(20), u32::MAX.to_le_bytes().repeat(50)] {
        let mut stream = dial(server.address());
        let _ = stream.write_all(&garbage);
        let heard = rest(&mut stream);
        assert!(heard.len() <= 32, "a stranger heard {} bytes", heard.len());
    }
    // More silent strangers than are served at once delay nobody: nobody waits until their time to speak is over.
    let begun = std::time::Instant::now();
    let silent: Vec<TcpStream> = (0..100).map(|_| dial(server.address())).collect();
    let members = started(2, 0, &server, &key);
    members.iter().for_each(|m| drop(m.wait_epoch(1)));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn a_member_that_talks_nonsense_loses_its_connection_and_nobody_else_notices() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(2));
    let members = started(2, 0, &server, &key);
    members.iter().for_each(|m| drop(m.wait_epoch(1)));
    let before = server.wait_until(LONG, |s| s.is_steady).unwrap();
    let framed = |body: &[u8]| [&(body.len() as u32).to_le_bytes()[..], body].concat();
    let disguised = Upward::Join { version: VERSION, info: info(1, 1, None), epoch: Epoch(1) };
    for bytes in [u32::MAX.to_le_bytes().to_vec(), framed(&[0xff; 99]), framed(&disguised.to_frame())] {
        let mut stream = prove(server.address(), &key, 77);
        stream.write_all(&bytes).unwrap();
        assert_eq!(rest(&mut stream), b"", "closed without a word");
    }
    // Half a frame, then the end.
    let mut stream = prove(server.address(), &key, 78);
    stream.write_all(&[9, 0, 0, 0, 1]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), b"");
    assert_eq!(server.snapshot(), before);
    assert!(server.wait_event(0, Duration::ZERO, lost).is_none());
}

#[test]
fn a_member_that_does_not_read_is_cut_off() {
    let key = JobKey::random().unwrap();
    let server = fresh_world(&key, rules(2));
    let mut stream = prove(server.address(), &key, 7);
    stream.set_write_timeout(Some(LONG)).unwrap();
    let join = Upward::Join { version: VERSION, info: info(7, 1, Some(0)), epoch: Epoch(0) }.to_frame();
    let framed = [&(join.len() as u32).to_le_bytes()[..], &join].concat();
    stream.write_all(&framed).unwrap();
    server.wait_until(LONG, |s| s.view.seats[0].is_some()).unwrap();
    // Each join is answered; the answers pile up until the server has had enough.
    let batch = framed.repeat(1000);
    let until = Instant::now() + LONG;
    while stream.write_all(&batch).is_ok() {
        assert!(Instant::now() < until, "still connected");
    }
    assert!(server.wait_until(LONG, |s| s.view.seats[0].is_none()).is_some(), "and its seat is free again");
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_restarted_coordinator_fences_again_and_evicts_nobody_who_came_back() {
    let key = JobKey::random().unwrap();
    let folder = Folder(std::env::temp_dir().join(format!("phalanx-control-{}", &key.to_hex()[..16])));
    let open = || Box::new(FileStore::open(&folder.0).unwrap());
    let server = serve(([127, 0, 0, 1], 0).into(), &key, rules(3), open());
    let at = server.address();
    let spare = Member::start(info(100, std::process::id(), None), at, &key);
    server.wait_until(LONG, |s| s.spares == 1).unwrap();
    let members = started(3, 0, &server, &key);
    members.iter().for_each(|m| drop(m.wait_epoch(1)));
    let before = server.wait_until(LONG, |s| s.is_steady).unwrap();
    server.shutdown();
    members.iter().for_each(|m| drop(m.wait(|n| matches!(n, Note::Lost(_)))));
    let server = serve(at, &key, rules(3), open());
    for (rank, member) in members.iter().enumerate() {
        assert_eq!(member.wait_epoch(2), steady(2, rank as u32));
    }
    let after = server.wait_until(LONG, |s| s.is_steady && s.epoch == Epoch(2)).unwrap();
    assert_eq!((after.view.seats, after.spares), (before.view.seats, 1));
    assert!(server.wait_event(0, Duration::ZERO, lost).is_none());
    members.into_iter().for_each(Member::leave);
    spare.wait(|n| *n == Note::RunOver);
}

#[test]
fn a_fence_asked_again_after_a_lost_connection_is_answered_again() {
    let mut coordinator = phalanx_core::coordinator::Coordinator::new(rules(1), None, 0);
    let mut engine = Engine::new(info(1, 1, Some(0)), 0);
    coordinator.handle_message(MemberId(1), engine.poll_message().unwrap(), 0);
    let record = coordinator.poll_store().unwrap();
    coordinator.handle_stored(&record, 0);
    while let Some((_, message)) = coordinator.poll_message() {
        engine.handle_message(message, 0);
    }
    let mut ledgers = || {
        engine.handle_message(Downward::Fence { epoch: Epoch(2), losses: Vec::new() }, 1);
        while let Some(action) = engine.poll_action() {
            if matches!(action, Action::Revoke { .. }) {
                engine.handle_revoked();
            }
        }
        std::iter::from_fn(|| engine.poll_message())
            .filter(|m| matches!(m, Upward::Ledger { .. }))
            .collect::<Vec<_>>()
    };
    let first = ledgers();
    assert_eq!(first.len(), 1);
    assert_eq!(ledgers(), first, "the answer may have been lost with the connection");
}
