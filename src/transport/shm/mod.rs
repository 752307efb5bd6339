//! Shared memory between members of one host.
//!
//! Each link has a segment of its own, made by its sender, shared by these two members only: to abandon it is to
//! fence the other one. A Unix socket carries the handshake and the segment, and then stays open as a sign of life.
//! No message costs a system call while both ends are awake.

mod connection;
mod key;
mod links;
mod raw;
mod ring;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Token};
use phalanx_core::ids::{Epoch, MemberId};
use phalanx_core::wire::Header;
use rustix::io::Errno;

pub use self::connection::{Prove, ProveFactory, Side};
pub use self::key::prove_key;
#[cfg(any(test, feature = "internals"))]
pub use self::raw::{CELLS, INLINE_BYTES, SEGMENT_BYTES};

use self::connection::{Connection, Stepped};
use self::links::{ConnectionId, Links, Outgoing, Up};
use super::{Arrival, LinkEvent, Peer, Transport};
use crate::device::Span;
use crate::sync::{Doorbell, settle_park};

/// Tokens that a [`ShmTransport`] uses in the driver's poll, from `first_token` on.
pub const TOKENS: usize = 2;

/// While awake, sockets are looked at once in so many turns: they matter only when links come and go.
const TURNS_PER_LOOK: u32 = 32;
/// Accepted connections that have not proven themselves; beyond it the oldest goes.
const UNPROVEN_MAX: usize = 256;
/// Token of the listener among our own sockets; connections count up from the next.
const LISTENER: ConnectionId = 0;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// The shared-memory transport of one member.
///
/// Spans that it hands out end, besides as [`Transport`] says, when the member they belong to is revoked or left out
/// of `open`: the segment is unmapped then.
pub struct ShmTransport {
    me: MemberId,
    host: u64,
    address: String,
    prove: ProveFactory,
    /// The driver's poll.
    registry: mio::Registry,
    /// Our sockets; one entry in the driver's poll stands for all.
    sockets: mio::Poll,
    ready: mio::Events,
    listener: OwnedFd,
    /// A connection may still wait at the listener, without another event for it.
    accepts_again: bool,
    /// Rung by every other member.
    bell: Doorbell,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    /// Connections on their way to other members.
    dialing: usize,
    /// A `reserve` that was refused may succeed now: a link came up, or a member had no room for a connection. Keeps
    /// the driver awake for one turn.
    offer_again: bool,
    links: BTreeMap<MemberId, Links>,
    revoked: BTreeSet<MemberId>,
    epoch: Epoch,
    stale: u64,
    /// Whether some link may have a fault to report.
    has_faults: bool,
    turns_to_look: u32,
}

