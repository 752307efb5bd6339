//! Ctrl-C and the polite request to end.

use std::thread::JoinHandle;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::ControlError;

/// Watches for SIGINT and SIGTERM while it lives.
///
/// From the first one made in a process on, these signals no longer end the process by themselves.
#[derive(Debug)]
pub struct Interrupt {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    /// Calls `tell` on a thread of its own, with the signal's number, for every SIGINT and SIGTERM.
    ///
    /// # Errors
    /// When the thread or the signal handlers cannot be set up.
    pub fn watch(mut tell: impl FnMut(i32) + Send + 'static) -> Result<Self, ControlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(ControlError::Thread)?;
        let (stop, mut stopped) = oneshot::channel();
        let inside = runtime.enter();
        let mut int = signal(SignalKind::interrupt()).map_err(ControlError::Thread)?;
        let mut term = signal(SignalKind::terminate()).map_err(ControlError::Thread)?;
        drop(inside);
        let thread = std::thread::Builder::new().name("phalanx-signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = &mut stopped => return,
                        Some(()) = int.recv() => tell(SignalKind::interrupt().as_raw_value()),
                        Some(()) = term.recv() => tell(SignalKind::terminate().as_raw_value()),
                        else => return,
                    }
                }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(ControlError::Thread)?) })
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
