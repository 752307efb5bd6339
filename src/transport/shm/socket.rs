//! Unix sockets between members of one host: how they find each other and hand over memory and bells.
//!
//! Sockets keep packets apart, so that a handshake and the frames after it need no framing of their own. Names are
//! abstract: they vanish with their socket, also when its process is killed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use phalanx_core::ids::MemberId;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// A packet longer than this is refused.
pub const PACKET_BYTES_MAX: usize = 4096;
/// Descriptors that travel with a packet at most.
pub const DESCRIPTORS_MAX: usize = 2;
/// Connections that may wait to be accepted; the kernel caps it further.
const BACKLOG: i32 = 1024;

/// What came out of a socket.
#[derive(Debug)]
pub enum Heard {
    /// Nothing yet.
    Nothing,
    /// The other end is gone.
    Closed,
    /// A packet and the descriptors that came with it.
    Packet(Vec<u8>, Vec<OwnedFd>),
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A name that no other process can have guessed or taken.
pub fn random_name(me: MemberId) -> rustix::io::Result<String> {
    let mut bytes = [0u8; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // So few bytes always come at once.
    if got == bytes.len() {
        Ok(format!("phalanx-{me}-{:032x}", u128::from_ne_bytes(bytes)))
    } else {
        Err(Errno::IO)
    }
}

/// A socket that accepts connections under `name`.
pub fn listen(name: &str) -> rustix::io::Result<OwnedFd> {
    let listener = socket()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The next waiting connection.
pub fn accept(listener: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// A connection to `name`; `AGAIN`: too many wait there already.
pub fn dial(name: &str) -> rustix::io::Result<OwnedFd> {
    let dialed = socket()?;
    rustix::net::connect(&dialed, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(dialed)
}

/// Sends one packet. A fresh connection has room for the few that this transport sends, so a full socket is an
/// error like any other.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet, if one is there.
pub fn receive(socket: BorrowedFd<'_>) -> rustix::io::Result<Heard> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Heard::Nothing),
            Err(Errno::CONNRESET) => return Ok(Heard::Closed),
            Err(other) => return Err(other),
        }
    };
    // Collected in any case: a descriptor that is not taken out is closed here.
    let mut descriptors = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            descriptors.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    // Nobody sends an empty packet, so no bytes mean the end.
    if message.bytes == 0 {
        return Ok(Heard::Closed);
    }
    bytes.truncate(message.bytes);
    Ok(Heard::Packet(bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let name = random_name(MemberId(1)).unwrap();
        let listener = listen(&name).unwrap();
        let near = dial(&name).unwrap();
        (near, accept(listener.as_fd()).unwrap())
    }

    #[test]
    fn packets_keep_their_bounds_and_bring_descriptors() {
        let (near, far) = pair();
        assert!(matches!(receive(far.as_fd()).unwrap(), Heard::Nothing));
        send(near.as_fd(), b"one", &[]).unwrap();
        send(near.as_fd(), b"two", &[near.as_fd(), far.as_fd()]).unwrap();
        assert!(matches!(receive(far.as_fd()).unwrap(), Heard::Packet(b, d) if b == b"one" && d.is_empty()));
        assert!(matches!(receive(far.as_fd()).unwrap(), Heard::Packet(b, d) if b == b"two" && d.len() == 2));
        drop(near);
        assert!(matches!(receive(far.as_fd()).unwrap(), Heard::Closed));
    }

    #[test]
    fn long_packets_are_refused() {
        let (near, far) = pair();
        send(near.as_fd(), &[7; PACKET_BYTES_MAX + 1], &[]).unwrap();
        assert_eq!(receive(far.as_fd()).unwrap_err(), Errno::MSGSIZE);
    }

    #[test]
    fn nobody_listens_under_a_name_whose_socket_is_gone() {
        let name = random_name(MemberId(1)).unwrap();
        drop(listen(&name).unwrap());
        assert_eq!(dial(&name).unwrap_err(), Errno::CONNREFUSED);
    }
}
