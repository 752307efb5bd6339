//! The coordinator's endpoint: a thread that listens, believes only who proves the job key, and drives the
//! coordinator.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use phalanx_core::coordinator::{Coordinator, WorldEvent};
use phalanx_core::ids::MemberId;
use phalanx_core::policy::Rules;
use phalanx_core::wire::codec::{DecodeError, Wire};
use phalanx_core::wire::message::Upward;
use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::frame::{FrameError, read_frame, write_frame};
use super::launcher::FromLauncher;
use super::owner::{Fact, Line, Owner, QUEUE_BYTES_MAX, QUEUE_FRAMES_MAX, Queued};
use super::prove::{ProveError, prove};
use super::store::Store;
use super::watch::{Seen, Snapshot, Watch};
use super::{COORDINATOR, ControlError, children};
use crate::auth::{Handshake, Hello, JobKey, Purpose};

/// Connections that have not proven the key yet; one more, and the oldest is dropped: who proves itself does so at
/// once, and who never does must not keep the others out.
const STRANGERS_MAX: usize = 64;
/// Facts of connections that wait for the owner; then their sockets wait.
const FACTS_MAX: usize = 256;
/// Pause after the system refuses to accept (no descriptors left): the cause does not go away at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// What a coordinator needs.
pub struct ServerConfig {
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What members must prove.
    pub key: JobKey,
    /// What everybody agrees on.
    pub rules: Rules,
    /// Where decisions are kept. With a record in it the world goes on instead of forming.
    pub store: Box<dyn Store + Send>,
}

/// Starts coordinators.
#[derive(Debug)]
pub struct Server;

/// A running coordinator. It stops when this is dropped.
pub struct ServerHandle {
    address: SocketAddr,
    orders: mpsc::UnboundedSender<Order>,
    watch: Watch,
    watches: std::sync::Mutex<u64>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Fact(Fact),
    Watch { pid: u32, watch: u64, process: OwnedFd },
    Stop,
}

impl Server {
    /// Binds the listener, reads the store, and starts the thread. `observer` is called on that thread for every
    /// event, with the milliseconds since the start; it must not block.
    ///
    /// # Errors
    /// When the address is taken, the store cannot be read, or the thread cannot be started.
    pub fn start(
        config: ServerConfig,
        observer: impl FnMut(&WorldEvent, u64) + Send + 'static,
    ) -> Result<ServerHandle, ControlError> {
        let listener = Self::listen(config.listen)?;
        Self::start_on(listener, config, observer)
    }

    /// Binds the listener; port 0 lets the system choose. Nobody is answered yet, but who connects from now on waits.
    ///
    /// # Errors
    /// When the address is taken or is not this host's.
    pub fn listen(address: SocketAddr) -> Result<StdListener, ControlError> {
        StdListener::bind(address).map_err(|cause| ControlError::Listen { address, cause })
    }

    /// As [`start`](Self::start), on a listener that [`listen`](Self::listen) made.
    ///
    /// # Errors
    /// When the store cannot be read, or the thread cannot be started.
    pub fn start_on(
        listener: StdListener,
        mut config: ServerConfig,
        observer: impl FnMut(&WorldEvent, u64) + Send + 'static,
    ) -> Result<ServerHandle, ControlError> {
        let refused = |cause| ControlError::Listen { address: config.listen, cause };
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let record = config.store.load()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ControlError::Thread)?;
        let coordinator = Coordinator::new(config.rules, record, 0);
        let watch = Watch::default();
        let (orders, taken) = mpsc::unbounded_channel();
        let (facts, arriving) = mpsc::channel(FACTS_MAX);
        let started = Instant::now();
        let owner =
            Owner::new(coordinator, config.store, Box::new(observer), watch.clone(), started, facts.clone());
        let told = StopTold(watch.clone());
        let thread = std::thread::Builder::new().name("phalanx-coordinator".to_owned()).spawn(move || {
            let told = told;
            let served = runtime.block_on(async {
                let inside = TcpListener::from_std(listener).map_err(|cause| cause.to_string())?;
                tokio::spawn(accept(inside, config.key, facts.clone()));
                serve(owner, taken, arriving, &facts).await.map_err(|cause| cause.to_string())
            });
            if let Err(cause) = &served {
                tracing::error!(cause, "the coordinator cannot go on");
            }
            told.0.stop(served.err().unwrap_or_else(|| "it was told to".to_owned()));
        });
        let thread = thread.map_err(ControlError::Thread)?;
        Ok(ServerHandle { address, orders, watch, watches: std::sync::Mutex::new(0), thread: Some(thread) })
    }
}

