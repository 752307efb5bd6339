//! Buffers that the runtime may keep reading: what makes asynchronous ops and retention by reference safe.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Element;
use crate::device::memory::SharedBlock;

/// `len` elements of memory that collectives can use without a copy.
///
/// Inside a step of policy replace its results are retained by reference: reading is always possible, writing only once
/// the step is committed. Memory is freed when the last of buffer and runtime lets go.
#[derive(Debug)]
pub struct Buffer<T> {
    block: SharedBlock,
    readers: Arc<AtomicU32>,
    len: usize,
    element: PhantomData<T>,
}

/// The buffer holds a result of the open step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer holds a result that a newcomer may ask for; write to it after the step is committed")]
pub struct Retained;

impl<T: Element> Buffer<T> {
    /// Zeroed elements.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self {
            block: SharedBlock::zeroed(len * size_of::<T>()),
            readers: Arc::new(AtomicU32::new(0)),
            len,
            element: PhantomData,
        }
    }

    /// A copy of `values`.
    #[must_use]
    pub fn from_slice(values: &[T]) -> Self {
        let buffer = Self::zeroed(values.len());
        buffer.block.span().write(bytemuck::cast_slice(values));
        buffer
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(self.block.bytes())
    }

    /// The elements, to write.
    ///
    /// # Errors
    /// While a result in it is retained for the open step.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], Retained> {
        if self.readers.load(Ordering::Acquire) > 0 {
            return Err(Retained);
        }
        Ok(bytemuck::cast_slice_mut(self.block.bytes_mut()))
    }

    pub(super) fn span(&self) -> crate::device::Span {
        self.block.span()
    }

    /// Whether an op still reads it.
    #[must_use]
    pub fn is_retained(&self) -> bool {
        self.readers.load(Ordering::Acquire) > 0
    }

    /// What keeps the memory alive for an op, and counts it as a reader until it is dropped.
    pub(super) fn keep(&self) -> Box<dyn std::any::Any + Send> {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Box::new(Keep { _block: self.block.clone(), readers: Arc::clone(&self.readers) })
    }
}

struct Keep {
    _block: SharedBlock,
    readers: Arc<AtomicU32>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::AcqRel);
    }
}
