//! Steps: transactions of the training run. What a step needs to be run again by a newcomer is its state, named here.

use std::sync::Arc;

use super::{Communicator, Element, Error};
use crate::device::Span;
use crate::driver::{Begun, Driver, StateRegions};

/// The memory of a state, in an order that is the same at every rank.
#[derive(Debug, Default)]
pub struct Regions<'a> {
    parts: Vec<&'a [u8]>,
}

impl<'a> Regions<'a> {
    /// No memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a slice.
    #[must_use]
    pub fn with<T: Element>(mut self, values: &'a [T]) -> Self {
        self.parts.push(bytemuck::cast_slice(values));
        self
    }

    fn to_serve(&self) -> StateRegions {
        StateRegions::to_serve(self.parts.iter().map(|part| Span::lend_shared(part)).collect())
    }
}

/// The memory of a state, to write: see [`State::regions_mut`].
#[derive(Debug, Default)]
pub struct RegionsMut<'a> {
    parts: Vec<&'a mut [u8]>,
}

impl<'a> RegionsMut<'a> {
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
///
/// ```
/// use phalanx::{Regions, RegionsMut, State};
///
/// struct Model {
///     weights: Vec<f32>,
///     velocity: Vec<f32>,
/// }
///
/// impl State for Model {
///     fn regions(&self) -> Regions<'_> {
///         Regions::new().with(&self.weights).with(&self.velocity)
///     }
///
///     fn regions_mut(&mut self) -> RegionsMut<'_> {
///         RegionsMut::new().with(&mut self.weights).with(&mut self.velocity)
///     }
/// }
/// ```
pub trait State {
    /// Its memory, from which newcomers are served while the step runs.
    fn regions(&self) -> Regions<'_>;

    /// The same memory in the same order: where a newcomer's state goes, before its step runs.
    fn regions_mut(&mut self) -> RegionsMut<'_>;
}

impl<T: Element> State for Vec<T> {
    fn regions(&self) -> Regions<'_> {
        Regions::new().with(self.as_slice())
    }

    fn regions_mut(&mut self) -> RegionsMut<'_> {
        RegionsMut::new().with(self.as_mut_slice())
    }
}

/// No state at all: each step follows from its number and the rank.
impl State for () {
    fn regions(&self) -> Regions<'_> {
        Regions::new()
    }

    fn regions_mut(&mut self) -> RegionsMut<'_> {
        RegionsMut::new()
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
        // A rank that may still be given its state lends memory to write; all others lend memory to read, from here to
        // the commit: `regions` borrows the state that long, so nobody changes it, by whatever way.
        let takes = self.driver.with_engine(|e| e.rank().is_none() || e.is_newcomer());
        if takes {
            let parts = state.regions_mut().parts;
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            let filled = StateRegions::to_fill(parts.into_iter().map(Span::lend).collect());
            self.driver.begin(filled)?;
            let lent = Lent { driver: Arc::clone(&self.driver) };
            let Some(index) = lent.wait_begun(limit)? else { return Ok(None) };
            let regions = state.regions();
            let there: usize = regions.parts.iter().map(|part| part.len()).sum();
            if bytes != there {
                let what =
                    format!("regions() names {there} bytes, regions_mut() {bytes}; name the same memory");
                return Err(Error::Size { call: "step", what });
            }
            lent.driver.serve_state(regions.to_serve());
            return self.run_body(index, state, body, &lent).map(Some);
        }
        let regions = state.regions();
        self.driver.begin(regions.to_serve())?;
        let lent = Lent { driver: Arc::clone(&self.driver) };
        let Some(index) = lent.wait_begun(limit)? else { return Ok(None) };
        self.run_body(index, state, body, &lent).map(Some)
    }

    fn run_body<S: State + ?Sized, R>(
        &mut self,
        index: u64,
        state: &S,
        body: impl FnOnce(&mut Step<'_>, &S) -> Result<R, Error>,
        lent: &Lent,
    ) -> Result<R, Error> {
        let result = body(&mut Step { comm: self, index }, state)?;
        let ticket = lent.driver.commit()?;
        lent.driver.wait(&ticket)?;
        Ok(result)
    }
}

/// Takes the state regions back when the step ends in any way, from the very driver they were lent to.
struct Lent {
    driver: Arc<Driver>,
}

impl Lent {
    /// The step's number; nothing where no step is left.
    fn wait_begun(&self, limit: u64) -> Result<Option<u64>, Error> {
        match self.driver.wait_begun()? {
            Begun::Step(index) if index < limit => Ok(Some(index)),
            Begun::Step(_) | Begun::RunOver => Ok(None),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.driver.take_back_state();
    }
}
