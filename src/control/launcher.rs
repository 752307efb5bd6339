//! A launcher on another host than its coordinator: it follows the world, and reports the ends of its children.
//!
//! A connection of its own, beside those of the children: a child that is killed cannot say how it ended, and who is
//! seated where decides what the launcher does next. It proves the job key like a member, for its own purpose.

use std::thread::JoinHandle;
use std::time::Duration;

use phalanx_core::ids::MemberId;
use phalanx_core::policy::Rules;
use phalanx_core::units::BEATS_PER_LEASE;
use phalanx_core::view::View;
use phalanx_core::wire::codec::{Wire, wire};
use phalanx_core::wire::message::{Loss, VERSION};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::{BACKOFF_FIRST, BACKOFF_MAX, dial, next_message, run_on_thread};
use super::frame::write_frame;
use super::{COORDINATOR, ControlError};
use crate::auth::{Hello, JobKey, Purpose};

/// Leases without a word from the coordinator after which the connection is taken for dead and opened again.
const SILENT_LEASES: u32 = 2;

/// From a launcher to the coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromLauncher {
    /// First message of a connection.
    Follow {
        /// Of the control messages.
        version: u16,
    },
    /// A child that was this member has ended.
    Ended {
        /// Who.
        member: MemberId,
        /// How.
        cause: String,
    },
    /// Still here; it is answered with its number, after all that came of what was said before.
    Beat {
        /// 0: nobody asks.
        number: u64,
    },
}

/// From the coordinator to a launcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToLauncher {
    /// Answer to the first message: what everybody agrees on.
    Welcome {
        /// The rules.
        rules: Rules,
    },
    /// It does not speak with this launcher.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// Who sits where: the last decided view, or, of epoch 0, the seats taken so far.
    Seats {
        /// The view.
        view: View,
    },
    /// A member was declared dead.
    Lost {
        /// Who, why.
        loss: Loss,
    },
    /// All seated ranks have left.
    Finished {},
    /// More was lost than anything can be made of.
    GivenUp {
        /// What, and what to do.
        why: String,
    },
    /// Answer to a beat, and to every [`Launcher::ask`] up to this number.
    BeatSeen {
        /// 0: nobody asked.
        number: u64,
    },
}

wire!(enum FromLauncher { 0 => Follow { version }, 1 => Ended { member, cause }, 2 => Beat { number } });
wire!(enum ToLauncher {
    0 => Welcome { rules }, 1 => Refused { reason }, 2 => Seats { view }, 3 => Lost { loss }, 4 => Finished {},
    5 => GivenUp { why }, 6 => BeatSeen { number },
});

/// Where the coordinator is.
#[derive(Clone, Debug)]
pub struct LauncherConfig {
    /// `host:port`; the name is resolved at every attempt.
    pub coordinator: String,
    /// What both sides prove.
    pub key: JobKey,
}

/// What happens on the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LauncherEvent {
    /// The coordinator says something.
    Told(ToLauncher),
    /// The connection broke, or cannot be opened; attempts go on. A cause that repeats is told once.
    Lost {
        /// What was seen, and what to do.
        cause: String,
        /// The two sides do not hold the same key: to try again changes nothing.
        is_mistrust: bool,
    },
}

enum Order {
    Ended(MemberId, String),
    Ask(u64),
    Stop,
}

