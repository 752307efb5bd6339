//! Links over TCP: one connection per direction, opened by the sender at its first message, proven with the job key.
//!
//! Waking: all sockets are edge-triggered in one queue (see `sockets.rs`). An edge is consumed when it is taken from
//! the queue, so before the driver parks every socket must have been read until it was empty, or be held back on
//! purpose. `arm` sees to that: it empties the queue, then reads every link that may have more. Three things stay
//! unread: a link whose cells are all full, a link whose oldest message is of an epoch to come, and connections of
//! members that are not in the table. The driver itself ends each of these (by `consume`, `open`, `open`), and
//! `peek` reads without waiting for an edge, so none of them can be slept through.
//!
//! `arm` answers false when something came up that no `peek`, `reserve` or `post` has shown yet: a message at the
//! head of a link, room where a message was refused, a flushed link where `flushed` said no, a link that came up, an
//! event. That answer is given once per
//! occasion, so a driver that does not want what is there parks at the next `arm`; one that takes the transport over
//! from another holder must try everything before it arms.

mod incoming;
mod listen;
mod outgoing;
mod pool;
mod sockets;
mod strangers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use phalanx_core::ids::{Epoch, MemberId};
use phalanx_core::units::SLOT_BYTES;
use phalanx_core::wire::Header;

use self::incoming::{Filled, Incoming};
use self::outgoing::{CONNECTS_MAX, Moved, Outgoing};
use self::pool::Pool;
use self::sockets::{Owner, Ready, Sockets};
use self::strangers::Strangers;
use crate::auth::{Handshake, Hello, JobKey, Purpose};
use crate::device::Span;
use crate::transport::{Arrival, LinkEvent, Peer, Transport};

pub use listen::ListenError;

/// A connection that has not proven itself for so long is dropped, on either side.
pub const PROVE_WITHIN_US: u64 = 5_000_000;
/// Connections accepted in one turn; the handshakes of these get their turn before more come in.
const ACCEPTS_MAX: usize = 64;
/// While awake and with nothing held back, the queue is looked at once in so many turns: `peek` reads without it.
const TURNS_PER_LOOK: u32 = 16;
/// Times `arm` empties the queue before it tells the driver to stay awake: a flood must not hold the driver here.
const ARM_TURNS_MAX: usize = 16;

/// How a member takes part in TCP links.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// This member.
    pub me: MemberId,
    /// The key of the job.
    pub key: JobKey,
    /// Local address, v4 or v6. With `interface` set only its family matters.
    pub bind: IpAddr,
    /// Ports to try in turn; `0..=0` lets the kernel choose.
    pub ports: RangeInclusive<u16>,
    /// Name of a network interface whose address is used instead of `bind`.
    pub interface: Option<String>,
}

#[derive(Debug, Default)]
struct Link {
    address: Option<SocketAddr>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// A fault was reported, and nothing has come up since.
    is_faulted: bool,
}

/// The TCP transport of one member.
#[derive(Debug)]
pub struct TcpTransport {
    me: MemberId,
    key: JobKey,
    listener: TcpListener,
    address: SocketAddr,
    sockets: Sockets,
    ready: Vec<Ready>,
    strangers: Strangers,
    links: BTreeMap<MemberId, Link>,
    revoked: BTreeSet<MemberId>,
    /// Outgoing connections that are being made; their deadlines are looked at only if there are any.
    opening: usize,
    pool: Pool,
    epoch: Epoch,
    stale: u64,
    refused: u64,
    /// Something came up that the driver has not been shown; see the module.
    is_fresh: bool,
    /// The listener may have more connections than were accepted.
    is_accepting: bool,
    noticed: Vec<LinkEvent>,
    now_us: u64,
    turns_to_look: u32,
    /// A link has messages that the kernel did not take, or had no room for one: an event will tell when it has.
    is_held_back: bool,
}

impl TcpTransport {
    /// Listens, and makes `first_token` of `registry` readable whenever `progress` has something to do.
    ///
    /// # Errors
    /// When the interface is not there or no port of the range is free.
    pub fn new(config: TcpConfig, registry: &Registry, first_token: usize) -> Result<Self, ListenError> {
        let local = listen::local_address(config.bind, config.interface.as_deref())?;
        let mut listener = listen::listen(local, config.ports)?;
        let address = listener.local_addr().map_err(ListenError::NoQueue)?;
        let mut sockets = Sockets::nested_in(registry, Token(first_token)).map_err(ListenError::NoQueue)?;
        sockets.add(&mut listener, Interest::READABLE, Owner::Listener).map_err(ListenError::NoQueue)?;
        Ok(Self {
            me: config.me,
            key: config.key,
            listener,
            address,
            sockets,
            ready: Vec::new(),
            strangers: Strangers::default(),
            links: BTreeMap::new(),
            revoked: BTreeSet::new(),
            opening: 0,
            pool: Pool::default(),
            epoch: Epoch::default(),
            stale: 0,
            refused: 0,
            is_fresh: false,
            is_accepting: true,
            noticed: Vec::new(),
            now_us: 0,
            turns_to_look: 0,
            is_held_back: false,
        })
    }

