//! Runs the engine of a process. Whoever holds the progress token, a lock, drives it: a caller that waits takes it, and
//! the background thread where no caller has driven for a moment; both by `try_lock`, and where it is taken the holder
//! drives for them. A call that posts an op waits for the token and keeps it for that moment only. Spin briefly, yield,
//! then park until a message, a freed slot, a control message or the next timeout.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use phalanx_core::engine::CallShape;
use phalanx_core::error::{CallError, OpError};
use phalanx_core::ids::{CommId, OpId, Rank};
use phalanx_core::spec::Spec;
use phalanx_core::window::ByOp;
use phalanx_core::wire::message::Upward;

use crate::control::client::{Client, ControlEvent};
use crate::device::Span;
use crate::sync::local::{AtomicBool, Mutex};
use crate::sync::{Doorbell, Ordering, Park};
use crate::transport::Transport;
use crate::transport::mux::Mux;

mod aside;
pub mod executor;
pub mod memory;
mod rota;
mod waiting;

pub use executor::{Executor, Notice};
pub use memory::StateRegions;
use rota::Rota;

/// How an op ended: world ranks that contributed, or the error.
pub type Outcome = Result<Vec<Rank>, OpError>;

/// The caller's end of one op.
#[derive(Debug, Default)]
pub struct Ticket {
    over: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    park: Park,
}

impl Ticket {
    /// Whether the op is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn finish(&self, outcome: Outcome) {
        if let Ok(mut slot) = self.outcome.lock() {
            slot.get_or_insert(outcome);
        }
        self.over.store(true, Ordering::Release);
        self.park.unpark();
    }

    fn take(&self) -> Option<Outcome> {
        self.outcome.lock().ok().and_then(|slot| slot.clone())
    }
}

/// What `begin_step` learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The step may run; so many were committed before it.
    Step(u64),
    /// The run is over, this spare was not needed.
    RunOver,
}

/// Everything that only the holder of the token touches.
#[derive(Debug)]
pub struct Inner {
    executor: Executor<Mux>,
    control: Receiver<ControlEvent>,
    client: Client,
    tickets: BTreeMap<OpId, Arc<Ticket>>,
    /// Memory of the runtime that an op still reads; dropped when the op is freed.
    keeps: ByOp<Box<dyn std::any::Any + Send>>,
    begun: Option<Begun>,
    /// Every rank has said good-bye.
    is_over: bool,
    halted: Option<OpError>,
    next_timeout_ms: u64,
}

/// The driver of one process.
#[derive(Debug)]
pub struct Driver {
    rota: Rota<Inner, mio::Poll>,
    bell: Arc<Doorbell>,
    started: Instant,
    stop: AtomicBool,
    background: Park,
}

/// The clock of `started`, in milliseconds. The engine's time.
fn millis(started: Instant) -> u64 {
    started.elapsed().as_millis() as u64
}

/// How long the last words to the coordinator may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Token of the doorbell in the driver's poll; transports count from [`FIRST_TRANSPORT_TOKEN`] on.
const BELL_TOKEN: mio::Token = mio::Token(0);
/// First token that transports may use.
pub const FIRST_TRANSPORT_TOKEN: usize = 16;

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// Engine and transports.
    pub executor: Executor<Mux>,
    /// The poll that the transports are registered with.
    pub poll: mio::Poll,
    /// What the coordinator says.
    pub control: Receiver<ControlEvent>,
    /// The connection to it.
    pub client: Client,
    /// Rung when the coordinator says something.
    pub bell: Arc<Doorbell>,
    /// The clock that the engine was made with.
    pub started: Instant,
}

impl Driver {
    /// Starts the background thread.
    ///
    /// # Errors
    /// When the kernel refuses a thread, or to watch the doorbell.
    pub fn start(parts: Parts) -> std::io::Result<Arc<Self>> {
        let fd = parts.bell.as_fd().as_raw_fd();
        parts.poll.registry().register(&mut mio::unix::SourceFd(&fd), BELL_TOKEN, mio::Interest::READABLE)?;
        let inner = Inner {
            executor: parts.executor,
            control: parts.control,
            client: parts.client,
            tickets: BTreeMap::new(),
            keeps: ByOp::default(),
            begun: None,
            is_over: false,
            halted: None,
            next_timeout_ms: 0,
        };
        let driver = Arc::new(Self {
            rota: Rota::new(inner, parts.poll),
            bell: parts.bell,
            started: parts.started,
            stop: AtomicBool::new(false),
            background: Park::new(),
        });
        let of_thread = Arc::clone(&driver);
        std::thread::Builder::new()
            .name("phalanx-driver".to_owned())
            .spawn(move || of_thread.run_background())?;
        Ok(driver)
    }