/// Wakes whoever waits, also when the thread ends by a panic of the observer.
struct StopTold(Watch);

impl Drop for StopTold {
    fn drop(&mut self) {
        self.0.stop("its thread ended".to_owned());
    }
}

impl ServerHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The end of the child process `pid` was seen by its parent. Only watched children count.
    pub fn exit_seen(&self, pid: u32, cause: &str) {
        self.tell(Order::Fact(Fact::Exited { pid, watch: None, cause: cause.to_owned() }));
    }

    /// The watched child process `pid` was seen running: slow, not dead.
    pub fn running(&self, pid: u32) {
        self.tell(Order::Fact(Fact::Running { pid }));
    }

    /// Watches a child process of this one until its end, which the coordinator hears of at once. Call it before the
    /// child can be reaped.
    ///
    /// # Errors
    /// When there is no such process, or the server has stopped.
    pub fn watch_child(&self, pid: u32) -> Result<(), ControlError> {
        let process = children::open(pid).map_err(|cause| ControlError::Watch { pid, cause })?;
        let watch = {
            let mut watches = self.watches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *watches += 1;
            *watches
        };
        self.orders.send(Order::Watch { pid, watch, process }).map_err(|_| ControlError::Stopped)
    }

    /// The world as the coordinator sees it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.watch.snapshot()
    }

    /// Blocks until a snapshot satisfies `is_met` and returns it; `None` when `within` passes or the server stops
    /// before that.
    pub fn wait_until(&self, within: Duration, is_met: impl FnMut(&Snapshot) -> bool) -> Option<Snapshot> {
        self.watch.wait_until(within, is_met)
    }

    /// How many events there were: where to begin a later [`wait_event`](Self::wait_event).
    #[must_use]
    pub fn events_seen(&self) -> u64 {
        self.watch.events_seen()
    }

    /// Blocks until there is an event with number `from` or later that `is_wanted`, and returns the first such;
    /// `None` when `within` passes or the server stops before that.
    pub fn wait_event(
        &self,
        from: u64,
        within: Duration,
        is_wanted: impl FnMut(&WorldEvent) -> bool,
    ) -> Option<Seen> {
        self.watch.wait_event(from, within, is_wanted)
    }

    /// Stops the coordinator; connections close, nobody is told anything.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn tell(&self, order: Order) {
        // A stopped server has nobody left to tell; `snapshot().stopped` says so.
        let _ = self.orders.send(order);
    }

    fn stop(&mut self) {
        self.tell(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn serve(
    mut owner: Owner,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut arriving: mpsc::Receiver<Fact>,
    facts: &mpsc::Sender<Fact>,
) -> Result<(), super::StoreError> {
    owner.handle_time()?;
    loop {
        let due = owner.due();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Fact(fact)) => {
                    owner.handle_wake(due);
                    owner.handle_fact(fact)?;
                }
                Some(Order::Watch { pid, watch, process }) => {
                    owner.handle_wake(due);
                    owner.handle_fact(Fact::Watched { pid, watch })?;
                    tokio::spawn(report_exit(pid, watch, process, facts.clone()));
                }
                Some(Order::Stop) | None => return Ok(()),
            },
            Some(fact) = arriving.recv() => {
                owner.handle_wake(due);
                owner.handle_fact(fact)?;
            }
            () = timer => {
                owner.handle_wake(due);
                owner.handle_time()?;
            }
        }
    }
}

async fn report_exit(pid: u32, watch: u64, process: OwnedFd, facts: mpsc::Sender<Fact>) {
    match children::exited(process).await {
        Ok(cause) => {
            let _ = facts.send(Fact::Exited { pid, watch: Some(watch), cause }).await;
        }
        Err(cause) => tracing::error!(pid, %cause, "a child cannot be watched; its end is seen by its lease"),
    }
}

