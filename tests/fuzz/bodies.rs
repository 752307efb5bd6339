//! What a fuzzer calls with bytes: one body a decoder. Each fails by a panic.

#![allow(dead_code, reason = "a fuzz target calls one of them")]
#![allow(clippy::unwrap_used, reason = "a body fails where it unwraps")]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use phalanx::auth::{Handshake, Hello, JobKey, Purpose};
use phalanx::control::frame::read_frame;
use phalanx::control::{FromLauncher, ToLauncher};
use phalanx::core::coordinator::Record;
use phalanx::core::ids::MemberId;
use phalanx::core::units::SLOT_BYTES;
use phalanx::core::wire::header::HEADER_BYTES;
use phalanx::core::wire::message::{Downward, FRAME_BYTES_MAX, Upward};
use phalanx::core::wire::{Header, Wire};

#[path = "coordinator.rs"]
mod fenced;
#[path = "stream.rs"]
mod link;

pub use fenced::{coordinator, seeds as fenced_seeds};
pub use link::stream;

/// A header that decodes encodes again into one that means the same, and announces a slot at most.
pub fn header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::from_wire(bytes, SLOT_BYTES) {
        assert!(header.payload_bytes as usize <= SLOT_BYTES);
        assert_eq!(Header::from_wire(&header.to_wire(), SLOT_BYTES), Ok(header));
    }
}

/// What decodes encodes again into something that decodes to the same, and is not longer than a lossy text makes it.
fn round_trip<M: Wire + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = M::from_frame(data) {
        let again = message.to_frame();
        assert!(again.len() <= 4 * data.len(), "{} bytes from {}", again.len(), data.len());
        assert_eq!(M::from_frame(&again), Ok(message));
    }
}

pub fn upward(data: &[u8]) {
    round_trip::<Upward>(data);
}

pub fn downward(data: &[u8]) {
    round_trip::<Downward>(data);
}

pub fn record(data: &[u8]) {
    round_trip::<Record>(data);
}

pub fn from_launcher(data: &[u8]) {
    round_trip::<FromLauncher>(data);
}

pub fn to_launcher(data: &[u8]) {
    round_trip::<ToLauncher>(data);
}

/// The frames of a control connection that says this and ends: in all no more bytes than came, and none too long.
pub fn frame(data: &[u8]) {
    let mut from = data;
    let mut bytes = 0;
    loop {
        let read = pin!(read_frame(&mut from)).poll(&mut Context::from_waker(Waker::noop()));
        match read {
            Poll::Ready(Ok(Some(frame))) => {
                assert!(frame.len() <= FRAME_BYTES_MAX);
                bytes += 4 + frame.len();
                assert!(bytes <= data.len());
            }
            Poll::Ready(Ok(None) | Err(_)) => return,
            Poll::Pending => panic!("bytes that are there are waited for"),
        }
    }
}

/// Both ends of a handshake, given the bytes in pieces: neither believes them, nor takes more than it wants.
pub fn handshake(data: &[u8]) {
    let key = JobKey::from_bytes([3; 32]);
    let hello = Hello { purpose: Purpose::Control, member: MemberId(1), receiver: MemberId(0) };
    let me = Hello { purpose: Purpose::Control, member: MemberId(0), receiver: MemberId(0) };
    let Some((&cut, data)) = data.split_first() else { return };
    let accepting = Handshake::accept_either(&key, me, Purpose::Launcher).unwrap();
    for mut end in [Handshake::connect(&key, hello).unwrap(), accepting] {
        for piece in data.chunks(usize::from(cut).max(1)) {
            let wanted = end.wanted_bytes();
            let Ok(taken) = end.handle_bytes(piece) else { break };
            assert!(taken <= piece.len() && (taken > 0 || wanted == 0));
            let said = end.poll_bytes().map_or(0, |bytes| bytes.len());
            assert!(said <= 85);
        }
        assert!(end.peer().is_none(), "believed");
    }
}
