//! The sending end of a link: opened at its first message, proven, then fed from staging slots or straight from the
//! caller's memory.
//!
//! | from         | trigger                       | to         |
//! |--------------|-------------------------------|------------|
//! | `Closed`     | first `reserve` or `post`     | `Opening`  |
//! | `Opening`    | connected                     | `Greeting` |
//! | `Greeting`   | both sides proven             | `Up`       |
//! | any          | error, end of stream, refusal | `Closed`   |

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;

use mio::net::TcpStream;
use phalanx_core::units::LINK_SLOTS;
use phalanx_core::wire::Header;
use phalanx_core::wire::header::HEADER_BYTES;

use super::pool::Pool;
use crate::auth::{Handshake, Hello};
use crate::device::{Block, Span};

/// Connections tried to one member in one epoch; more would only repeat what the fault has told the coordinator.
pub const CONNECTS_MAX: u32 = 4;

const _: () = assert!(LINK_SLOTS <= Span::PARTS_MAX, "all slots go out in one call");

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Opening(TcpStream, Handshake),
    Greeting(TcpStream, Handshake),
    Up(TcpStream),
}

/// A message, or what the kernel has not taken of it yet: `from..end` of the block.
#[derive(Debug)]
struct Staged {
    block: Block,
    from: usize,
    end: usize,
}

/// A connection and what waits to go out on it.
#[derive(Debug)]
pub struct Outgoing {
    state: State,
    /// Token of the connection that is open or opening.
    pub token: Option<usize>,
    /// When the connection was begun, in microseconds.
    pub since_us: u64,
    /// Connections begun in this epoch.
    pub connects: u32,
    queue: VecDeque<Staged>,
    reserved: Option<Block>,
    head: Block,
    /// The kernel has taken everything so far; false until the socket becomes writable again.
    writable: bool,
    /// A message was refused for want of room since the last time there was some.
    refused: bool,
    /// Somebody asked whether all had left when it had not.
    is_flush_awaited: bool,
}

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// The link is up now.
    CameUp,
    /// There is room where a message was refused, or all has left where that was asked for.
    Freed,
    /// Nothing that the caller waits for.
    Nothing,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            state: State::Closed,
            token: None,
            since_us: 0,
            connects: 0,
            queue: VecDeque::with_capacity(LINK_SLOTS),
            reserved: None,
            head: Block::zeroed(HEADER_BYTES),
            writable: false,
            refused: false,
            is_flush_awaited: false,
        }
    }
}

