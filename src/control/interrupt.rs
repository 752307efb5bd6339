//! Ctrl-C and the polite request to end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

use super::ControlError;

/// Watches for SIGINT and SIGTERM while it lives; of several the latest is told.
///
/// A signal that comes while none lives ends the process at once, as it would have before the first one was made: with
/// 128 and its number, where the system itself would have named the signal.
#[derive(Debug)]
pub struct Interrupt {
    number: u64,
}

/// Who is told. What a signal does is a property of the process, so this is one as well.
struct Told {
    /// How many there were; from the first on signals are caught.
    watches: u64,
    tell: Option<Box<dyn FnMut(i32) + Send>>,
}

static TOLD: Mutex<Told> = Mutex::new(Told { watches: 0, tell: None });

fn told() -> MutexGuard<'static, Told> {
    // Single assignments: a panic elsewhere leaves nothing half done.
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupt {
    /// Calls `tell` on a thread of its own, with the signal's number, for every SIGINT and SIGTERM. It must not block.
    ///
    /// # Errors
    /// When the thread or the signal handlers cannot be set up.
    pub fn watch(tell: impl FnMut(i32) + Send + 'static) -> Result<Self, ControlError> {
        let mut told = told();
        if told.watches == 0 {
            begin().map_err(ControlError::Thread)?;
        }
        told.watches += 1;
        told.tell = Some(Box::new(tell));
        Ok(Self { number: told.watches })
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let mut told = told();
        if told.watches == self.number {
            told.tell = None;
        }
    }
}

/// Starts the thread that lasts as long as the process.
fn begin() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let inside = runtime.enter();
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    drop(inside);
    std::thread::Builder::new().name("phalanx-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    Some(()) = int.recv() => pass_on(SignalKind::interrupt()),
                    Some(()) = term.recv() => pass_on(SignalKind::terminate()),
                    else => return,
                }
            }
        });
    })?;
    Ok(())
}

fn pass_on(signal: SignalKind) {
    let number = signal.as_raw_value();
    match &mut told().tell {
        Some(tell) => tell(number),
        None => std::process::exit(128 + number),
    }
}