    /// Where peers reach this member, for their tables. If it listens on all addresses (`0.0.0.0`, `::`), the caller
    /// puts one of the host's addresses in place of that.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells the time, in microseconds of any clock that does not go back; the driver does so before `progress`.
    pub fn set_now(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// Incoming connections that were turned away: strangers, revoked members, and those beyond the bound.
    #[cfg(any(test, feature = "internals"))]
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes events from the queue once and acts on them; false if there were none.
    fn turn(&mut self) -> bool {
        let mut ready = std::mem::take(&mut self.ready);
        self.sockets.poll(&mut ready);
        let any = !ready.is_empty() || self.is_accepting;
        for event in ready.drain(..) {
            match event.owner {
                Owner::Listener => self.is_accepting = true,
                Owner::Stranger => self.hear(event.token),
                Owner::Incoming(member) => {
                    if let Some(link) = self.links.get_mut(&member) {
                        link.incoming.set_readable(event.is_ending);
                        self.read(member);
                    }
                }
                Owner::Outgoing(member) => self.handle_outgoing(member, event.is_readable),
            }
        }
        self.ready = ready;
        if self.is_accepting {
            self.accept();
        }
        any
    }

    /// Looks at the queue where an event is waited for, and otherwise now and then.
    fn look(&mut self) {
        if self.turns_to_look > 0 && self.opening == 0 && !self.is_held_back && !self.is_accepting {
            self.turns_to_look -= 1;
            return;
        }
        self.turns_to_look = TURNS_PER_LOOK;
        self.turn();
        if self.is_held_back {
            self.is_held_back = self.links.values().any(|link| link.outgoing.is_held_back());
        }
    }

    /// Takes in new connections and gives each its nonce.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let (mut stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A connection that went away again, or no descriptors left, says nothing about the next one.
                    self.is_accepting = error.kind() != std::io::ErrorKind::WouldBlock;
                    return;
                }
            };
            let me = Hello { purpose: Purpose::DataTcp, member: self.me, receiver: self.me };
            let added = self.sockets.add(&mut stream, Interest::READABLE, Owner::Stranger);
            match (added, Handshake::accept(&self.key, me)) {
                (Ok(token), Ok(handshake)) => {
                    let dropped = self.strangers.admit(token, stream, handshake, self.now_us);
                    self.refused += u64::from(dropped.is_some());
                    self.sockets.forget(dropped);
                    self.hear(token);
                }
                (added, _) => {
                    self.refused += 1;
                    self.sockets.forget(added.ok());
                }
            }
        }
    }

    /// Goes on with the handshake of a stranger.
    fn hear(&mut self, token: usize) {
        let revoked = &self.revoked;
        match self.strangers.hear(token, |member| !revoked.contains(&member)) {
            strangers::Heard::Waits => {}
            strangers::Heard::Proven(member, stream) => self.admit(member, stream, token),
            strangers::Heard::Refused => {
                self.refused += 1;
                self.sockets.forget(Some(token));
            }
        }
    }

    /// A member has proven itself: its connection becomes the incoming link, or waits for the table that names it.
    fn admit(&mut self, member: MemberId, stream: TcpStream, token: usize) {
        match self.links.get_mut(&member) {
            Some(link) => {
                self.sockets.rename(token, Owner::Incoming(member));
                let replaced = link.incoming.attach(stream, token);
                link.is_faulted = false;
                self.sockets.forget(replaced);
                self.read(member);
            }
            None => {
                let dropped = self.strangers.keep(member, stream, token);
                self.refused += u64::from(dropped.is_some());
                self.sockets.forget(dropped);
            }
        }
    }

    /// Reads a link once, if it is not held back, and notes what the driver should see.
    fn read(&mut self, member: MemberId) -> Filled {
        let Some(link) = self.links.get_mut(&member) else { return Filled::Nothing };
        if !link.incoming.is_readable(self.epoch) {
            return Filled::Nothing;
        }
        let filled = link.incoming.fill(&mut self.pool).unwrap_or_else(|cause| {
            self.sockets.forget(link.incoming.close());
            note(&mut self.noticed, link, member, "from", &cause);
            Filled::Nothing
        });
        // Nothing new: what is at the head has been announced before, and may not be wanted yet.
        if filled == Filled::Some {
            let front = link.incoming.front(self.epoch, &mut self.stale, &mut self.pool);
            self.is_fresh |= front.is_some();
        }
        filled
    }

    fn handle_outgoing(&mut self, member: MemberId, is_readable: bool) {
        let Some(link) = self.links.get_mut(&member) else { return };
        let was_opening = link.outgoing.is_opening();
        match link.outgoing.handle_ready(is_readable, &mut self.pool) {
            Ok(Moved::CameUp) => {
                link.is_faulted = false;
                self.is_fresh = true;
            }
            Ok(Moved::Freed) => self.is_fresh = true,
            Ok(Moved::Nothing) => {}
            Err(cause) => self.break_outgoing(member, &cause),
        }
        let is_opening = self.links.get(&member).is_some_and(|link| link.outgoing.is_opening());
        self.opening -= usize::from(was_opening && !is_opening);
    }

    fn break_outgoing(&mut self, member: MemberId, cause: &str) {
        if let Some(link) = self.links.get_mut(&member) {
            self.sockets.forget(link.outgoing.close(&mut self.pool));
            note(&mut self.noticed, link, member, "to", cause);
        }
    }

    /// Begins the connection to `to` if there is none and another attempt is allowed.
    fn connect(&mut self, to: MemberId) {
        let Some(link) = self.links.get_mut(&to) else { return };
        if !link.outgoing.is_closed() || link.outgoing.connects == CONNECTS_MAX {
            return;
        }
        let hello = Hello { purpose: Purpose::DataTcp, member: self.me, receiver: to };
        let begun = link.address.ok_or_else(|| "it has no TCP address".to_owned()).and_then(|address| {
            let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
            let handshake = Handshake::connect(&self.key, hello).map_err(|error| error.to_string())?;
            let both = Interest::READABLE | Interest::WRITABLE;
            let token = self.sockets.add(&mut stream, both, Owner::Outgoing(to));
            Ok((stream, handshake, token.map_err(|error| error.to_string())?))
        });
        match begun {
            Ok((stream, handshake, token)) => {
                link.outgoing.begin(stream, handshake, token, self.now_us);
                self.opening += 1;
            }
            Err(cause) => {
                link.outgoing.connects += 1;
                note(&mut self.noticed, link, to, "to", &cause);
            }
        }
    }

    /// Drops whoever has not proven itself in time, on either side.
    fn expire(&mut self) {
        let Some(begun_before) = self.now_us.checked_sub(PROVE_WITHIN_US) else { return };
        while let Some(token) = self.strangers.expire(begun_before) {
            self.refused += 1;
            self.sockets.forget(Some(token));
        }
        if self.opening == 0 {
            return;
        }
        let late = |link: &Link| link.outgoing.is_opening() && link.outgoing.since_us <= begun_before;
        let late: Vec<MemberId> = self.links.iter().filter(|(_, link)| late(link)).map(|(&m, _)| m).collect();
        for member in late {
            self.opening -= 1;
            self.break_outgoing(member, "it did not answer the handshake in time");
        }
    }

    /// Closes both directions of a link and frees what it held.
    fn shut(&mut self, member: MemberId) {
        if let Some(mut link) = self.links.remove(&member) {
            self.opening -= usize::from(link.outgoing.is_opening());
            self.sockets.forget(link.incoming.close());
            self.sockets.forget(link.outgoing.close(&mut self.pool));
            link.incoming.clear(&mut self.pool);
            link.outgoing.forget_reserved(&mut self.pool);
        }
    }
}

