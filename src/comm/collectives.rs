//! The collectives. Sizes are in elements; every rank calls the same with the same sizes.

use std::sync::Arc;

use phalanx_core::algorithms::select::{Reproducibility, choose_for};
use phalanx_core::engine::{CallShape, Retention};
use phalanx_core::ids::Rank;
use phalanx_core::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

use super::{Communicator, Element, Error};
use crate::device::Span;
use crate::driver::Ticket;

/// Ranks whose input is in a result.
pub type Contributors = Vec<Rank>;

impl Communicator {
    pub(super) fn spec(
        &self,
        collective: Collective,
        dtype: Dtype,
        reduction: ReduceOp,
        count: usize,
        root: Rank,
        algorithm: Option<Algorithm>,
    ) -> Spec {
        let n = self.world_size().max(1);
        let count = count as u64;
        let mut spec = Spec { collective, dtype, reduction, count, root, algorithm: Algorithm::Direct };
        spec.algorithm = algorithm.unwrap_or_else(|| choose_for(&spec, n, Reproducibility::Canonical));
        spec
    }

    /// An op without memory.
    pub(super) fn post_nothing(&self, spec: Spec) -> Result<Arc<Ticket>, Error> {
        let shape = CallShape { in_place: false, retention: Retention::Copy };
        Ok(self.driver.post(self.comm, spec, shape, (Span::empty(), Span::empty()), None)?)
    }

    fn run(&self, spec: Spec, in_place: bool, input: Span, output: Span) -> Result<Contributors, Error> {
        // The caller may do what it likes with the memory when this returns: whatever may be asked for again is copied.
        let shape = CallShape { in_place, retention: Retention::Copy };
        let ticket = self.driver.post(self.comm, spec, shape, (input, output), None)?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// Reduces `values` over all ranks, in place: every rank ends with the reduction. The sum is the same, bit for bit,
    /// whatever algorithm, transport and message size (see docs/reproducible.md).
    ///
    /// # Errors
    /// What ended the op; the same at every rank.
    ///
    /// # Example
    /// ```no_run
    /// # let mut comm = phalanx::Communicator::from_env()?;
    /// let mut gradient = vec![0.5f32; 1024];
    /// comm.all_reduce(&mut gradient, phalanx::ReduceOp::Avg)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn all_reduce<T: Element>(&mut self, values: &mut [T], op: ReduceOp) -> Result<Contributors, Error> {
        let spec = self.spec(Collective::AllReduce, T::DTYPE, op, values.len(), Rank(0), None);
        let span = Span::lend(bytemuck::cast_slice_mut(values));
        self.run(spec, true, span, span)
    }

    /// Reduces `input` over all ranks into `output`.
    ///
    /// # Errors
    /// When the lengths differ; what ended the op.
    pub fn all_reduce_into<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<Contributors, Error> {
        must("all_reduce", "output", output.len(), input.len())?;
        let spec = self.spec(Collective::AllReduce, T::DTYPE, op, input.len(), Rank(0), None);
        let (from, to) = lend(input, output);
        self.run(spec, false, from, to)
    }

    /// Gathers `input` of every rank into `output`, in rank order: `output.len() = world_size * input.len()`.
    ///
    /// # Errors
    /// When the lengths do not fit; what ended the op.
    pub fn all_gather<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<Contributors, Error> {
        must("all_gather", "output", output.len(), input.len() * self.world_size() as usize)?;
        let spec = self.spec(Collective::AllGather, T::DTYPE, ReduceOp::Sum, input.len(), Rank(0), None);
        let (from, to) = lend(input, output);
        self.run(spec, false, from, to)
    }

    /// Reduces `input` over all ranks; rank `r` gets the `r`-th part: `input.len() = world_size * output.len()`.
    ///
    /// # Errors
    /// When the lengths do not fit; what ended the op.
    pub fn reduce_scatter<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<Contributors, Error> {
        must("reduce_scatter", "input", input.len(), output.len() * self.world_size() as usize)?;
        let spec = self.spec(Collective::ReduceScatter, T::DTYPE, op, output.len(), Rank(0), None);
        let (from, to) = lend(input, output);
        self.run(spec, false, from, to)
    }

    /// Gives every rank the root's `values`.
    ///
    /// # Errors
    /// When the root is no rank; what ended the op.
    pub fn broadcast<T: Element>(&mut self, values: &mut [T], root: Rank) -> Result<Contributors, Error> {
        let spec = self.spec(Collective::Broadcast, T::DTYPE, ReduceOp::Sum, values.len(), root, None);
        let span = Span::lend(bytemuck::cast_slice_mut(values));
        self.run(spec, true, span, span)
    }

    /// Reduces `values` over all ranks into the root's `values`; the others' stay as they are.
    ///
    /// # Errors
    /// When the root is no rank; what ended the op.
    pub fn reduce<T: Element>(
        &mut self,
        values: &mut [T],
        op: ReduceOp,
        root: Rank,
    ) -> Result<Contributors, Error> {
        let spec = self.spec(Collective::Reduce, T::DTYPE, op, values.len(), root, None);
        let span = Span::lend(bytemuck::cast_slice_mut(values));
        self.run(spec, true, span, span)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// What ended the op.
    pub fn barrier(&mut self) -> Result<Contributors, Error> {
        let spec = self.spec(Collective::Barrier, Dtype::U8, ReduceOp::Sum, 0, Rank(0), None);
        let ticket = self.post_nothing(spec)?;
        Ok(self.driver.wait(&ticket)?)
    }
}

fn lend<T: Element>(input: &[T], output: &mut [T]) -> (Span, Span) {
    (Span::lend_shared(bytemuck::cast_slice(input)), Span::lend(bytemuck::cast_slice_mut(output)))
}

pub(super) fn must(call: &'static str, which: &str, is: usize, wants: usize) -> Result<(), Error> {
    if is == wants {
        return Ok(());
    }
    Err(Error::Size { call, what: format!("{which} has {is} elements, the call needs {wants}") })
}
