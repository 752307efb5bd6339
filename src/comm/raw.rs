//! Collectives over memory that the caller answers for: for bindings, whose buffers belong to another language.

use std::sync::Arc;

use phalanx_core::engine::{CallShape, Retention};
use phalanx_core::ids::Rank;
use phalanx_core::spec::{Algorithm, Collective, Dtype, ReduceOp};

use super::collectives::Contributors;
use super::{Communicator, Error};
use crate::device::Span;
use crate::driver::{Driver, Ticket};

/// What to do with raw memory.
///
/// `count` is in elements and means what it means in the safe calls: the whole buffer of an all-reduce, a broadcast or
/// a reduce; the *smaller* of the two of an all-gather (a rank's input) or a reduce-scatter (a rank's output).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawCall {
    /// Which collective: one that users call.
    pub collective: Collective,
    /// Element type.
    pub dtype: Dtype,
    /// Reduction; `Sum` where nothing is reduced.
    pub reduction: ReduceOp,
    /// Elements.
    pub count: usize,
    /// Root of a broadcast or a reduce; rank 0 else.
    pub root: Rank,
    /// A named algorithm; `None`: chosen.
    pub algorithm: Option<Algorithm>,
}

/// A raw op under way. Dropping it does not end the op, nor what the caller promised about the memory.
#[derive(Debug)]
#[must_use = "the memory belongs to the op until it is over"]
pub struct RawWork {
    driver: Arc<Driver>,
    ticket: Arc<Ticket>,
}

impl RawWork {
    /// Whether the op is over, and the memory the caller's again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ticket.is_over()
    }

    /// Waits for the op, and says who contributed.
    ///
    /// # Errors
    /// What ended the op. The memory is the caller's again also then.
    pub fn wait(self) -> Result<Contributors, Error> {
        Ok(self.driver.wait(&self.ticket)?)
    }
}

impl Communicator {
    /// Starts `call` from `input` into `output`, without a copy of what lies there. In place where both are the same
    /// address and both have the same length here. What a newcomer of the open step may ask for is copied when the op
    /// ends, so the memory is the caller's again as soon as the op is over.
    ///
    /// Sizes in bytes: the elements that [`Communicator::all_reduce_into`] and its siblings take at this rank. A side
    /// that this rank does not have (a broadcast's input off the root, a reduce's output off the root, both of a
    /// barrier) may be null.
    ///
    /// # Safety
    /// Until the op is over ([`RawWork::is_over`], or [`RawWork::wait`] has returned), whether or not the `RawWork`
    /// still exists:
    /// - `input` is valid for reads of this rank's input, and `output` for reads and writes of its output;
    /// - nobody writes to `input`, and nobody reads or writes `output`; no Rust reference to `output` is used, no
    ///   exclusive one to `input`.
    ///
    /// # Errors
    /// When the two overlap otherwise than as one buffer (the input of an all-gather may also be its own part of the
    /// output); a null side that this rank has; a root that is no rank; a call that is refused.
    ///
    /// # Example
    /// ```no_run
    /// use phalanx::core::spec::{Collective, Dtype};
    /// use phalanx::{Communicator, Rank, RawCall, ReduceOp};
    ///
    /// let mut comm = Communicator::from_env()?;
    /// let mut gradient = vec![0.5f32; 1024];
    /// let call = RawCall {
    ///     collective: Collective::AllReduce,
    ///     dtype: Dtype::F32,
    ///     reduction: ReduceOp::Avg,
    ///     count: gradient.len(),
    ///     root: Rank(0),
    ///     algorithm: None,
    /// };
    /// let memory = gradient.as_mut_ptr().cast::<u8>();
    /// // SAFETY: `gradient` lives, and nobody looks at it, until `wait` has returned.
    /// let work = unsafe { comm.start_raw(call, memory, memory)? };
    /// work.wait()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub unsafe fn start_raw(
        &mut self,
        call: RawCall,
        input: *const u8,
        output: *mut u8,
    ) -> Result<RawWork, Error> {
        let RawCall { collective, dtype, reduction, count, root, algorithm } = call;
        if matches!(collective, Collective::Commit | Collective::State) {
            return Err(refused(collective, "it is the runtime's own; end a step with `Communicator::step`"));
        }
        let world_size = self.world_size();
        let largest = count.checked_mul(dtype.size() * world_size.max(1) as usize);
        if largest.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(refused(collective, "more bytes than an address space has"));
        }
        let spec = self.spec(collective, dtype, reduction, count, root, algorithm);
        let own = self.rank().unwrap_or_default();
        let bytes = |elements: u64| elements as usize * dtype.size();
        let from = bytes(spec.input_range(own, world_size).1);
        let to = bytes(spec.output_range(own, world_size).1);
        if (from > 0 && input.is_null()) || (to > 0 && output.is_null()) {
            return Err(refused(collective, "a null pointer where this rank has elements"));
        }
        let in_place = from == to && input.cast_mut() == output;
        let (start, out) = (input as usize, output as usize);
        let overlaps = from > 0 && to > 0 && start < out + to && out < start + from;
        let is_own_part = collective == Collective::AllGather && start == out + from * own.index();
        if overlaps && !in_place && !is_own_part {
            return Err(refused(collective, "input and output overlap; give one buffer, or two apart"));
        }
        let lend = |address: *mut u8, bytes: usize| {
            if bytes == 0 {
                return Span::empty();
            }
            // SAFETY: the caller of `start_raw` answers for this rank's side until the op is over; with
            // `Retention::Copy` the driver reads and writes nothing of it afterwards.
            unsafe { Span::new(address, bytes) }
        };
        let memory = (lend(input.cast_mut(), from), lend(output, to));
        let shape = CallShape { in_place, retention: Retention::Copy };
        let ticket = self.driver.post(self.comm, spec, shape, memory, None)?;
        self.driver.kick();
        Ok(RawWork { driver: Arc::clone(&self.driver), ticket })
    }
}

fn refused(collective: Collective, what: &str) -> Error {
    Error::Size { call: collective.name(), what: what.to_owned() }
}
