//! A member's connection to the coordinator: a thread that connects, proves the key, and moves messages both ways.

use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use phalanx_core::ids::MemberId;
use phalanx_core::wire::codec::Wire;
use phalanx_core::wire::message::{Downward, Upward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::frame::{read_frame, write_frame};
use super::prove::prove;
use super::{COORDINATOR, ControlError};
use crate::auth::{Handshake, Hello, JobKey, Purpose};

pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(10);
pub(super) const BACKOFF_MAX: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Where the coordinator is and who asks.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port`; the name is resolved at every attempt.
    pub coordinator: String,
    /// What both sides prove.
    pub key: JobKey,
    /// This member.
    pub me: MemberId,
}

/// What happens on the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// It is up, or up again: the engine introduces itself (`Engine::handle_connected`).
    Connected,
    /// The coordinator says something.
    Message(Downward),
    /// It broke, or cannot be opened; attempts go on. A cause that repeats is told once.
    Lost {
        /// What was seen.
        cause: String,
    },
}

enum Order {
    Send(Upward),
    /// Answer once all before it is written to the connection.
    Flush(SyncSender<()>),
    /// Write all before it, then close and answer once the coordinator has read it all.
    Close(SyncSender<()>),
    Stop,
}

/// The member's end.
///
/// The queue of [`send`](Self::send) has no bound of its own: the engine's messages bound it, a few per beat, fence
/// and op deadline. While there is no connection messages are dropped, but for the latest join: the coordinator asks
/// again for whatever it still needs from a member that joined again.
#[derive(Debug)]
pub struct Client {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Starts the thread. Every event goes to `inbox`, then `wake` is called, both on that thread; neither may block.
    ///
    /// # Errors
    /// When the thread cannot be started. An unreachable coordinator is no error: attempts go on until stopped.
    pub fn start(
        config: ClientConfig,
        inbox: Sender<ControlEvent>,
        wake: Box<dyn Fn() + Send>,
    ) -> Result<Self, ControlError> {
        let (orders, taken) = mpsc::unbounded_channel();
        let mut session = Session { config, inbox, wake, orders: taken, join: None, told: None };
        let thread = run_on_thread("phalanx-control", move || async move { session.run().await })?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Queues a message; never blocks.
    pub fn send(&self, message: Upward) {
        let _ = self.orders.send(Order::Send(message));
    }

    /// Blocks until everything sent before is written to the connection; `false` when there is none, or it does not
    /// happen before `deadline`.
    pub fn flush(&self, deadline: Instant) -> bool {
        self.ask(Order::Flush, deadline)
    }

    /// Ends the connection so that all that was sent reaches the coordinator, a good-bye for one; `false` when that
    /// is not certain by `deadline`. The client is of no use afterwards.
    pub fn close(&self, deadline: Instant) -> bool {
        self.ask(Order::Close, deadline)
    }

    fn ask(&self, order: impl FnOnce(SyncSender<()>) -> Order, deadline: Instant) -> bool {
        let (answer, answered) = sync_channel(1);
        let _ = self.orders.send(order(answer));
        answered.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

impl Drop for Client {
    /// Stops at once; what is queued is dropped.
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Stopped;

struct Session {
    config: ClientConfig,
    inbox: Sender<ControlEvent>,
    wake: Box<dyn Fn() + Send>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// A join that found no connection yet.
    join: Option<Upward>,
    /// The last loss told, so that it is not told again at every attempt.
    told: Option<String>,
}

impl Session {
    async fn run(&mut self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let cause = match self.connect().await {
                Err(Stopped) => return,
                Ok(Err(cause)) => cause,
                Ok(Ok(stream)) => {
                    backoff = BACKOFF_FIRST;
                    self.told = None;
                    match self.converse(stream).await {
                        Ok(cause) => cause,
                        Err(Stopped) => return,
                    }
                }
            };
            if self.told.as_ref() != Some(&cause) {
                self.told = Some(cause.clone());
                if self.emit(ControlEvent::Lost { cause }).is_err() {
                    return;
                }
            }
            if self.or_stopped(tokio::time::sleep(backoff)).await.is_err() {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn emit(&self, event: ControlEvent) -> Result<(), Stopped> {
        self.inbox.send(event).map_err(|_| Stopped)?;
        (self.wake)();
        Ok(())
    }

    async fn connect(&mut self) -> Result<Result<TcpStream, String>, Stopped> {
        let config = self.config.clone();
        self.or_stopped(async move {
            let hello = Hello { purpose: Purpose::Control, member: config.me, receiver: COORDINATOR };
            dial(&config.coordinator, &config.key, hello).await.map_err(|refused| refused.text)
        })
        .await
    }

    /// Does `work` while there is no connection: what is asked meanwhile cannot be done.
    async fn or_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                order = self.orders.recv() => match order {
                    Some(Order::Send(join @ Upward::Join { .. })) => self.join = Some(join),
                    Some(Order::Send(_)) => {}
                    // The answer's sender is dropped: not done.
                    Some(Order::Flush(_)) => {}
                    Some(Order::Close(_) | Order::Stop) | None => return Err(Stopped),
                },
            }
        }
    }

    /// Serves the connection until it breaks, and says why it did.
    async fn converse(&mut self, stream: TcpStream) -> Result<String, Stopped> {
        self.emit(ControlEvent::Connected)?;
        let (mut reading, mut writing) = stream.into_split();
        let mut joined = false;
        if let Some(join) = self.join.take() {
            joined = true;
            if let Err(cause) = write_frame(&mut writing, &join.to_frame()).await {
                return Ok(cause.to_string());
            }
        }
        let closing = {
            let (inbox, wake) = (&self.inbox, &self.wake);
            tokio::select! {
                cause = listen(&mut reading, inbox, wake) => return cause,
                written = speak(&mut writing, &mut self.orders, joined) => written,
            }
        };
        match closing {
            Ok(answer) => {
                // The coordinator closes its side once it has read everything; without that a message under way in
                // the other direction could make the system throw away what was written.
                let ended = writing.shutdown().await.is_ok() && drained(&mut reading).await;
                if ended {
                    let _ = answer.send(());
                }
                Err(Stopped)
            }
            Err(Some(cause)) => Ok(cause),
            Err(None) => Err(Stopped),
        }
    }
}

/// Why there is no connection to the coordinator.
pub(super) struct Undialed {
    /// What was seen, and what to do.
    pub(super) text: String,
    /// Somebody answered, but did not prove the key.
    pub(super) is_mistrust: bool,
}

/// Opens a connection to the coordinator and proves the key on it.
pub(super) async fn dial(at: &str, key: &JobKey, hello: Hello) -> Result<TcpStream, Undialed> {
    let unreached = |text: String| Undialed { text, is_mistrust: false };
    let opened = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(at)).await;
    let opened = opened.map_err(|_| unreached(format!("the coordinator at {at} does not answer")))?;
    let cannot =
        |cause: std::io::Error| unreached(format!("the coordinator at {at} cannot be reached: {cause}"));
    let mut stream = opened.map_err(cannot)?;
    // Where nobody listens on a port of the system's own choosing, that very port may be chosen for this end: then it
    // is connected to itself, and holds the port that the coordinator wants to come back to.
    if stream.local_addr().map_err(cannot)? == stream.peer_addr().map_err(cannot)? {
        return Err(cannot(std::io::ErrorKind::ConnectionRefused.into()));
    }
    stream.set_nodelay(true).map_err(cannot)?;
    let handshake = Handshake::connect(key, hello).map_err(|cause| unreached(cause.to_string()))?;
    prove(&mut stream, handshake).await.map_err(|cause| Undialed {
        is_mistrust: cause.is_mistrust(),
        text: format!("the coordinator at {at} and this process do not trust each other: {cause}"),
    })?;
    Ok(stream)
}

/// The next message of the coordinator, or why there is none.
pub(super) async fn next_message<M: Wire>(from: &mut OwnedReadHalf) -> Result<M, String> {
    match read_frame(from).await {
        Ok(Some(frame)) => {
            M::from_frame(&frame).map_err(|cause| format!("the coordinator sent what is no message: {cause}"))
        }
        Ok(None) => Err("the coordinator closed the connection".to_owned()),
        Err(cause) => Err(cause.to_string()),
    }
}

/// Runs a session with the coordinator on a thread of its own, until it ends.
pub(super) fn run_on_thread<F: Future>(
    name: &str,
    session: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>, ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ControlError::Thread)?;
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(session());
        // A name that is being resolved must not hold up the end.
        runtime.shutdown_background();
    });
    thread.map_err(ControlError::Thread)
}

async fn listen(
    from: &mut OwnedReadHalf,
    inbox: &Sender<ControlEvent>,
    wake: &(dyn Fn() + Send),
) -> Result<String, Stopped> {
    loop {
        let message = match next_message(from).await {
            Ok(message) => message,
            Err(cause) => return Ok(cause),
        };
        inbox.send(ControlEvent::Message(message)).map_err(|_| Stopped)?;
        wake();
    }
}

/// Writes what is asked until a close (`Ok`), a broken connection (`Err` with its cause), or a stop.
async fn speak(
    to: &mut OwnedWriteHalf,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    mut joined: bool,
) -> Result<SyncSender<()>, Option<String>> {
    loop {
        match orders.recv().await {
            Some(Order::Send(message)) => {
                joined |= matches!(message, Upward::Join { .. });
                // What was meant for an earlier connection comes before the join, and is of no use on this one.
                if joined {
                    write_frame(to, &message.to_frame()).await.map_err(|cause| Some(cause.to_string()))?;
                }
            }
            Some(Order::Flush(answer)) => {
                let _ = answer.send(());
            }
            Some(Order::Close(answer)) => return Ok(answer),
            Some(Order::Stop) | None => return Err(None),
        }
    }
}

/// Reads to the end of the connection; `false` when it breaks before.
async fn drained(from: &mut OwnedReadHalf) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match tokio::time::timeout(CONNECT_WITHIN, from.read(&mut bytes)).await {
            Ok(Ok(0)) => return true,
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}
