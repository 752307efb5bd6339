//! The children of one launcher with the thread that looks after them.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use super::living::Living;
use crate::control::Interrupt;
use crate::launch::LaunchError;
use crate::launch::supervisor::{Order, Supervisor};

/// Dropping it kills and reaps every child that still lives.
#[derive(Debug)]
pub(super) struct Crew {
    pub(super) living: Living,
    orders: Sender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
    _interrupt: Option<Interrupt>,
}

impl Crew {
    /// Starts all children; what was started when an error comes is ended.
    pub(super) fn start(
        supervisor: Supervisor,
        living: Living,
        (orders, taken): (Sender<Order>, Receiver<Order>),
        stops_on_interrupt: bool,
    ) -> Result<Self, LaunchError> {
        let _interrupt = stops_on_interrupt.then(|| watch(&orders)).transpose()?;
        // One thread starts all children and lasts as long as they do: a child that asked for a signal at its
        // parent's death gets it when the thread that started it ends.
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("phalanx-launch".to_owned())
            .spawn(move || supervisor.run(&taken, &ready))
            .map_err(LaunchError::Thread)?;
        let crew = Self { living, orders, thread: Some(thread), _interrupt };
        match started.recv() {
            Ok(Ok(())) => Ok(crew),
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err(LaunchError::Thread(std::io::Error::other("it ended at once"))),
        }
    }

    pub(super) fn wait(&self) -> i32 {
        self.living.wait().code
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.living.wait_within(Duration::ZERO)?.why
    }
}

fn watch(orders: &Sender<Order>) -> Result<Interrupt, LaunchError> {
    let orders = orders.clone();
    Ok(Interrupt::watch(move |signal| drop(orders.send(Order::Interrupted(signal))))?)
}

impl Drop for Crew {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