impl ShmTransport {
    /// The transport of member `me` on `host`, in the forming epoch and without peers. It is watched through
    /// `registry` with [`TOKENS`] tokens from `first_token` on; events of these need no handling but the usual turn.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn new(
        me: MemberId,
        host: u64,
        prove: ProveFactory,
        registry: mio::Registry,
        first_token: usize,
    ) -> io::Result<Self> {
        let address = socket::random_name(me)?;
        let listener = socket::listen(&address)?;
        let (sockets, mut bell) = (mio::Poll::new()?, Doorbell::new()?);
        sockets.registry().register(
            &mut SourceFd(&listener.as_raw_fd()),
            Token(LISTENER),
            Interest::READABLE,
        )?;
        registry.register(&mut SourceFd(&sockets.as_raw_fd()), Token(first_token), Interest::READABLE)?;
        registry.register(&mut bell, Token(first_token + 1), Interest::READABLE)?;
        Ok(Self {
            me,
            host,
            address,
            prove,
            registry,
            sockets,
            ready: mio::Events::with_capacity(EVENTS),
            listener,
            accepts_again: false,
            bell,
            connections: BTreeMap::new(),
            next_connection: LISTENER + 1,
            dialing: 0,
            offer_again: false,
            links: BTreeMap::new(),
            // Nobody has a link to itself.
            revoked: BTreeSet::from([me]),
            epoch: Epoch::default(),
            stale: 0,
            has_faults: false,
            turns_to_look: 0,
        })
    }

    /// Where other members of the host reach this one: [`Peer::shm`].
    #[must_use]
    pub fn address(&self) -> String {
        self.address.clone()
    }

    fn listed(&mut self, member: MemberId) -> Option<&mut Links> {
        self.links.get_mut(&member).filter(|links| links.is_listed)
    }

    /// Begins the handshake on a socket and watches it.
    fn begin(&mut self, socket: OwnedFd, side: Side) -> Result<ConnectionId, String> {
        let connection = Connection::begin(socket, side, (self.prove)(side)?)?;
        let id = self.next_connection;
        self.next_connection += 1;
        self.sockets
            .registry()
            .register(&mut SourceFd(&connection.descriptor()), Token(id), Interest::READABLE)
            .map_err(|e| format!("its socket cannot be watched: {e}"))?;
        self.dialing += usize::from(connection.is_dialing());
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Closes a connection; what rests on it is the caller's affair.
    fn close(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.dialing -= usize::from(connection.is_dialing());
        Some(connection)
    }

    /// Begins to connect to a listed member.
    fn dial(&mut self, to: MemberId) {
        let Some(address) = self.listed(to).map(|links| links.address.clone()) else { return };
        let dialed = match address.as_deref().map(socket::dial) {
            None => Err("it has no shared-memory address on this host".to_owned()),
            Some(Err(Errno::AGAIN)) => {
                self.offer_again = true;
                return;
            }
            Some(Err(e)) => Err(format!("no connection to its socket: {e}")),
            Some(Ok(socket)) => self.begin(socket, Side::Connect(to)),
        };
        let Some(links) = self.links.get_mut(&to) else { return };
        match dialed {
            Ok(id) => links.outgoing = Outgoing::Dialing(id),
            Err(cause) => {
                links.outgoing = Outgoing::Broken;
                links.note(cause);
                self.has_faults = true;
            }
        }
    }

    /// Ends a connection that is of no use any more.
    fn lose(&mut self, id: ConnectionId, cause: String) {
        let Some(peer) = self.close(id).and_then(|connection| connection.peer()) else {
            tracing::debug!(me = %self.me, cause, "connection dropped before its handshake was over");
            return;
        };
        if let Some(links) = self.links.get_mut(&peer) {
            links.lose(id);
            links.note(cause);
            self.has_faults = true;
        }
    }

    fn accept_all(&mut self) {
        self.accepts_again = false;
        loop {
            match socket::accept(self.listener.as_fd()) {
                Ok(socket) => {
                    if let Err(cause) = self.begin(socket, Side::Accept) {
                        tracing::debug!(me = %self.me, cause, "accepted connection dropped at once");
                    }
                    self.drop_unproven();
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(cause) => {
                    // Out of descriptors, as a rule. The event is used up, so remember.
                    tracing::warn!(me = %self.me, %cause, "connection cannot be accepted yet");
                    self.accepts_again = true;
                    return;
                }
            }
        }
    }

    fn drop_unproven(&mut self) {
        let unproven = || self.connections.iter().filter(|(_, c)| c.peer().is_none()).map(|(id, _)| *id);
        if unproven().count() > UNPROVEN_MAX
            && let Some(oldest) = unproven().next()
        {
            self.close(oldest);
        }
    }

    /// Steps a connection until it has nothing more to say.
    fn step(&mut self, id: ConnectionId) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let was_dialing = connection.is_dialing();
            let peer = connection.peer();
            let stepped = connection.step(&self.revoked, &self.bell);
            self.dialing -= usize::from(was_dialing && !connection.is_dialing());
            match stepped {
                Ok(Stepped::Idle) => return,
                Ok(Stepped::Busy) => {}
                Ok(Stepped::Sends(ring, bell)) => {
                    if let Some(links) = peer.and_then(|peer| self.links.get_mut(&peer)) {
                        links.outgoing = Outgoing::Up(Up { ring, bell, connection: id });
                        self.offer_again = true;
                    }
                }
                Ok(Stepped::Receives(member, ring, bell)) => {
                    // The same member proved itself again: its old link has ended, whether we heard of it or not.
                    let links = self.links.entry(member).or_default();
                    if let Some(old) = links.incoming.replace(Up { ring, bell, connection: id }) {
                        self.close(old.connection);
                    }
                }
                Err(cause) => return self.lose(id, cause),
            }
        }
    }

    fn look_at_sockets(&mut self) {
        self.turns_to_look = TURNS_PER_LOOK;
        if self.accepts_again {
            self.accept_all();
        }
        loop {
            match self.sockets.poll(&mut self.ready, Some(Duration::ZERO)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => {
                    // Only a bug makes this call fail; without it no fault would ever be seen.
                    tracing::error!(me = %self.me, %cause, "own sockets cannot be polled");
                    return;
                }
            }
            let ids: Vec<ConnectionId> = self.ready.iter().map(|event| event.token().0).collect();
            for &id in &ids {
                if id == LISTENER { self.accept_all() } else { self.step(id) }
            }
            if ids.len() < EVENTS {
                return;
            }
        }
    }

    fn report_faults(&mut self, events: &mut Vec<LinkEvent>) {
        if std::mem::take(&mut self.has_faults) {
            events.extend(self.links.iter_mut().filter_map(|(member, links)| links.poll_fault(*member)));
        }
    }

    /// A link from `from` that holds nonsense is abandoned.
    fn abandon_incoming(&mut self, from: MemberId, cause: String) {
        let Some(links) = self.links.get_mut(&from) else { return };
        links.note(cause);
        self.has_faults = true;
        if let Some(up) = links.incoming.take() {
            self.close(up.connection);
        }
    }
}

