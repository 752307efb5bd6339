//! A TCP data link: bytes that a listed member sends behind its proof, to the transport that ships.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};

use phalanx::auth::{Handshake, Hello, JobKey, Purpose};
use phalanx::core::ids::{Epoch, MemberId};
use phalanx::core::units::SLOT_BYTES;
use phalanx::transport::tcp::{TcpConfig, TcpTransport};
use phalanx::transport::{Peer, Transport};

const KEY: JobKey = JobKey::from_bytes([3; 32]);
const ME: MemberId = MemberId(1);
const GUEST: MemberId = MemberId(2);
/// Turns within which a handshake is over; only a failure needs as many.
const TURNS_MAX: usize = 1_000_000;
/// Turns after the last byte, if no fault comes: what is of an epoch to come waits for it, and the end behind it too.
const LAST_TURNS: usize = 300;

struct Receiver {
    transport: TcpTransport,
    _poll: mio::Poll,
}

thread_local! {
    static RECEIVER: RefCell<Receiver> = RefCell::new({
        let poll = mio::Poll::new().unwrap();
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let config = TcpConfig { me: ME, key: KEY, bind, ports: 0..=0, interface: None };
        let mut transport = TcpTransport::new(config, poll.registry(), 7).unwrap();
        transport.open(Epoch(1), &[Peer { member: GUEST, host: 0, tcp: None, shm: None }]);
        Receiver { transport, _poll: poll }
    });
}

/// First byte: the length of the pieces. What is handed out is whole and of this epoch; the link is one fault at most.
pub fn stream(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    RECEIVER.with_borrow_mut(|receiver| {
        let transport = &mut receiver.transport;
        let mut events = Vec::new();
        let mut guest = proven(transport);
        let mut taken = 0;
        for piece in data.chunks(usize::from(cut).max(1) * 7) {
            let mut sent = 0;
            while sent < piece.len() {
                match guest.write(&piece[sent..]) {
                    Ok(bytes) => sent += bytes,
                    Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
                taken += take(transport);
            }
            transport.progress(&mut events);
        }
        let _ = guest.shutdown(Shutdown::Write);
        for _ in 0..LAST_TURNS {
            taken += take(transport);
            transport.progress(&mut events);
            if !events.is_empty() {
                break;
            }
        }
        taken += take(transport);
        assert!(taken <= data.len(), "{taken} bytes of {}", data.len());
        assert!(events.len() <= 1, "{events:?}");
        // Forget the member, and all it sent.
        transport.open(Epoch(1), &[]);
        transport.open(Epoch(1), &[Peer { member: GUEST, host: 0, tcp: None, shm: None }]);
    });
}

/// Bytes of the messages that are there.
fn take(transport: &mut TcpTransport) -> usize {
    let mut bytes = 0;
    while let Some(arrival) = transport.peek(GUEST) {
        assert!(arrival.header.epoch == Epoch(1) && arrival.payload.len() <= SLOT_BYTES);
        let mut payload = vec![0; arrival.payload.len()];
        arrival.payload.read(&mut payload);
        bytes += 64 + payload.len();
        transport.consume(GUEST);
    }
    bytes
}

fn proven(transport: &mut TcpTransport) -> TcpStream {
    let mut stream = TcpStream::connect(transport.address()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let hello = Hello { purpose: Purpose::DataTcp, member: GUEST, receiver: ME };
    let mut handshake = Handshake::connect(&KEY, hello).unwrap();
    let mut events = Vec::new();
    for _ in 0..TURNS_MAX {
        transport.progress(&mut events);
        let mut bytes = [0; 32];
        if let Ok(got) = stream.read(&mut bytes) {
            handshake.handle_bytes(&bytes[..got]).unwrap();
        }
        if let Some(own) = handshake.poll_bytes() {
            stream.write_all(&own).unwrap();
        }
        if handshake.peer().is_some() {
            assert!(events.is_empty());
            return stream;
        }
    }
    panic!("no end of the handshake");
}
