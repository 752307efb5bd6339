//! Collectives over [`Buffer`]s: inside a step their results are retained by reference, without a copy.

use std::sync::Arc;

use phalanx_core::engine::{CallShape, Retention};
use phalanx_core::ids::Rank;
use phalanx_core::spec::{Algorithm, Collective, ReduceOp, Spec};

use super::collectives::{Contributors, must};
use super::{Buffer, Communicator, Element, Error};
use crate::driver::Ticket;

impl Communicator {
    /// As [`Communicator::all_reduce`], over a buffer that is retained by reference: no copy is made inside a step.
    ///
    /// # Errors
    /// As [`Communicator::start_all_reduce`].
    pub fn all_reduce_buffer<T: Element>(
        &mut self,
        buffer: &mut Buffer<T>,
        op: ReduceOp,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_all_reduce(buffer, op, None)?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::all_reduce_buffer`] by a named algorithm.
    ///
    /// # Errors
    /// As [`Communicator::start_all_reduce`], and when the algorithm cannot.
    pub fn all_reduce_by<T: Element>(
        &mut self,
        buffer: &mut Buffer<T>,
        op: ReduceOp,
        algorithm: Algorithm,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_all_reduce(buffer, op, Some(algorithm))?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::all_gather`], over buffers that are retained by reference.
    ///
    /// # Errors
    /// When the lengths do not fit; when `output` holds a result of the open step; what ended the op.
    pub fn all_gather_buffer<T: Element>(
        &mut self,
        input: &Buffer<T>,
        output: &mut Buffer<T>,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_all_gather(input, output, None)?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::all_gather_buffer`] by a named algorithm.
    ///
    /// # Errors
    /// As [`Communicator::all_gather_buffer`], and when the algorithm cannot.
    pub fn all_gather_by<T: Element>(
        &mut self,
        input: &Buffer<T>,
        output: &mut Buffer<T>,
        algorithm: Algorithm,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_all_gather(input, output, Some(algorithm))?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::reduce_scatter`], over buffers that are retained by reference.
    ///
    /// # Errors
    /// When the lengths do not fit; when `output` holds a result of the open step; what ended the op.
    pub fn reduce_scatter_buffer<T: Element>(
        &mut self,
        input: &Buffer<T>,
        output: &mut Buffer<T>,
        op: ReduceOp,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_reduce_scatter(input, output, op, None)?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::reduce_scatter_buffer`] by a named algorithm.
    ///
    /// # Errors
    /// As [`Communicator::reduce_scatter_buffer`], and when the algorithm cannot.
    pub fn reduce_scatter_by<T: Element>(
        &mut self,
        input: &Buffer<T>,
        output: &mut Buffer<T>,
        op: ReduceOp,
        algorithm: Algorithm,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_reduce_scatter(input, output, op, Some(algorithm))?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::broadcast`], over a buffer that is retained by reference.
    ///
    /// # Errors
    /// When the root is no rank; when the buffer holds a result of the open step; what ended the op.
    pub fn broadcast_buffer<T: Element>(
        &mut self,
        buffer: &mut Buffer<T>,
        root: Rank,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_broadcast(buffer, root, None)?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::broadcast_buffer`] by a named algorithm.
    ///
    /// # Errors
    /// As [`Communicator::broadcast_buffer`], and when the algorithm cannot.
    pub fn broadcast_by<T: Element>(
        &mut self,
        buffer: &mut Buffer<T>,
        root: Rank,
        algorithm: Algorithm,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_broadcast(buffer, root, Some(algorithm))?;
        Ok(self.driver.wait(&ticket)?)
    }

    /// As [`Communicator::reduce`], over a buffer that is retained by reference.
    ///
    /// # Errors
    /// When the root is no rank; when the buffer holds a result of the open step; what ended the op.
    pub fn reduce_buffer<T: Element>(
        &mut self,
        buffer: &mut Buffer<T>,
        op: ReduceOp,
        root: Rank,
    ) -> Result<Contributors, Error> {
        let ticket = self.post_reduce(buffer, op, root)?;
        Ok(self.driver.wait(&ticket)?)
    }

    pub(super) fn post_all_gather<T: Element>(
        &self,
        input: &Buffer<T>,
        output: &Buffer<T>,
        algorithm: Option<Algorithm>,
    ) -> Result<Arc<Ticket>, Error> {
        must("all_gather", "output", output.len(), input.len() * self.world_size() as usize)?;
        let spec = self.spec(Collective::AllGather, T::DTYPE, ReduceOp::Sum, input.len(), Rank(0), algorithm);
        self.post_buffers("all_gather", spec, input, output)
    }

    pub(super) fn post_reduce_scatter<T: Element>(
        &self,
        input: &Buffer<T>,
        output: &Buffer<T>,
        op: ReduceOp,
        algorithm: Option<Algorithm>,
    ) -> Result<Arc<Ticket>, Error> {
        must("reduce_scatter", "input", input.len(), output.len() * self.world_size() as usize)?;
        let spec = self.spec(Collective::ReduceScatter, T::DTYPE, op, output.len(), Rank(0), algorithm);
        self.post_buffers("reduce_scatter", spec, input, output)
    }

    /// Both are kept until the op is freed: what is served to a newcomer may be read from either.
    pub(super) fn post_buffers<T: Element>(
        &self,
        call: &'static str,
        spec: Spec,
        input: &Buffer<T>,
        output: &Buffer<T>,
    ) -> Result<Arc<Ticket>, Error> {
        writable(call, output)?;
        let shape = CallShape { in_place: false, retention: Retention::ByReference };
        let keep = Box::new((input.keep(), output.keep()));
        let memory = (input.span(), output.span());
        Ok(self.driver.post(self.comm, spec, shape, memory, Some(keep))?)
    }

    pub(super) fn post_all_reduce<T: Element>(
        &self,
        buffer: &Buffer<T>,
        op: ReduceOp,
        algorithm: Option<Algorithm>,
    ) -> Result<Arc<Ticket>, Error> {
        let spec = self.spec(Collective::AllReduce, T::DTYPE, op, buffer.len(), Rank(0), algorithm);
        self.post_in_place("all_reduce", spec, buffer)
    }

    pub(super) fn post_broadcast<T: Element>(
        &self,
        buffer: &Buffer<T>,
        root: Rank,
        algorithm: Option<Algorithm>,
    ) -> Result<Arc<Ticket>, Error> {
        let spec = self.spec(Collective::Broadcast, T::DTYPE, ReduceOp::Sum, buffer.len(), root, algorithm);
        self.post_in_place("broadcast", spec, buffer)
    }

    pub(super) fn post_reduce<T: Element>(
        &self,
        buffer: &Buffer<T>,
        op: ReduceOp,
        root: Rank,
    ) -> Result<Arc<Ticket>, Error> {
        let spec = self.spec(Collective::Reduce, T::DTYPE, op, buffer.len(), root, None);
        self.post_in_place("reduce", spec, buffer)
    }

    fn post_in_place<T: Element>(
        &self,
        call: &'static str,
        spec: Spec,
        buffer: &Buffer<T>,
    ) -> Result<Arc<Ticket>, Error> {
        writable(call, buffer)?;
        let shape = CallShape { in_place: true, retention: Retention::ByReference };
        let memory = (buffer.span(), buffer.span());
        Ok(self.driver.post(self.comm, spec, shape, memory, Some(buffer.keep()))?)
    }
}

/// An op may write into the buffer only if no op of the open step still serves from it.
fn writable<T: Element>(call: &'static str, buffer: &Buffer<T>) -> Result<(), Error> {
    if buffer.is_retained() {
        return Err(Error::Size { call, what: super::buffer::Retained.to_string() });
    }
    Ok(())
}