impl Transport for ShmTransport {
    /// # Panics
    /// When `epoch` is lower than the open one: epochs only grow.
    fn open(&mut self, epoch: Epoch, peers: &[Peer]) {
        assert!(epoch >= self.epoch, "open of {epoch} after {}", self.epoch);
        self.epoch = epoch;
        let is_gone = |member: &MemberId| peers.iter().all(|peer| peer.member != *member);
        let gone: Vec<MemberId> =
            self.links.iter().filter(|(m, links)| links.is_listed && is_gone(m)).map(|(m, _)| *m).collect();
        self.revoke(&gone);
        for peer in peers {
            if !self.revoked.contains(&peer.member) {
                let address = peer.shm.clone().filter(|_| peer.host == self.host);
                self.links.entry(peer.member).or_default().list(address);
            }
        }
        // What broke before its member was listed is due now.
        self.has_faults = self.links.values().any(Links::has_fault);
    }

    fn revoke(&mut self, dead: &[MemberId]) {
        for member in dead {
            self.revoked.insert(*member);
            if let Some(links) = self.links.remove(member) {
                for id in links.connections() {
                    self.close(id);
                }
            }
        }
        // Also those that are proven but no link yet.
        let theirs = |c: &Connection| c.peer().is_some_and(|peer| dead.contains(&peer));
        let ids: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, c)| theirs(c)).map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id);
        }
    }

    fn peek(&mut self, from: MemberId) -> Option<Arrival> {
        let links = self.links.get_mut(&from).filter(|links| links.is_listed)?;
        match links.peek(self.epoch, &mut self.stale) {
            Ok(arrival) => arrival,
            Err(cause) => {
                self.abandon_incoming(from, cause);
                None
            }
        }
    }

    fn consume(&mut self, from: MemberId) {
        // After a revocation there is nothing left to give back.
        if let Some(up) = self.listed(from).and_then(|links| links.incoming.as_mut())
            && up.ring.is_shown()
        {
            up.release();
        }
    }

    /// # Panics
    /// When no slot is large enough for `payload_bytes`.
    fn reserve(&mut self, to: MemberId, payload_bytes: usize) -> Option<Span> {
        let links = self.listed(to)?;
        match &mut links.outgoing {
            Outgoing::Up(up) => match up.ring.reserve(payload_bytes) {
                Ok(span) => span,
                Err(scribbled) => {
                    let id = up.connection;
                    self.lose(id, scribbled.to_string());
                    None
                }
            },
            Outgoing::Closed => {
                self.dial(to);
                None
            }
            Outgoing::Dialing(_) | Outgoing::Broken => None,
        }
    }

    /// # Panics
    /// When nothing of this size is reserved on a link that stands.
    fn commit(&mut self, to: MemberId, header: &Header) {
        // A link that broke or was revoked after `reserve` takes the message with it.
        if let Some(Outgoing::Up(up)) = self.listed(to).map(|links| &mut links.outgoing)
            && up.ring.commit(header)
        {
            up.bell.ring();
        }
    }

    fn progress(&mut self, events: &mut Vec<LinkEvent>) {
        if self.turns_to_look == 0 || self.dialing > 0 {
            self.look_at_sockets();
        } else {
            self.turns_to_look -= 1;
        }
        self.report_faults(events);
    }

    /// A message that `peek` has handed out already does not keep the driver awake: it knows of it. One that waits on a
    /// link that nobody looks at does so once.
    fn arm(&mut self) -> bool {
        if std::mem::take(&mut self.offer_again) || self.has_faults || self.accepts_again {
            return false;
        }
        let (epoch, listed) = (self.epoch, |links: &&mut Links| links.is_listed);
        self.links.values_mut().filter(listed).for_each(|links| links.announce_park());
        settle_park();
        let has_news = self.links.values_mut().filter(listed).any(|links| links.take_news(epoch));
        if has_news {
            self.links.values().for_each(Links::cancel_park);
        }
        !has_news
    }

    fn disarm(&mut self) {
        self.links.values().for_each(Links::cancel_park);
        self.bell.drain();
        self.turns_to_look = 0;
    }

    fn stale(&self) -> u64 {
        self.stale
    }

    /// Always: a committed message is in the segment.
    fn flushed(&mut self, _to: MemberId) -> bool {
        true
    }
}

impl Drop for ShmTransport {
    fn drop(&mut self) {
        // Others hold copies of the bell, so that its watch would outlive it. A poll that is gone itself is no loss.
        let _unwatched = self.registry.deregister(&mut self.bell);
        let _unwatched = self.registry.deregister(&mut SourceFd(&self.sockets.as_raw_fd()));
    }
}