/// Reports the first fault of a link since it was last whole: two directions of one death are one piece of evidence.
fn note(noticed: &mut Vec<LinkEvent>, link: &mut Link, member: MemberId, direction: &str, cause: &str) {
    if !link.is_faulted {
        link.is_faulted = true;
        noticed.push(LinkEvent::Fault { member, cause: format!("TCP link {direction} {member}: {cause}") });
    }
}

impl Transport for TcpTransport {
    fn tick(&mut self, now_us: u64) {
        self.set_now(now_us);
    }

    fn open(&mut self, epoch: Epoch, peers: &[Peer]) {
        debug_assert!(epoch >= self.epoch, "epochs only grow: {epoch} after {}", self.epoch);
        self.epoch = epoch;
        let named: BTreeSet<MemberId> = peers.iter().map(|peer| peer.member).collect();
        let gone: Vec<MemberId> =
            self.links.keys().copied().filter(|member| !named.contains(member)).collect();
        gone.into_iter().for_each(|member| self.shut(member));
        for peer in peers {
            if peer.member == self.me || self.revoked.contains(&peer.member) {
                continue;
            }
            let link = self.links.entry(peer.member).or_default();
            link.address = peer.tcp;
            link.is_faulted = false;
            link.outgoing.connects = 0;
            if let Some((stream, token)) = self.strangers.claim(peer.member) {
                self.admit(peer.member, stream, token);
            }
        }
        self.is_fresh = true;
    }

