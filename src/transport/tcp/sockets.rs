//! Which socket belongs to what: the transport's own readiness queue, nested in the driver's.
//!
//! All sockets are in one queue of this transport, and only that queue is in the driver's poll. So `progress` learns
//! with one system call, whatever the number of links, where something happened, and the driver needs one token.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use phalanx_core::ids::MemberId;

/// Events taken from the queue at once.
const EVENTS_MAX: usize = 256;

/// What a socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The listener.
    Listener,
    /// Somebody connected and has not proven anything yet, or is not in the table yet.
    Stranger,
    /// The receiving end of the link from this member.
    Incoming(MemberId),
    /// The sending end of the link to this member.
    Outgoing(MemberId),
}

/// Something that happened to a socket.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Its token; numbers are never used twice, so a late event cannot hit another socket.
    pub token: usize,
    /// What it is.
    pub owner: Owner,
    /// Bytes, or the end of the stream, can be read.
    pub is_readable: bool,
    /// The end of the stream is among what can be read: no other event will tell of it.
    pub is_ending: bool,
}

/// The queue and the owners.
#[derive(Debug)]
pub struct Sockets {
    poll: Poll,
    events: Events,
    owners: BTreeMap<usize, Owner>,
    next: usize,
}

impl Sockets {
    /// An empty queue that makes `token` of `outer` readable whenever one of its sockets is ready.
    pub fn nested_in(outer: &Registry, token: Token) -> io::Result<Self> {
        let poll = Poll::new()?;
        outer.register(&mut SourceFd(&poll.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(EVENTS_MAX), owners: BTreeMap::new(), next: 0 })
    }

    /// Watches a socket; gives its token.
    pub fn add(&mut self, source: &mut impl Source, interest: Interest, owner: Owner) -> io::Result<usize> {
        let token = self.next;
        self.poll.registry().register(source, Token(token), interest)?;
        self.owners.insert(token, owner);
        self.next += 1;
        Ok(token)
    }

    /// Hands a socket to another owner.
    pub fn rename(&mut self, token: usize, owner: Owner) {
        self.owners.insert(token, owner);
    }

    /// Forgets a socket that was closed (the kernel has already taken it out of the queue).
    pub fn forget(&mut self, token: Option<usize>) {
        if let Some(token) = token {
            self.owners.remove(&token);
        }
    }

    /// Appends what happened since the last call.
    pub fn poll(&mut self, ready: &mut Vec<Ready>) {
        // Without events there is nothing to do; an interrupted call is made again at the next turn.
        if self.poll.poll(&mut self.events, Some(Duration::ZERO)).is_err() {
            return;
        }
        ready.extend(self.events.iter().filter_map(|event| {
            let token = event.token().0;
            let is_ending = event.is_read_closed() || event.is_error();
            let is_readable = event.is_readable() || is_ending;
            self.owners.get(&token).map(|&owner| Ready { token, owner, is_readable, is_ending })
        }));
    }
}
