//! Bounds-checked binary encoding. Little-endian, no padding; a list is a 32-bit length and its elements.
//!
//! Memory: a list that announces more elements than bytes are left is refused before anything is reserved, and one
//! that is read grows by what is read. So decoding has at no time more than 96 times the frame in use, and keeps at
//! most 64 times. That is the worst list there is, of [`Holding`](crate::wire::message::Holding)s: 1 byte each in the
//! frame, 32 in memory, in a vector that doubles (old and new at once: 32 + 64). `tests/wire_memory.rs` measures it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bitmap::Bitmap;
use crate::ids::{Attempt, ChunkId, CommId, DomainId, Epoch, MemberId, OpId, OpSeq, Rank, StepId};
use crate::spec::{Algorithm, Collective, Dtype, ReduceOp, Spec};

/// Why a frame cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame ends inside a field.
    #[error("frame ends inside {0}")]
    Short(&'static str),
    /// The frame goes on after its last field.
    #[error("frame has {0} bytes too many")]
    Long(usize),
    /// A field holds a value that means nothing.
    #[error("{what} cannot be {value}")]
    Bad {
        /// The field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
}

/// A type with a place on the wire.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads a value.
    ///
    /// # Errors
    /// When the bytes do not hold one.
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The whole value as one frame.
    fn to_frame(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// Reads a frame that holds exactly one value.
    ///
    /// # Errors
    /// When it does not.
    fn from_frame(frame: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: frame };
        let value = Self::get(&mut reader)?;
        if reader.rest.is_empty() { Ok(value) } else { Err(DecodeError::Long(reader.rest.len())) }
    }
}

/// What is left of a frame.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(bytes).ok_or(DecodeError::Short(what))?;
        self.rest = tail;
        Ok(head)
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) { out.extend_from_slice(&self.to_le_bytes()); }
            fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let bytes = from.take(size_of::<$int>(), stringify!($int))?;
                let mut raw = [0; size_of::<$int>()];
                raw.copy_from_slice(bytes);
                Ok(<$int>::from_le_bytes(raw))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

macro_rules! ids {
    ($($id:ident),*) => {$(
        impl Wire for $id {
            fn put(&self, out: &mut Vec<u8>) { self.0.put(out); }
            fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> { Ok(Self(Wire::get(from)?)) }
        }
    )*};
}
ids!(Rank, MemberId, Epoch, OpSeq, CommId, ChunkId, Attempt, DomainId, StepId);

macro_rules! numbered {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) { self.to_wire().put(out); }
            fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let raw = u8::get(from)?;
                Self::from_wire(raw).ok_or(DecodeError::Bad { what: stringify!($name), value: u64::from(raw) })
            }
        }
    )*};
}
numbered!(Collective, Dtype, ReduceOp, Algorithm);

/// Implements [`Wire`] for structs field by field, and for enums variant by variant with a leading number.
#[doc(hidden)]
#[macro_export]
macro_rules! wire {
    (struct $name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::wire::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) { $($crate::wire::codec::Wire::put(&self.$field, out);)* let _ = out; }
            fn get(from: &mut $crate::wire::codec::Reader<'_>) -> Result<Self, $crate::wire::codec::DecodeError> {
                $(let $field = $crate::wire::codec::Wire::get(from)?;)*
                let _ = from;
                Ok(Self { $($field),* })
            }
        }
    };
    (enum $name:ident { $($n:literal => $variant:ident { $($field:ident),* $(,)? }),* $(,)? }) => {
        impl $crate::wire::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($n);
                        $($crate::wire::codec::Wire::put($field, out);)*
                    })*
                }
            }
            fn get(from: &mut $crate::wire::codec::Reader<'_>) -> Result<Self, $crate::wire::codec::DecodeError> {
                let kind = <u8 as $crate::wire::codec::Wire>::get(from)?;
                match kind {
                    $($n => {
                        $(let $field = $crate::wire::codec::Wire::get(from)?;)*
                        Ok(Self::$variant { $($field),* })
                    })*
                    _ => Err($crate::wire::codec::DecodeError::Bad { what: stringify!($name), value: u64::from(kind) }),
                }
            }
        }
    };
}
pub use wire;

wire!(struct OpId { comm, seq });
wire!(struct Spec { collective, dtype, reduction, count, root, algorithm });

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Bad { what: "bool", value: u64::from(other) }),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        bool::get(from)?.then(|| T::get(from)).transpose()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for value in self {
            value.put(out);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(from)? as usize;
        if len > from.rest.len() {
            return Err(DecodeError::Short("a list"));
        }
        // Elements grow the vector as they are read: a short frame never reserves for what it only announces.
        let mut values = Self::new();
        for _ in 0..len {
            values.push(T::get(from)?);
        }
        Ok(values)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(from)?, B::get(from)?))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(from)? as usize;
        Ok(Self::from_utf8_lossy(from.take(len, "a text")?).into_owned())
    }
}

impl Wire for SocketAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend_from_slice(&ip.octets());
            }
        }
        self.port().put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ip = match u8::get(from)? {
            4 => IpAddr::V4(Ipv4Addr::from(u32::get(from)?.swap_bytes())),
            6 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(from.take(16, "an address")?);
                IpAddr::V6(Ipv6Addr::from(octets))
            }
            other => return Err(DecodeError::Bad { what: "address family", value: u64::from(other) }),
        };
        Ok(Self::new(ip, u16::get(from)?))
    }
}

impl Wire for Bitmap {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        self.words().to_vec().put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(from)?;
        let words = Vec::<u64>::get(from)?;
        if words.len() as u64 != u64::from(len).div_ceil(64) {
            return Err(DecodeError::Bad { what: "bitmap length", value: u64::from(len) });
        }
        Ok(Self::from_words(len, &words))
    }
}