/// The launcher's end of the connection; it ends when this is dropped.
#[derive(Debug)]
pub struct Launcher {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Launcher {
    /// Starts the thread, which calls `tell` for every event; it must not block.
    ///
    /// # Errors
    /// When the thread cannot be started. An unreachable coordinator is told as an event.
    pub fn start(
        config: LauncherConfig,
        tell: impl FnMut(LauncherEvent) + Send + 'static,
    ) -> Result<Self, ControlError> {
        let (orders, taken) = mpsc::unbounded_channel();
        let mut session = Session {
            config,
            tell: Box::new(tell),
            orders: taken,
            ended: Vec::new(),
            asked: 0,
            last_cause: None,
            lease: Duration::from_millis(phalanx_core::units::LEASE_MS),
        };
        let thread = run_on_thread("phalanx-launcher-control", move || async move {
            let _ = session.run().await;
        })?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// A child that was `member` has ended. Told again after a lost connection, until the coordinator has declared it
    /// lost.
    pub fn ended(&self, member: MemberId, cause: &str) {
        let _ = self.orders.send(Order::Ended(member, cause.to_owned()));
    }

    /// Asks for [`ToLauncher::BeatSeen`] with this number, greater than any before: once it is there, so is everything
    /// that the coordinator knew when it was asked. Asked again after a lost connection.
    pub fn ask(&self, number: u64) {
        let _ = self.orders.send(Order::Ask(number));
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Stopped;

struct Session {
    config: LauncherConfig,
    tell: Box<dyn FnMut(LauncherEvent) + Send>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Ends that the coordinator has not confirmed as losses.
    ended: Vec<(MemberId, String)>,
    /// The last number asked for, 0 once it is answered.
    asked: u64,
    /// The last loss told, so that it is not told again at every attempt.
    last_cause: Option<String>,
    lease: Duration,
}

impl Session {
    async fn run(&mut self) -> Result<(), Stopped> {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let config = self.config.clone();
            let dialed = self.or_stopped(async move {
                let hello = Hello {
                    purpose: Purpose::Launcher,
                    // Nobody is asked for by it: a launcher has no id.
                    member: COORDINATOR,
                    receiver: COORDINATOR,
                };
                dial(&config.coordinator, &config.key, hello).await
            });
            let (cause, is_mistrust) = match dialed.await? {
                Err(refused) => (refused.text, refused.is_mistrust),
                Ok(stream) => {
                    backoff = BACKOFF_FIRST;
                    self.last_cause = None;
                    (self.converse(stream).await?, false)
                }
            };
            if self.last_cause.as_ref() != Some(&cause) {
                self.last_cause = Some(cause.clone());
                (self.tell)(LauncherEvent::Lost { cause, is_mistrust });
            }
            self.or_stopped(tokio::time::sleep(backoff)).await?;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Does `work` while there is no connection.
    async fn or_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                order = self.orders.recv() => match order {
                    Some(Order::Ended(member, cause)) => self.ended.push((member, cause)),
                    Some(Order::Ask(number)) => self.asked = number,
                    Some(Order::Stop) | None => return Err(Stopped),
                },
            }
        }
    }

    /// Serves the connection until it breaks, and says why it did.
    async fn converse(&mut self, stream: TcpStream) -> Result<String, Stopped> {
        let (mut reading, mut writing) = stream.into_split();
        let follow = std::iter::once(FromLauncher::Follow { version: VERSION });
        let ends = self.ended.iter().cloned().map(|(member, cause)| FromLauncher::Ended { member, cause });
        let ask = (self.asked > 0).then_some(FromLauncher::Beat { number: self.asked });
        for message in follow.chain(ends).chain(ask).collect::<Vec<_>>() {
            if let Err(cause) = write_frame(&mut writing, &message.to_frame()).await {
                return Ok(cause.to_string());
            }
        }
        // A frame that is half read must not be dropped with the branch that reads it: it has a task of its own.
        let (hear, mut heard) = mpsc::channel(1);
        let listening = tokio::spawn(async move { listen(&mut reading, &hear).await });
        match self.serve(&mut heard, &mut writing).await {
            Ok(None) => Ok(listening.await.unwrap_or_else(|_| "the connection was dropped".to_owned())),
            Ok(Some(cause)) => {
                listening.abort();
                Ok(cause)
            }
            Err(Stopped) => {
                listening.abort();
                Err(Stopped)
            }
        }
    }

    /// `None`: the one who listens knows why it is over.
    async fn serve(
        &mut self,
        heard: &mut mpsc::Receiver<ToLauncher>,
        writing: &mut OwnedWriteHalf,
    ) -> Result<Option<String>, Stopped> {
        let mut heard_at = Instant::now();
        let mut beat_due = heard_at;
        loop {
            let beat = self.lease / BEATS_PER_LEASE as u32;
            let message = tokio::select! {
                told = heard.recv() => {
                    let Some(told) = told else { return Ok(None) };
                    heard_at = Instant::now();
                    self.take(told);
                    continue;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Ended(member, cause)) => {
                        self.ended.push((member, cause.clone()));
                        FromLauncher::Ended { member, cause }
                    }
                    Some(Order::Ask(number)) => {
                        self.asked = number;
                        FromLauncher::Beat { number }
                    }
                    Some(Order::Stop) | None => return Err(Stopped),
                },
                () = tokio::time::sleep_until(beat_due) => {
                    beat_due = Instant::now() + beat;
                    FromLauncher::Beat { number: 0 }
                }
            };
            if heard_at.elapsed() > self.lease * SILENT_LEASES {
                return Ok(Some(format!("the coordinator said nothing for {:?}", heard_at.elapsed())));
            }
            if let Err(cause) = write_frame(writing, &message.to_frame()).await {
                return Ok(Some(cause.to_string()));
            }
        }
    }

