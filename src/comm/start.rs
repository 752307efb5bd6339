//! Collectives that are started and waited for later: each gives a [`Work`] at once.
//!
//! Buffers are given away and come back from [`Work::wait`], or with the [`Failure`]: while an op runs nobody else can
//! touch them, also when the `Work` is forgotten. Several ops may be under way; they complete in any order.

use std::sync::Arc;

use phalanx_core::ids::Rank;
use phalanx_core::spec::{Collective, Dtype, ReduceOp};

use super::collectives::must;
use super::work::{Failure, Started, Work};
use super::{Buffer, Communicator, Element, Error};
use crate::driver::Ticket;

impl Communicator {
    /// Starts an all-reduce in place; see [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// When the buffer holds a result of the open step that a newcomer may ask for; when the call is refused.
    pub fn start_all_reduce<T: Element>(&mut self, buffer: Buffer<T>, op: ReduceOp) -> Started<Buffer<T>> {
        let posted = self.post_all_reduce(&buffer, op, None);
        self.started(posted, buffer)
    }

    /// Starts an all-reduce of the first buffer into the second; see [`Communicator::all_reduce_into`].
    ///
    /// # Errors
    /// When the lengths differ; when the output holds a result of the open step; when the call is refused.
    pub fn start_all_reduce_into<T: Element>(
        &mut self,
        input: Buffer<T>,
        output: Buffer<T>,
        op: ReduceOp,
    ) -> Started<(Buffer<T>, Buffer<T>)> {
        let posted = must("all_reduce", "output", output.len(), input.len()).and_then(|()| {
            let spec = self.spec(Collective::AllReduce, T::DTYPE, op, input.len(), Rank(0), None);
            self.post_buffers("all_reduce", spec, &input, &output)
        });
        self.started(posted, (input, output))
    }

    /// Starts an all-gather of the first buffer into the second; see [`Communicator::all_gather`].
    ///
    /// # Errors
    /// When the lengths do not fit; when the output holds a result of the open step; when the call is refused.
    pub fn start_all_gather<T: Element>(
        &mut self,
        input: Buffer<T>,
        output: Buffer<T>,
    ) -> Started<(Buffer<T>, Buffer<T>)> {
        let posted = self.post_all_gather(&input, &output, None);
        self.started(posted, (input, output))
    }

    /// Starts a reduce-scatter of the first buffer into the second; see [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// When the lengths do not fit; when the output holds a result of the open step; when the call is refused.
    pub fn start_reduce_scatter<T: Element>(
        &mut self,
        input: Buffer<T>,
        output: Buffer<T>,
        op: ReduceOp,
    ) -> Started<(Buffer<T>, Buffer<T>)> {
        let posted = self.post_reduce_scatter(&input, &output, op, None);
        self.started(posted, (input, output))
    }

    /// Starts a broadcast of the root's buffer; see [`Communicator::broadcast`].
    ///
    /// # Errors
    /// When the root is no rank; when the buffer holds a result of the open step; when the call is refused.
    pub fn start_broadcast<T: Element>(&mut self, buffer: Buffer<T>, root: Rank) -> Started<Buffer<T>> {
        let posted = self.post_broadcast(&buffer, root, None);
        self.started(posted, buffer)
    }

    /// Starts a reduction into the root's buffer; see [`Communicator::reduce`].
    ///
    /// # Errors
    /// When the root is no rank; when the buffer holds a result of the open step; when the call is refused.
    pub fn start_reduce<T: Element>(
        &mut self,
        buffer: Buffer<T>,
        op: ReduceOp,
        root: Rank,
    ) -> Started<Buffer<T>> {
        let posted = self.post_reduce(&buffer, op, root);
        self.started(posted, buffer)
    }

    /// Starts a barrier: its [`Work`] is over when every rank has started or called it.
    ///
    /// # Errors
    /// When the call is refused.
    pub fn start_barrier(&mut self) -> Started<()> {
        let spec = self.spec(Collective::Barrier, Dtype::U8, ReduceOp::Sum, 0, Rank(0), None);
        let posted = self.post_nothing(spec);
        self.started(posted, ())
    }

    fn started<B>(&self, posted: Result<Arc<Ticket>, Error>, buffers: B) -> Started<B> {
        match posted {
            Ok(ticket) => {
                self.driver.kick();
                Ok(Work::new(Arc::clone(&self.driver), ticket, buffers))
            }
            Err(error) => Err(Failure::new(error, buffers)),
        }
    }
}
