//! Connections of the attacker: to anybody, and proven where it holds a key.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use phalanx::auth::{Handshake, Hello, JobKey, Purpose};
use phalanx::core::ids::MemberId;

/// So long an answer may take on a busy machine; who waits longer has found a connection that nobody ends.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// What a stranger is told at most: one nonce.
pub const NONCE_BYTES: usize = 32;

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    stream.set_write_timeout(Some(ANSWER_WITHIN)).unwrap();
    stream
}

/// Writes what the other end takes; one that has hung up takes nothing more.
pub fn throw(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    match stream.write_all(bytes) {
        Ok(()) => true,
        Err(cause) => {
            let is_end = matches!(cause.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            assert!(is_end, "a connection that neither takes bytes nor ends: {cause}");
            false
        }
    }
}

/// Everything that comes until the other end closes.
#[track_caller]
pub fn heard_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return all,
            Ok(got) => all.extend_from_slice(&bytes[..got]),
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => return all,
            Err(cause) => panic!("nobody ended the connection: {cause}; heard {} bytes", all.len()),
        }
    }
}

/// Ends the own half, and hears the rest.
#[track_caller]
pub fn last_words(mut stream: TcpStream) -> Vec<u8> {
    let _ = stream.shutdown(Shutdown::Write);
    heard_to_the_end(&mut stream)
}

/// Proves `key`, or gives back how it was turned away. Also what was sent for it.
pub fn prove(to: SocketAddr, key: &JobKey, hello: Hello) -> Result<(TcpStream, Vec<u8>), Vec<u8>> {
    let mut stream = connect(to);
    let mut handshake = Handshake::connect(key, hello).unwrap();
    let (mut heard, mut said) = (Vec::new(), Vec::new());
    loop {
        let mut bytes = [0; 64];
        let wanted = handshake.wanted_bytes();
        match stream.read(&mut bytes[..wanted]) {
            Ok(got) if got > 0 => {
                heard.extend_from_slice(&bytes[..got]);
                handshake.handle_bytes(&bytes[..got]).unwrap();
            }
            _ => return Err(heard),
        }
        if let Some(own) = handshake.poll_bytes() {
            if !throw(&mut stream, &own) {
                return Err(heard);
            }
            said = own;
        }
        if handshake.peer().is_some() {
            return Ok((stream, said));
        }
    }
}

pub fn hello(purpose: Purpose, member: MemberId, receiver: MemberId) -> Hello {
    Hello { purpose, member, receiver }
}

/// A frame of a control connection with its length.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    let mut all = (frame.len() as u32).to_le_bytes().to_vec();
    all.extend_from_slice(frame);
    all
}
