//! The receiving end of a link: from a stream of bytes to whole messages, each in one piece, without copying them.
//!
//! Bytes go from the socket into cells of the size of the largest message. A cell takes many small messages or one
//! large one; a message that would cross the end of its cell starts the next one instead. Where it would end is
//! known from its header, or guessed from the message before it; only a wrong guess costs a copy.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;

use mio::net::TcpStream;
use phalanx_core::ids::Epoch;
use phalanx_core::units::SLOT_BYTES;
use phalanx_core::wire::Header;
use phalanx_core::wire::header::{HEADER_BYTES, HeaderError};

use super::pool::{CELL_BYTES, Pool};
use crate::device::{Block, Span};
use crate::transport::Arrival;

/// Cells of one link: what a receiver takes in before the sender has to wait.
const CELLS_MAX: usize = 4;
const _: () = assert!(CELLS_MAX >= 2, "a message is read while the one before it is being folded");

/// `0..read` is consumed, `read..scan` holds whole messages, `scan..fill` the beginning of one.
#[derive(Debug)]
struct Cell {
    block: Block,
    read: usize,
    scan: usize,
    fill: usize,
}

/// A connection and what has arrived on it.
#[derive(Debug, Default)]
pub struct Incoming {
    stream: Option<(TcpStream, usize)>,
    /// Oldest first; bytes arrive in the last one. Only the last one has an unfinished message.
    cells: VecDeque<Cell>,
    /// Bytes of the last whole message: the guess for the next one.
    guess: usize,
    /// Decoded header of the oldest message, so that spinning on it does not decode it again.
    front: Option<Header>,
    /// The oldest message was handed out and is not consumed yet.
    is_shown: bool,
    /// The socket may have more than was read.
    readable: bool,
    /// The end of the stream may already lie behind the bytes: a short read says nothing then, only an empty one does.
    is_ending: bool,
}

/// What a read brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// Some bytes.
    Some,
    /// None: nothing there, or no room for it.
    Nothing,
}

impl Incoming {
    /// Takes over a proven connection; gives the token of the one it replaces. What was whole stays, the unfinished
    /// message of the connection before is dropped.
    pub fn attach(&mut self, stream: TcpStream, token: usize) -> Option<usize> {
        let replaced = self.close();
        self.stream = Some((stream, token));
        // Events so far were those of a stranger: the end may have been among them.
        self.set_readable(true);
        replaced
    }

    /// Closes the connection and gives its token. Whole messages stay.
    pub fn close(&mut self) -> Option<usize> {
        if let Some(cell) = self.cells.back_mut() {
            cell.fill = cell.scan;
        }
        self.readable = false;
        self.stream.take().map(|(_, token)| token)
    }

    /// Drops everything that arrived.
    pub fn clear(&mut self, pool: &mut Pool) {
        (self.front, self.is_shown) = (None, false);
        self.cells.drain(..).for_each(|cell| pool.give(cell.block));
    }

    /// The socket became readable; `is_ending`: as far as its end, perhaps.
    pub fn set_readable(&mut self, is_ending: bool) {
        self.readable = true;
        self.is_ending |= is_ending;
    }

    /// Whether a read may bring something: connected, more expected, and the oldest message is not of an epoch to
    /// come (then the rest waits in the kernel, where it holds the sender back).
    pub fn is_readable(&mut self, open: Epoch) -> bool {
        self.readable && self.stream.is_some() && self.head().is_none_or(|header| header.epoch <= open)
    }

    /// Whether spinning may read at all; like [`is_readable`](Self::is_readable), without waiting for an edge.
    pub fn is_open(&mut self, open: Epoch) -> bool {
        self.stream.is_some() && self.head().is_none_or(|header| header.epoch <= open)
    }

    fn head(&mut self) -> Option<Header> {
        if self.front.is_none() {
            let cell = self.cells.front_mut()?;
            if cell.read < cell.scan {
                // It was decoded when it became whole, so it decodes again.
                self.front = decode(&mut cell.block, cell.read).ok();
            }
        }
        self.front
    }

    /// The oldest message, if it is of the `open` epoch; drops and counts older ones.
    pub fn front(&mut self, open: Epoch, stale: &mut u64, pool: &mut Pool) -> Option<Arrival> {
        loop {
            let header = self.head()?;
            match header.epoch.cmp(&open) {
                std::cmp::Ordering::Less => {
                    *stale += 1;
                    self.drop_front(pool);
                }
                std::cmp::Ordering::Equal => {
                    let cell = self.cells.front_mut()?;
                    let bytes = header.payload_bytes as usize;
                    let payload = cell.block.span().part(cell.read + HEADER_BYTES, bytes);
                    return Some(Arrival { header, payload });
                }
                std::cmp::Ordering::Greater => return None,
            }
        }
    }

    /// Hands out the oldest message.
    pub fn show(&mut self, open: Epoch, stale: &mut u64, pool: &mut Pool) -> Option<Arrival> {
        let front = self.front(open, stale, pool);
        self.is_shown = front.is_some();
        front
    }

