//! Steps: transactions of the training run. What a step needs to be run again by a newcomer is its state, named here.

use std::sync::Arc;

use super::{Communicator, Element, Error};
use crate::device::Span;
use crate::driver::{Begun, Driver, StateRegions};

/// The memory of a state, in an order that is the same at every rank.
#[derive(Debug, Default)]
pub struct Regions<'a> {
    parts: Vec<&'a mut [u8]>,
}

impl<'a> Regions<'a> {
    /// No memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a slice.
    #[must_use]
    pub fn with<T: Element>(mut self, values: &'a mut [T]) -> Self {
        self.parts.push(bytemuck::cast_slice_mut(values));
        self
    }
}

/// What a step starts from: parameters, optimizer state, counters. Replicated: the same at every rank.
///
/// A newcomer gets it from the survivors, byte for byte; so everything that decides what the step does must be in it,
/// or follow from the step's number and the rank.
pub trait State {
    /// Its memory.
    fn regions(&mut self) -> Regions<'_>;
}

impl<T: Element> State for Vec<T> {
    fn regions(&mut self) -> Regions<'_> {
        Regions::new().with(self.as_mut_slice())
    }
}

/// No state at all: each step follows from its number and the rank.
impl State for () {
    fn regions(&mut self) -> Regions<'_> {
        Regions::new()
    }
}

/// The open step.
#[derive(Debug)]
pub struct Step<'a> {
    /// The collectives of the step.
    pub comm: &'a mut Communicator,
    index: u64,
}

impl Step<'_> {
    /// Steps committed before this one.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }
}

impl Communicator {
    /// Runs one step: `body` calls its collectives and computes what changes; then the step is committed, and the
    /// caller applies the change to `state`. `None`: `limit` steps are committed, or the run ended without this spare.
    ///
    /// When a rank dies, survivors wait inside their op; the spare that takes its seat gets `state` as it was at the
    /// begin of the step, runs `body` from its start, and catches up. So `body` must compute the same for the same
    /// state, step number and rank. The same loop serves rank and spare:
    ///
    /// ```no_run
    /// use phalanx::{Communicator, ReduceOp};
    ///
    /// let mut comm = Communicator::from_env()?;
    /// let mut params = vec![0f32; 1000];
    /// while let Some(gradient) = comm.step(100, &mut params, |step, params| {
    ///     let mut gradient: Vec<f32> = params.iter().map(|p| 1.0 - p).collect();
    ///     step.comm.all_reduce(&mut gradient, ReduceOp::Avg)?;
    ///     Ok(gradient)
    /// })? {
    ///     params.iter_mut().zip(&gradient).for_each(|(p, g)| *p += 0.1 * g);
    /// }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `body` returns, and what ended one of its ops or the commit. After an error the step stays open: leave.
    pub fn step<S: State + ?Sized, R>(
        &mut self,
        limit: u64,
        state: &mut S,
        body: impl FnOnce(&mut Step<'_>, &S) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        if self.rank().is_some() && self.steps_committed() >= limit {
            return Ok(None);
        }
        let spans = state.regions().parts.into_iter().map(Span::lend).collect();
        self.driver.begin(StateRegions::new(spans))?;
        // The regions are lent from here until the commit, and `state` stays borrowed that long. However the step ends,
        // they are taken back, before the borrow ends, from the very driver they were lent to.
        let lent = Lent { driver: Arc::clone(&self.driver) };
        let index = match lent.driver.wait_begun()? {
            Begun::Step(index) if index < limit => index,
            Begun::Step(_) | Begun::RunOver => return Ok(None),
        };
        let result = body(&mut Step { comm: self, index }, state)?;
        let ticket = lent.driver.commit()?;
        lent.driver.wait(&ticket)?;
        Ok(Some(result))
    }
}

/// Takes the state regions back when the step ends in any way.
struct Lent {
    driver: Arc<Driver>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.driver.take_back_state();
    }
}