    fn revoke(&mut self, dead: &[MemberId]) {
        for &member in dead {
            self.revoked.insert(member);
            self.shut(member);
            if let Some((_, token)) = self.strangers.claim(member) {
                self.refused += 1;
                self.sockets.forget(Some(token));
            }
        }
        // What was noticed about them is no news any more.
        self.noticed.retain(|LinkEvent::Fault { member, .. }| !dead.contains(member));
    }

    fn peek(&mut self, from: MemberId) -> Option<Arrival> {
        let link = self.links.get_mut(&from)?;
        let waiting = link.incoming.show(self.epoch, &mut self.stale, &mut self.pool);
        if waiting.is_some() || !link.incoming.is_open(self.epoch) {
            return waiting;
        }
        if let Err(cause) = link.incoming.fill(&mut self.pool) {
            self.sockets.forget(link.incoming.close());
            note(&mut self.noticed, link, from, "from", &cause);
        }
        link.incoming.show(self.epoch, &mut self.stale, &mut self.pool)
    }

    fn consume(&mut self, from: MemberId) {
        if let Some(link) = self.links.get_mut(&from) {
            link.incoming.consume(&mut self.pool);
            let next = link.incoming.front(self.epoch, &mut self.stale, &mut self.pool);
            self.is_fresh |= next.is_some();
        }
    }

    fn reserve(&mut self, to: MemberId, payload_bytes: usize) -> Option<Span> {
        assert!(
            payload_bytes <= SLOT_BYTES,
            "{payload_bytes} payload bytes do not fit a slot of {SLOT_BYTES}"
        );
        self.connect(to);
        let outgoing = &mut self.links.get_mut(&to)?.outgoing;
        let slot = outgoing.reserve(payload_bytes, &mut self.pool);
        self.is_held_back |= outgoing.is_held_back();
        slot
    }

    fn commit(&mut self, to: MemberId, header: &Header) {
        let Some(link) = self.links.get_mut(&to) else { return };
        let committed = link.outgoing.commit(header, &mut self.pool);
        self.is_held_back |= link.outgoing.is_held_back();
        if let Err(cause) = committed {
            self.break_outgoing(to, &cause);
        }
    }

    fn post(&mut self, to: MemberId, header: &Header, payload: Span) -> bool {
        assert!(
            payload.len() <= SLOT_BYTES,
            "{} payload bytes do not fit a slot of {SLOT_BYTES}",
            payload.len()
        );
        self.connect(to);
        let Some(link) = self.links.get_mut(&to) else { return false };
        let posted = link.outgoing.post(header, payload, &mut self.pool);
        self.is_held_back |= link.outgoing.is_held_back();
        posted.unwrap_or_else(|cause| {
            self.break_outgoing(to, &cause);
            false
        })
    }

    fn progress(&mut self, events: &mut Vec<LinkEvent>) {
        self.look();
        self.expire();
        events.append(&mut self.noticed);
    }

    fn arm(&mut self) -> bool {
        let mut turns = 0;
        while self.turn() {
            turns += 1;
            if turns == ARM_TURNS_MAX {
                return false;
            }
        }
        let members: Vec<MemberId> = self.links.keys().copied().collect();
        for member in members {
            while self.read(member) == Filled::Some {}
        }
        let is_quiet = !std::mem::take(&mut self.is_fresh) && self.noticed.is_empty();
        is_quiet && !self.is_accepting
    }

    fn disarm(&mut self) {
        self.turns_to_look = 0;
    }

    fn stale(&self) -> u64 {
        self.stale
    }

    fn flushed(&mut self, to: MemberId) -> bool {
        self.links.get_mut(&to).is_none_or(|link| link.outgoing.is_flushed())
    }
}