impl Outgoing {
    /// Whether a connection has to be made before anything can be sent.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a connection is being made.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening(..) | State::Greeting(..))
    }

    /// Follows a connection that was just begun.
    pub fn begin(&mut self, stream: TcpStream, handshake: Handshake, token: usize, now_us: u64) {
        self.state = State::Opening(stream, handshake);
        (self.token, self.since_us, self.writable) = (Some(token), now_us, false);
        self.connects += 1;
    }

    /// Closes the connection and gives its token; what was committed and not sent is lost with it.
    pub fn close(&mut self, pool: &mut Pool) -> Option<usize> {
        self.state = State::Closed;
        self.writable = false;
        self.queue.drain(..).for_each(|staged| pool.give(staged.block));
        self.token.take()
    }

    /// Gives back the slot that was reserved and never committed.
    pub fn forget_reserved(&mut self, pool: &mut Pool) {
        if let Some(block) = self.reserved.take() {
            pool.give(block);
        }
    }

    /// Whether everything committed has left; if not, the caller learns from [`Moved::Freed`] when it has.
    pub fn is_flushed(&mut self) -> bool {
        self.is_flush_awaited = !self.queue.is_empty();
        !self.is_flush_awaited
    }

    /// Whether an event is waited for before more can be sent.
    pub fn is_held_back(&self) -> bool {
        !self.is_closed() && (self.refused || !self.queue.is_empty())
    }

    /// A slot with room for `payload_bytes`.
    pub fn reserve(&mut self, payload_bytes: usize, pool: &mut Pool) -> Option<Span> {
        let is_up = matches!(self.state, State::Up(_));
        if !is_up || (self.reserved.is_none() && self.queue.len() == LINK_SLOTS) {
            self.refused = true;
            return None;
        }
        let block = self.reserved.get_or_insert_with(|| pool.take());
        Some(block.span().part(HEADER_BYTES, payload_bytes))
    }

    /// Sends the reserved slot.
    ///
    /// # Errors
    /// The cause, when the connection broke. The caller closes it.
    pub fn commit(&mut self, header: &Header, pool: &mut Pool) -> Result<(), String> {
        let Some(mut block) = self.reserved.take() else {
            debug_assert!(false, "commit without reserve");
            return Ok(());
        };
        if !matches!(self.state, State::Up(_)) {
            // The link broke after `reserve`: the message is lost with it, as the reported fault says.
            pool.give(block);
            return Ok(());
        }
        block.span().part(0, HEADER_BYTES).write(&header.to_wire());
        self.queue.push_back(Staged { block, from: 0, end: HEADER_BYTES + header.payload_bytes as usize });
        self.flush(pool)
    }

    /// Sends header and payload as they lie. What the kernel leaves of a message it has begun is copied; a message
    /// it has not begun is refused, so that the caller's memory waits instead of a copy of it.
    ///
    /// # Errors
    /// The cause, when the connection broke. The caller closes it.
    pub fn post(&mut self, header: &Header, payload: Span, pool: &mut Pool) -> Result<bool, String> {
        let State::Up(stream) = &self.state else {
            self.refused = true;
            return Ok(false);
        };
        if !self.writable || !self.queue.is_empty() {
            self.refused = true;
            return Ok(false);
        }
        self.head.span().write(&header.to_wire());
        let Some(sent) = send(stream, &[self.head.span(), payload])? else {
            (self.writable, self.refused) = (false, true);
            return Ok(false);
        };
        let end = HEADER_BYTES + payload.len();
        if sent < end {
            self.writable = false;
            let mut block = pool.take();
            let in_head = sent.min(HEADER_BYTES);
            let in_payload = sent - in_head;
            let (head_rest, rest) = (HEADER_BYTES - in_head, payload.len() - in_payload);
            block.span().part(in_head, head_rest).copy_from(self.head.span().part(in_head, head_rest));
            let target = block.span().part(HEADER_BYTES + in_payload, rest);
            target.copy_from(payload.part(in_payload, rest));
            self.queue.push_back(Staged { block, from: sent, end });
        }
        Ok(true)
    }

    /// Writes what the kernel takes.
    fn flush(&mut self, pool: &mut Pool) -> Result<(), String> {
        let State::Up(stream) = &self.state else { return Ok(()) };
        while self.writable && !self.queue.is_empty() {
            let mut parts = [Span::empty(); LINK_SLOTS];
            let mut wanted = 0;
            for (part, staged) in parts.iter_mut().zip(&mut self.queue) {
                *part = staged.block.span().part(staged.from, staged.end - staged.from);
                wanted += part.len();
            }
            let count = self.queue.len();
            let mut sent = send(stream, &parts[..count])?.unwrap_or(0);
            // A short write means a full buffer: the next edge says when there is room.
            self.writable = sent == wanted;
            while let Some(staged) = self.queue.front_mut() {
                let part = sent.min(staged.end - staged.from);
                staged.from += part;
                sent -= part;
                if staged.from < staged.end {
                    break;
                }
                if let Some(done) = self.queue.pop_front() {
                    pool.give(done.block);
                }
            }
        }
        Ok(())
    }

    /// The socket reported something.
    ///
    /// # Errors
    /// The cause, when the connection could not be made, or ended. The caller closes it.
    pub fn handle_ready(&mut self, is_readable: bool, pool: &mut Pool) -> Result<Moved, String> {
        match std::mem::take(&mut self.state) {
            State::Closed => Ok(Moved::Nothing),
            State::Opening(stream, handshake) => self.finish_connect(stream, handshake),
            State::Greeting(stream, handshake) => self.greet(stream, handshake),
            State::Up(mut stream) => {
                if is_readable {
                    expect_silence(&mut stream)?;
                }
                self.state = State::Up(stream);
                self.writable = true;
                self.flush(pool)?;
                let freed = self.refused && self.queue.len() < LINK_SLOTS;
                let flushed = self.is_flush_awaited && self.queue.is_empty();
                self.refused &= !freed;
                self.is_flush_awaited &= !flushed;
                Ok(if freed || flushed { Moved::Freed } else { Moved::Nothing })
            }
        }
    }

    fn finish_connect(&mut self, stream: TcpStream, handshake: Handshake) -> Result<Moved, String> {
        if let Some(error) = stream.take_error().map_err(|e| e.to_string())? {
            return Err(format!("cannot connect to it: {error}"));
        }
        match stream.peer_addr() {
            Ok(_) => {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                self.greet(stream, handshake)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                self.state = State::Opening(stream, handshake);
                Ok(Moved::Nothing)
            }
            Err(error) => Err(format!("cannot connect to it: {error}")),
        }
    }

    fn greet(&mut self, mut stream: TcpStream, mut handshake: Handshake) -> Result<Moved, String> {
        match advance(&mut stream, &mut handshake, |_| true)? {
            Greeted::Proven => {
                self.state = State::Up(stream);
                (self.writable, self.refused) = (true, false);
                Ok(Moved::CameUp)
            }
            Greeted::Waits => {
                self.state = State::Greeting(stream, handshake);
                Ok(Moved::Nothing)
            }
        }
    }
}

/// How far a handshake has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greeted {
    /// Both sides have proven the key, as far as this side can know.
    Proven,
    /// The peer's turn.
    Waits,
}

/// Reads and writes what the handshake wants, and not a byte more. A peer that has proven itself but that `admit`
/// turns away gets no answer.
///
/// # Errors
/// The cause, when the peer is not to be believed or the connection ended.
pub fn advance(
    stream: &mut TcpStream,
    handshake: &mut Handshake,
    admit: impl Fn(&Hello) -> bool,
) -> Result<Greeted, String> {
    let mut bytes = [0; 128];
    loop {
        if handshake.peer().is_some_and(|hello| !admit(hello)) {
            return Err("it was shut out".to_owned());
        }
        if let Some(own) = handshake.poll_bytes() {
            // These few bytes always fit the empty buffer of a new connection; one that does not take them is not
            // worth waiting for.
            stream.write_all(&own).map_err(|error| error.to_string())?;
        }
        let wanted = handshake.wanted_bytes();
        if wanted == 0 {
            return Ok(Greeted::Proven);
        }
        match stream.read(&mut bytes[..wanted]) {
            Ok(0) => {
                return Err(
                    "it closed the connection during the handshake; is its job key the same?".to_owned()
                );
            }
            Ok(got) => {
                handshake.handle_bytes(&bytes[..got]).map_err(|error| error.to_string())?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Greeted::Waits),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// A data link is one way: whatever comes back is the end of it.
fn expect_silence(stream: &mut TcpStream) -> Result<(), String> {
    match stream.read(&mut [0; 1]) {
        Ok(0) => Err("it closed the connection".to_owned()),
        Ok(_) => Err("it answered on a link that goes one way".to_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What the kernel took, or `None` if its buffer is full.
fn send(stream: &TcpStream, parts: &[Span]) -> Result<Option<usize>, String> {
    loop {
        match Span::send(stream.as_fd(), parts) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