    fn take(&mut self, told: ToLauncher) {
        match &told {
            ToLauncher::Welcome { rules } => self.lease = Duration::from_millis(rules.lease_ms.max(100)),
            ToLauncher::Lost { loss } => self.ended.retain(|(member, _)| *member != loss.member),
            ToLauncher::Seats { view } if view.epoch.0 > 0 => {
                self.ended.retain(|(member, _)| view.rank_of(*member).is_some());
            }
            ToLauncher::BeatSeen { number } if *number == self.asked => self.asked = 0,
            ToLauncher::Seats { .. }
            | ToLauncher::Refused { .. }
            | ToLauncher::Finished {}
            | ToLauncher::BeatSeen { .. }
            | ToLauncher::GivenUp { .. } => {}
        }
        (self.tell)(LauncherEvent::Told(told));
    }
}

/// Hands on what the coordinator says until the connection ends, and says why it did.
async fn listen(from: &mut OwnedReadHalf, hear: &mpsc::Sender<ToLauncher>) -> String {
    loop {
        let message = match next_message(from).await {
            Ok(message) => message,
            Err(cause) => return cause,
        };
        if hear.send(message).await.is_err() {
            return "nobody listens any more".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Epoch, Rank};
    use phalanx_core::policy::Policy;

    #[test]
    fn messages_survive_the_wire_and_what_is_none_is_refused() {
        let loss = Loss { rank: Rank(1), member: MemberId(6), cause: "exit code 1".into() };
        let view = View { epoch: Epoch(3), seats: vec![Some(MemberId(7)), None], members: Vec::new() };
        for message in [
            ToLauncher::Welcome { rules: Rules::new(3, Policy::Replace) },
            ToLauncher::Refused { reason: "no".into() },
            ToLauncher::Seats { view },
            ToLauncher::Lost { loss },
            ToLauncher::Finished {},
            ToLauncher::GivenUp { why: "gone".into() },
            ToLauncher::BeatSeen { number: 3 },
        ] {
            assert_eq!(ToLauncher::from_frame(&message.to_frame()), Ok(message));
        }
        for message in [
            FromLauncher::Follow { version: VERSION },
            FromLauncher::Ended { member: MemberId(5), cause: "signal 9".into() },
            FromLauncher::Beat { number: 1 << 40 },
        ] {
            assert_eq!(FromLauncher::from_frame(&message.to_frame()), Ok(message));
        }
        assert!(ToLauncher::from_frame(&[7]).is_err() && FromLauncher::from_frame(&[3]).is_err());
        assert!(FromLauncher::from_frame(&[]).is_err() && ToLauncher::from_frame(&[4, 0]).is_err());
    }
}