async fn accept(listener: TcpListener, key: JobKey, facts: mpsc::Sender<Fact>) {
    let mut strangers: VecDeque<AbortHandle> = VecDeque::new();
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                number += 1;
                strangers.retain(|stranger| !stranger.is_finished());
                if strangers.len() >= STRANGERS_MAX
                    && let Some(oldest) = strangers.pop_front()
                {
                    oldest.abort();
                }
                let (key, facts) = (key.clone(), facts.clone());
                let greeting = tokio::spawn(async move {
                    if let Err(cause) = greet(stream, &key, number, facts).await {
                        tracing::debug!(%peer, %cause, "a connection was not proven");
                    }
                });
                strangers.push_back(greeting.abort_handle());
            }
            Err(cause) => {
                tracing::warn!(%cause, "the coordinator cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// From an accepted stream to a proven line with a task of its own.
async fn greet(
    mut stream: TcpStream,
    key: &JobKey,
    number: u64,
    facts: mpsc::Sender<Fact>,
) -> Result<(), ProveError> {
    stream.set_nodelay(true)?;
    let me = Hello { purpose: Purpose::Control, member: COORDINATOR, receiver: COORDINATOR };
    let peer = prove(&mut stream, Handshake::accept_either(key, me, Purpose::Launcher)?).await?;
    let is_local = stream.peer_addr()?.ip() == stream.local_addr()?.ip();
    // From here on it is no stranger, and is not dropped for others.
    tokio::spawn(introduce(stream, peer, is_local, number, facts));
    Ok(())
}

/// Makes a proven connection known to the owner, and reads it from then on.
async fn introduce(stream: TcpStream, peer: Hello, is_local: bool, number: u64, facts: mpsc::Sender<Fact>) {
    let (frames, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
    // The owner must know the line before its first message.
    let (begin, begun) = tokio::sync::oneshot::channel();
    let speaker = match peer.purpose {
        Purpose::Launcher => Speaker::Launcher,
        Purpose::Control | Purpose::DataTcp | Purpose::DataShm => Speaker::Member(peer.member),
    };
    let telling = facts.clone();
    let task = tokio::spawn(async move {
        if begun.await.is_ok() {
            let cause = converse(stream, speaker, number, &telling, queued).await;
            let _ = telling.send(speaker.closed(number, cause)).await;
        }
    });
    let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
    let line = Line { number, is_local, frames, room, task: task.abort_handle() };
    if facts.send(speaker.proven(line)).await.is_ok() {
        let _ = begin.send(());
    }
}

/// Who is at the other end of a proven connection.
#[derive(Clone, Copy)]
enum Speaker {
    Member(MemberId),
    Launcher,
}

impl Speaker {
    fn proven(self, line: Line) -> Fact {
        match self {
            Self::Member(member) => Fact::Proven { member, line },
            Self::Launcher => Fact::LauncherProven { line },
        }
    }

    fn says(self, line: u64, frame: &[u8]) -> Result<Fact, DecodeError> {
        Ok(match self {
            Self::Member(member) => Fact::Message { member, line, message: Upward::from_frame(frame)? },
            Self::Launcher => Fact::LauncherSays { line, message: FromLauncher::from_frame(frame)? },
        })
    }

    fn closed(self, line: u64, cause: String) -> Fact {
        match self {
            Self::Member(member) => Fact::Closed { member, line, cause },
            Self::Launcher => Fact::LauncherClosed { line },
        }
    }
}

/// Serves a proven connection until it ends, and says why it did.
async fn converse(
    stream: TcpStream,
    speaker: Speaker,
    line: u64,
    facts: &mpsc::Sender<Fact>,
    mut queued: mpsc::Receiver<Queued>,
) -> String {
    let (mut reading, mut writing) = stream.into_split();
    let write = async {
        while let Some((frame, _room)) = queued.recv().await {
            write_frame(&mut writing, &frame).await?;
        }
        Ok::<(), FrameError>(())
    };
    tokio::select! {
        cause = listen(&mut reading, speaker, line, facts) => cause,
        written = write => written.err().map_or_else(|| "replaced".to_owned(), |cause| cause.to_string()),
    }
}

async fn listen<R: AsyncRead + Unpin>(
    from: &mut R,
    speaker: Speaker,
    line: u64,
    facts: &mpsc::Sender<Fact>,
) -> String {
    loop {
        let fact = match read_frame(from).await {
            Ok(Some(frame)) => match speaker.says(line, &frame) {
                Ok(fact) => fact,
                Err(cause) => return format!("it sent what is no message: {cause}"),
            },
            Ok(None) => return "closed by the other end".to_owned(),
            Err(cause) => return cause.to_string(),
        };
        if facts.send(fact).await.is_err() {
            return "the coordinator stops".to_owned();
        }
    }
}