    /// Takes a collective into the order of `comm`. `keep` lives until nothing of the op is read any more.
    ///
    /// # Errors
    /// As [`phalanx_core::engine::Engine::handle_post`].
    pub fn post(
        &self,
        comm: CommId,
        spec: Spec,
        shape: CallShape,
        memory: (Span, Span),
        keep: Option<Box<dyn std::any::Any + Send>>,
    ) -> Result<Arc<Ticket>, CallError> {
        let mut inner = self.rota.lock();
        let now_ms = millis(self.started);
        let id = inner.executor.engine.handle_post(comm, spec, shape, now_ms)?;
        Ok(inner.admit(id, memory, keep))
    }

    /// Ends the open step.
    ///
    /// # Errors
    /// As [`phalanx_core::engine::Engine::handle_commit`].
    pub fn commit(&self) -> Result<Arc<Ticket>, CallError> {
        let mut inner = self.rota.lock();
        let id = inner.executor.engine.handle_commit(millis(self.started))?;
        Ok(inner.admit(id, (Span::empty(), Span::empty()), None))
    }

    /// Begins a step over these state regions, which must stay as they are until they are taken back. An error leaves a
    /// step that is open as it is.
    ///
    /// # Errors
    /// As [`phalanx_core::engine::Engine::handle_begin`].
    pub fn begin(&self, regions: StateRegions) -> Result<(), CallError> {
        let mut inner = self.rota.lock();
        inner.executor.engine.handle_begin(regions.bytes())?;
        inner.begun = None;
        inner.executor.set_state(regions);
        // A rank that goes on has its answer now, and need not look at links for it.
        inner.executor.drain_actions();
        inner.take_notices();
        Ok(())
    }

    /// The state regions of the step that has begun, to serve newcomers from until they are taken back.
    pub fn serve_state(&self, regions: StateRegions) {
        self.rota.lock().executor.set_state(regions);
        self.kick();
    }

    /// Waits until the step that was begun may run: at once for a rank that goes on, after the seat and the state for a
    /// spare.
    ///
    /// # Errors
    /// When the member is put out.
    pub fn wait_begun(&self) -> Result<Begun, CallError> {
        self.wait_until(None, |inner| {
            if let Some(error) = &inner.halted {
                return Some(Err(evicted(error)));
            }
            if inner.is_over {
                return Some(Ok(Begun::RunOver));
            }
            inner.begun.take().map(Ok)
        })
    }

    /// The state regions of the step are the caller's again.
    pub fn take_back_state(&self) {
        let mut inner = self.rota.lock();
        let has_news = inner.executor.engine.handle_state_gone();
        inner.executor.set_state(StateRegions::default());
        drop(inner);
        if has_news {
            self.kick();
        }
    }

    /// Waits until this member has a seat, or the run is over (`None`).
    ///
    /// # Errors
    /// When the member is put out.
    pub fn wait_seated(&self) -> Result<Option<Rank>, CallError> {
        self.wait_until(None, |inner| {
            if let Some(error) = &inner.halted {
                return Some(Err(evicted(error)));
            }
            if inner.is_over {
                return Some(Ok(None));
            }
            inner.executor.engine.rank().map(|rank| Ok(Some(rank)))
        })
    }

    /// Waits for an op.
    ///
    /// # Errors
    /// What ended the op.
    pub fn wait(&self, ticket: &Ticket) -> Outcome {
        self.wait_until(Some(ticket), |_| ticket.is_over().then(|| ticket.take()).flatten())
    }

    /// Says good-bye, and serves peers until every rank has: what lies here may be all that is left of an op. Then
    /// stops the background thread.
    pub fn leave(&self) {
        {
            let mut inner = self.rota.lock();
            if inner.halted.is_none() && !inner.is_over {
                inner.executor.engine.handle_leave();
            }
        }
        self.wait_until(None, |inner| (inner.halted.is_some() || inner.is_over).then_some(()));
        self.rota.lock().client.close(Instant::now() + CLOSE_WITHIN);
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        self.background.unpark();
    }

