//! Ops under way: what `start_*` gives, and what comes back when one fails.

use std::sync::Arc;

use super::Error;
use super::collectives::Contributors;
use crate::driver::{Driver, Ticket};

/// What starting an op gives.
pub type Started<B> = Result<Work<B>, Failure<B>>;

/// An op under way, with the buffers it works on: `Buffer<T>` for an op in place, an input and an output, or nothing
/// for a barrier. Forgetting it is safe: the runtime keeps the memory as long as it needs.
///
/// # Example
/// ```no_run
/// use phalanx::{Buffer, Communicator, ReduceOp};
///
/// let mut comm = Communicator::from_env()?;
/// let gradient = Buffer::from_slice(&[0.5f32; 1024]);
/// let work = comm.start_all_reduce(gradient, ReduceOp::Avg)?;
/// // … compute meanwhile …
/// let (gradient, contributors) = work.wait()?;
/// assert_eq!(gradient.len(), 1024);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "an op that nobody waits for has a result that nobody gets"]
pub struct Work<B> {
    driver: Arc<Driver>,
    ticket: Arc<Ticket>,
    buffers: B,
}

impl<B> Work<B> {
    pub(super) const fn new(driver: Arc<Driver>, ticket: Arc<Ticket>, buffers: B) -> Self {
        Self { driver, ticket, buffers }
    }

    /// Whether the op is over. Asking does not move it: the runtime's own thread does, and any call that waits.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ticket.is_over()
    }

    /// Waits for the op and gives the buffers back with the result, and the ranks that contributed.
    ///
    /// # Errors
    /// What ended the op, with the buffers; what lies in its output then is neither input nor result.
    pub fn wait(self) -> Result<(B, Contributors), Failure<B>> {
        match self.driver.wait(&self.ticket) {
            Ok(contributors) => Ok((self.buffers, contributors)),
            Err(error) => Err(Failure::new(error.into(), self.buffers)),
        }
    }
}

/// A call that was refused or an op that failed, with the buffers that were given to it: nothing is lost.
///
/// It turns into an [`Error`] by `?`, without them.
#[derive(Debug)]
pub struct Failure<B> {
    /// Boxed, so that a result of a call is no larger than what it gives when all is well.
    inner: Box<(Error, B)>,
}

impl<B> Failure<B> {
    pub(super) fn new(error: Error, buffers: B) -> Self {
        Self { inner: Box::new((error, buffers)) }
    }

    /// What happened.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.inner.0
    }

    /// What happened, and the buffers.
    #[must_use]
    pub fn into_parts(self) -> (Error, B) {
        *self.inner
    }
}

impl<B> std::fmt::Display for Failure<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.0.fmt(f)
    }
}

impl<B: std::fmt::Debug> std::error::Error for Failure<B> {}

impl<B> From<Failure<B>> for Error {
    fn from(failure: Failure<B>) -> Self {
        failure.inner.0
    }
}