    /// Ends the message that was handed out. If its epoch ended meanwhile it may be gone already; then the one that
    /// follows it stays.
    pub fn consume(&mut self, pool: &mut Pool) {
        if self.is_shown {
            self.drop_front(pool);
        }
    }

    fn drop_front(&mut self, pool: &mut Pool) {
        let Some(header) = self.head() else { return };
        (self.front, self.is_shown) = (None, false);
        let last = self.cells.len() == 1;
        let Some(cell) = self.cells.front_mut() else { return };
        cell.read += HEADER_BYTES + header.payload_bytes as usize;
        if cell.read < cell.scan {
            return;
        }
        if !last {
            if let Some(done) = self.cells.pop_front() {
                pool.give(done.block);
            }
        } else if cell.scan == cell.fill {
            // Small messages stay in the same, warm lines.
            (cell.read, cell.scan, cell.fill) = (0, 0, 0);
        }
    }

    /// One read from the socket.
    ///
    /// # Errors
    /// The cause, when the connection ended or sent what is no message. The caller closes it.
    pub fn fill(&mut self, pool: &mut Pool) -> Result<Filled, String> {
        if self.stream.is_none() {
            return Ok(Filled::Nothing);
        }
        let Some((target, spills)) = self.room(pool) else { return Ok(Filled::Nothing) };
        let mut second = spills.then(|| pool.take());
        let parts = [target, second.as_mut().map_or(Span::empty(), Block::span)];
        let received = match &self.stream {
            Some((stream, _)) => receive(stream, &parts[..1 + usize::from(spills)]),
            None => Ok(None),
        };
        let bytes = received.as_ref().map_or(0, |got| got.unwrap_or(0));
        self.is_ending &= bytes > 0;
        // A short read has emptied the socket; whatever comes next makes a new edge.
        self.readable = self.is_ending || bytes == target.len() + parts[1].len();
        let whole = self.took(bytes.min(target.len()));
        match second {
            Some(block) if bytes > target.len() => {
                self.cells.push_back(Cell { block, read: 0, scan: 0, fill: 0 });
                whole?;
                self.took(bytes - target.len())?;
            }
            Some(block) => {
                pool.give(block);
                whole?;
            }
            None => whole?,
        }
        match received? {
            Some(0) => Err("it closed the connection".to_owned()),
            Some(_) => Ok(Filled::Some),
            None => Ok(Filled::Nothing),
        }
    }

    /// Where the next bytes go: up to the end of the last message that is sure, or likely, to fit into this cell.
    /// True: the end is sure, so bytes beyond it may go to the beginning of another cell in the same read.
    fn room(&mut self, pool: &mut Pool) -> Option<(Span, bool)> {
        if self.cells.is_empty() {
            self.cells.push_back(Cell { block: pool.take(), read: 0, scan: 0, fill: 0 });
        }
        let cell = self.cells.back_mut()?;
        let known = cell.begun().ok().flatten();
        let length = known.unwrap_or(self.guess.max(HEADER_BYTES));
        if cell.scan + length > CELL_BYTES {
            self.begin_next_cell(pool)?;
        }
        let is_last = self.cells.len() == CELLS_MAX;
        let cell = self.cells.back_mut()?;
        let fits = (CELL_BYTES - cell.scan) / length;
        let end = cell.scan + fits * length;
        let target = cell.block.span().part(cell.fill, end - cell.fill);
        Some((target, known.is_some() && fits == 1 && !is_last))
    }

    /// Moves the unfinished message to the beginning of another cell; `None` if all are in use.
    fn begin_next_cell(&mut self, pool: &mut Pool) -> Option<()> {
        let full = self.cells.len() == CELLS_MAX;
        let cell = self.cells.back_mut()?;
        let is_consumed = cell.read == cell.scan;
        if full && !is_consumed {
            return None;
        }
        let begun = cell.fill - cell.scan;
        let mut block = pool.take();
        block.span().part(0, begun).copy_from(cell.block.span().part(cell.scan, begun));
        cell.fill = cell.scan;
        if is_consumed && let Some(done) = self.cells.pop_back() {
            pool.give(done.block);
        }
        self.cells.push_back(Cell { block, read: 0, scan: 0, fill: begun });
        Some(())
    }

    /// `bytes` more lie in the last cell: finds the messages that are whole now.
    fn took(&mut self, bytes: usize) -> Result<(), String> {
        let Some(cell) = self.cells.back_mut() else { return Ok(()) };
        cell.fill += bytes;
        while let Some(length) = cell.begun().map_err(|error| error.to_string())? {
            if cell.fill - cell.scan < length {
                break;
            }
            cell.scan += length;
            self.guess = length;
        }
        Ok(())
    }
}