    /// What the engine says, for tests and tools.
    pub fn with_engine<R>(&self, look: impl FnOnce(&phalanx_core::engine::Engine) -> R) -> R {
        look(&self.rota.lock().executor.engine)
    }

    /// Makes a communicator of these world ranks known.
    ///
    /// # Errors
    /// When this member has no seat.
    pub fn split(&self, comm: CommId, group: Vec<Rank>) -> Result<(), CallError> {
        self.rota.lock().executor.engine.handle_split(comm, group)
    }
}

/// The error of a call that was made after the member was put out.
fn evicted(error: &OpError) -> CallError {
    if let OpError::Evicted { member, epoch, cause } = error {
        return CallError::Evicted { member: *member, epoch: *epoch, cause: cause.clone() };
    }
    let next = "end this process; the op that failed has the reason";
    CallError::StepOrder {
        what: "a call after the end of this member",
        epoch: phalanx_core::ids::Epoch(0),
        next,
    }
}

impl Inner {
    fn admit(
        &mut self,
        id: OpId,
        memory: (Span, Span),
        keep: Option<Box<dyn std::any::Any + Send>>,
    ) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket::default());
        self.executor.attach(id, memory.0, memory.1);
        self.tickets.insert(id, Arc::clone(&ticket));
        if let Some(keep) = keep {
            self.keeps.insert(id, keep);
        }
        // An op that the engine ended in the call itself has its notice queued already.
        self.take_notices();
        ticket
    }

    /// Everything that can be done now; true if anything moved.
    fn turn(&mut self, started: Instant) -> bool {
        let mut moved = false;
        let now = started.elapsed();
        let now_ms = now.as_millis() as u64;
        while let Ok(event) = self.control.try_recv() {
            moved = true;
            match event {
                ControlEvent::Message(message) => self.executor.engine.handle_message(message, now_ms),
                ControlEvent::Connected => self.executor.engine.handle_connected(),
                ControlEvent::Lost { cause, .. } => {
                    tracing::warn!(%cause, "connection to the coordinator lost")
                }
            }
        }
        if moved || now_ms >= self.next_timeout_ms {
            self.executor.engine.handle_timeout(now_ms);
            self.next_timeout_ms = self.executor.engine.poll_timeout().unwrap_or(u64::MAX);
        }
        self.executor.transport.tick(now.as_micros() as u64);
        moved |= self.executor.turn();
        moved |= self.take_notices();
        while let Some(message) = self.executor.engine.poll_message() {
            if let Upward::Suspect { member, cause, .. } = &message {
                tracing::warn!(%member, %cause, "link fault");
            }
            self.client.send(message);
        }
        moved
    }

    fn take_notices(&mut self) -> bool {
        let mut moved = false;
        while let Some(notice) = self.executor.poll_notice() {
            moved = true;
            match notice {
                Notice::OpOver { op, outcome, retained } => {
                    if let Some(ticket) = self.tickets.remove(&op) {
                        ticket.finish(outcome);
                    }
                    if !retained {
                        self.keeps.remove(op);
                    }
                }
                Notice::Freed { op } => {
                    self.keeps.remove(op);
                }
                Notice::StepBegun { committed } => self.begun = Some(Begun::Step(committed)),
                Notice::RunOver => self.is_over = true,
                Notice::Halted { error } => {
                    for ticket in std::mem::take(&mut self.tickets).into_values() {
                        ticket.finish(Err(error.clone()));
                    }
                    self.keeps.clear();
                    self.halted = Some(error);
                }
            }
        }
        moved
    }

    /// Makes whatever comes next wake the poll, and says how long to sleep at most; `None`: something is there already.
    fn arm(&mut self, started: Instant) -> Option<Duration> {
        const LONGEST_MS: u64 = 1_000;
        if !self.executor.transport.arm() {
            self.disarm();
            return None;
        }
        let now = millis(started);
        Some(Duration::from_millis(self.next_timeout_ms.saturating_sub(now).clamp(1, LONGEST_MS)))
    }

    /// Awake again.
    fn disarm(&mut self) {
        self.executor.transport.disarm();
    }
}
