//! The same at the Unix sockets by which members of a host find each other: packets, and descriptors with them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use phalanx::auth::{Handshake, JobKey, Purpose};
use phalanx::core::ids::MemberId;
use phalanx::sim::random::Random;
use phalanx::transport::shm::{CELLS, INLINE_BYTES, SEGMENT_BYTES};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use crate::insiders::NEVER;
use crate::line::{NONCE_BYTES, hello};
use crate::toll::Toll;
use crate::world::KEY;

const WRONG_KEY: JobKey = JobKey::from_bytes([0xa5; 32]);
const MAC_BYTES: usize = 32;

/// `None`: too many wait at that door just now.
fn dial(name: &str) -> Option<OwnedFd> {
    let dialed = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    match connect(&dialed, &address) {
        Ok(()) => Some(dialed),
        Err(Errno::AGAIN) => None,
        Err(cause) => panic!("{cause}"),
    }
}

/// Sends a packet; an end that has hung up takes none.
fn throw(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
        Err(cause) => panic!("{cause}"),
    }
}

/// The next packet; `None` at the end. No descriptor may come with it.
fn heard(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let got = match recvmsg(socket, parts, &mut control, RecvFlags::empty()) {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(cause) => panic!("{cause}"),
    };
    assert_eq!(control.drain().count(), 0, "a descriptor for somebody who proved nothing, or sent nonsense");
    bytes.truncate(got);
    (got > 0).then_some(bytes)
}

fn heard_to_the_end(socket: &OwnedFd) -> usize {
    std::iter::from_fn(|| heard(socket)).map(|packet| packet.len()).sum()
}

/// One stranger, or one holder of the key that offers what is no segment, at the socket of `receiver`.
pub fn attack(name: &str, receiver: MemberId, random: &mut Random, toll: &mut Toll) {
    let Some(socket) = dial(name) else { return };
    if random.chance(50) {
        let kind = stranger(&socket, receiver, random);
        toll.add(kind, 1);
        let told = heard_to_the_end(&socket);
        assert!(told <= NONCE_BYTES, "a stranger is told {told} bytes");
        return;
    }
    let me = MemberId(NEVER + random.below(64));
    let mut handshake = Handshake::connect(&KEY, hello(Purpose::DataShm, me, receiver)).unwrap();
    let Some(nonce) = heard(&socket) else { return };
    handshake.handle_bytes(&nonce).unwrap();
    throw(&socket, &handshake.poll_bytes().unwrap(), &[]);
    let Some(answer) = heard(&socket) else { return };
    handshake.handle_bytes(&answer).unwrap();
    assert!(handshake.peer().is_some() && answer.len() == MAC_BYTES);
    let kind = offer_nonsense(&socket, random);
    toll.add(kind, 1);
    assert_eq!(heard_to_the_end(&socket), 0, "{kind}: it is answered");
}

fn stranger(socket: &OwnedFd, receiver: MemberId, random: &mut Random) -> &'static str {
    let noise =
        |random: &mut Random, bytes: u64| -> Vec<u8> { (0..bytes).map(|_| random.bits() as u8).collect() };
    match random.below(4) {
        0 => {
            let bytes = random.between(1, 200);
            throw(socket, &noise(random, bytes), &[]);
            rustix::net::shutdown(socket, rustix::net::Shutdown::Write).unwrap();
            "unix stranger: a packet of random bytes"
        }
        1 => {
            throw(socket, &noise(random, 6000), &[]);
            "unix stranger: a packet that is too long"
        }
        2 => {
            let descriptors = [socket.as_fd(); 8];
            throw(socket, &noise(random, 85), &descriptors[..random.between(1, 8) as usize]);
            "unix stranger: descriptors without a proof"
        }
        _ => {
            let claimed = hello(Purpose::DataShm, MemberId(random.bits()), receiver);
            let mut handshake = Handshake::connect(&WRONG_KEY, claimed).unwrap();
            if let Some(nonce) = heard(socket) {
                handshake.handle_bytes(&nonce).unwrap();
                throw(socket, &handshake.poll_bytes().unwrap(), &[]);
            }
            "unix stranger: another key"
        }
    }
}

fn offer_nonsense(socket: &OwnedFd, random: &mut Random) -> &'static str {
    let mut offer = b"PHXshm\x00\x01".to_vec();
    for size in [SEGMENT_BYTES, CELLS, INLINE_BYTES] {
        offer.extend((size as u64).to_le_bytes());
    }
    let memory = |bytes: usize, seals: SealFlags| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("offer", flags).unwrap();
        ftruncate(&file, bytes as u64).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    };
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    match random.below(6) {
        0 => {
            throw(socket, &offer, &[]);
            "unix insider: an offer without memory"
        }
        1 => {
            let file = memory(SEGMENT_BYTES, SealFlags::GROW);
            throw(socket, &offer, &[file.as_fd(), socket.as_fd()]);
            "unix insider: memory that can be taken away again"
        }
        2 => {
            let file = memory(SEGMENT_BYTES - 4096, sealed);
            throw(socket, &offer, &[file.as_fd(), socket.as_fd()]);
            "unix insider: memory of another size"
        }
        3 => {
            throw(socket, &offer, &[socket.as_fd(), socket.as_fd()]);
            "unix insider: a socket for memory"
        }
        4 => {
            let at = random.below(offer.len() as u64) as usize;
            offer[at] ^= 1 << random.below(8);
            let file = memory(SEGMENT_BYTES, sealed);
            throw(socket, &offer, &[file.as_fd(), socket.as_fd()]);
            "unix insider: an offer of other sizes"
        }
        _ => {
            let descriptors = [socket.as_fd(); 8];
            throw(socket, &offer, &descriptors[..random.between(3, 8) as usize]);
            "unix insider: too many descriptors"
        }
    }
}