impl Cell {
    /// Bytes that the message at `scan` will have, if its header is there.
    fn begun(&mut self) -> Result<Option<usize>, HeaderError> {
        if self.fill - self.scan < HEADER_BYTES {
            return Ok(None);
        }
        decode(&mut self.block, self.scan).map(|header| Some(HEADER_BYTES + header.payload_bytes as usize))
    }
}

fn decode(block: &mut Block, at: usize) -> Result<Header, HeaderError> {
    let mut bytes = [0; HEADER_BYTES];
    block.span().part(at, HEADER_BYTES).read(&mut bytes);
    Header::from_wire(&bytes, SLOT_BYTES)
}

/// What arrived, or `None` if nothing did.
fn receive(stream: &TcpStream, parts: &[Span]) -> Result<Option<usize>, String> {
    loop {
        match Span::receive(stream.as_fd(), parts) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Attempt, ChunkId, OpId, OpSeq};
    use phalanx_core::wire::Kind;
    use proptest::prelude::*;
    use std::io::Write;

    fn header(epoch: u64, chunk: u32, payload_bytes: u32) -> Header {
        let (op, attempt, stable) = (OpId::default(), Attempt(0), OpSeq(0));
        let kind = Kind::Partial;
        Header {
            kind,
            op,
            attempt,
            epoch: Epoch(epoch),
            chunk: ChunkId(chunk),
            signature: 0,
            payload_bytes,
            stable,
            checksum: 0,
        }
    }

    fn joined() -> (std::net::TcpStream, Incoming) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut incoming = Incoming::default();
        assert_eq!(incoming.attach(TcpStream::from_std(receiver), 0), None);
        (sender, incoming)
    }

    fn byte(chunk: u32, at: usize) -> u8 {
        (at as u32 ^ chunk.wrapping_mul(97) ^ (at as u32 >> 8)) as u8
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Any sizes, cut anywhere on their way, taken at any pace: every message comes whole, once, in order, and
        /// what is there is bounded.
        #[test]
        fn any_cut_of_any_stream_gives_the_same_messages(
            sizes in prop::collection::vec(
                prop_oneof![0usize..200, 60_000usize..70_000, SLOT_BYTES - 70..=SLOT_BYTES], 1..24),
            cuts in prop::collection::vec(1usize..300_000, 1..8),
            greed in 0usize..6,
        ) {
            let (mut sender, mut incoming) = joined();
            sender.set_nonblocking(true).unwrap();
            let mut pool = Pool::default();
            let mut bytes = Vec::new();
            for (chunk, &size) in sizes.iter().enumerate() {
                bytes.extend(header(1, chunk as u32, size as u32).to_wire());
                bytes.extend((0..size).map(|at| byte(chunk as u32, at)));
            }
            let (mut sent, mut taken, mut stale, mut turn) = (0, 0, 0, 0);
            while taken < sizes.len() {
                turn += 1;
                prop_assert!(turn < 100_000, "stuck after {} of {:?}", taken, sizes);
                let end = bytes.len().min(sent + cuts[turn % cuts.len()]);
                sent += sender.write(&bytes[sent..end]).unwrap_or(0);
                for _ in 0..greed {
                    incoming.fill(&mut pool).unwrap();
                }
                prop_assert!(incoming.cells.len() <= CELLS_MAX);
                incoming.fill(&mut pool).unwrap();
                let Some(arrival) = incoming.show(Epoch(1), &mut stale, &mut pool) else { continue };
                // A read in between must not move what was handed out.
                incoming.fill(&mut pool).unwrap();
                prop_assert_eq!(arrival.header, header(1, taken as u32, sizes[taken] as u32));
                let mut payload = vec![0; sizes[taken]];
                arrival.payload.read(&mut payload);
                prop_assert!(payload.iter().enumerate().all(|(at, &b)| b == byte(taken as u32, at)));
                incoming.consume(&mut pool);
                taken += 1;
            }
            prop_assert!(pool.free_blocks() + incoming.cells.len() <= CELLS_MAX + 1, "no block is lost or added");
        }
    }

    #[test]
    fn small_messages_stay_in_one_cell_and_come_many_to_a_read() {
        let (mut sender, mut incoming) = joined();
        let (mut pool, mut stale) = (Pool::default(), 0);
        for round in 0..2000 {
            let many: Vec<u8> = (0..10).flat_map(|chunk| header(1, chunk, 0).to_wire()).collect();
            sender.write_all(&many).unwrap();
            while incoming.fill(&mut pool) == Ok(Filled::Nothing) {}
            for chunk in 0..10 {
                let mut arrival = incoming.show(Epoch(1), &mut stale, &mut pool);
                while arrival.is_none() {
                    incoming.fill(&mut pool).unwrap();
                    arrival = incoming.show(Epoch(1), &mut stale, &mut pool);
                }
                assert_eq!(arrival.map(|a| a.header), Some(header(1, chunk, 0)), "round {round}");
                incoming.consume(&mut pool);
            }
        }
        assert_eq!((incoming.cells.len(), pool.free_blocks()), (1, 0));
    }
}
