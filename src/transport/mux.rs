//! Chooses the transport of each peer: shared memory inside a host, TCP between hosts, unless one is forced.

use std::collections::BTreeMap;

use phalanx_core::ids::{Epoch, MemberId};
use phalanx_core::wire::Header;

use super::{Arrival, LinkEvent, Peer, Transport};
use crate::device::Span;

/// Several transports as one.
pub struct Mux {
    host: u64,
    transports: Vec<Named>,
    routes: BTreeMap<MemberId, usize>,
}

struct Named {
    transport: Box<dyn Transport + Send>,
    reach: Reach,
}

/// Whom a transport can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Members on the same host that have a shared-memory address.
    Host,
    /// Members that have a TCP address.
    Network,
}

impl Mux {
    /// No transports yet; `host` is this member's.
    #[must_use]
    pub fn new(host: u64) -> Self {
        Self { host, transports: Vec::new(), routes: BTreeMap::new() }
    }

    /// Adds a transport; the first added that reaches a peer carries its data.
    #[must_use]
    pub fn with(mut self, reach: Reach, transport: Box<dyn Transport + Send>) -> Self {
        self.transports.push(Named { transport, reach });
        self
    }

    fn reaches(&self, reach: Reach, peer: &Peer) -> bool {
        match reach {
            Reach::Host => peer.host == self.host && peer.shm.is_some(),
            Reach::Network => peer.tcp.is_some(),
        }
    }

    fn route(&mut self, member: MemberId) -> Option<&mut (dyn Transport + Send)> {
        let index = *self.routes.get(&member)?;
        Some(self.transports[index].transport.as_mut())
    }
}

impl Transport for Mux {
    fn open(&mut self, epoch: Epoch, peers: &[Peer]) {
        self.routes.clear();
        for peer in peers {
            let found = (0..self.transports.len()).find(|i| self.reaches(self.transports[*i].reach, peer));
            if let Some(index) = found {
                self.routes.insert(peer.member, index);
            }
        }
        for (index, named) in self.transports.iter_mut().enumerate() {
            let own: Vec<Peer> =
                peers.iter().filter(|p| self.routes.get(&p.member) == Some(&index)).cloned().collect();
            named.transport.open(epoch, &own);
        }
    }

    fn revoke(&mut self, dead: &[MemberId]) {
        for named in &mut self.transports {
            named.transport.revoke(dead);
        }
        self.routes.retain(|member, _| !dead.contains(member));
    }

    fn peek(&mut self, from: MemberId) -> Option<Arrival> {
        self.route(from)?.peek(from)
    }

    fn consume(&mut self, from: MemberId) {
        if let Some(transport) = self.route(from) {
            transport.consume(from);
        }
    }

    fn reserve(&mut self, to: MemberId, payload_bytes: usize) -> Option<Span> {
        self.route(to)?.reserve(to, payload_bytes)
    }

    fn commit(&mut self, to: MemberId, header: &Header) {
        if let Some(transport) = self.route(to) {
            transport.commit(to, header);
        }
    }

    fn post(&mut self, to: MemberId, header: &Header, payload: Span) -> bool {
        self.route(to).is_some_and(|transport| transport.post(to, header, payload))
    }

    fn tick(&mut self, now_us: u64) {
        for named in &mut self.transports {
            named.transport.tick(now_us);
        }
    }

    fn progress(&mut self, events: &mut Vec<LinkEvent>) {
        for named in &mut self.transports {
            named.transport.progress(events);
        }
    }

    fn arm(&mut self) -> bool {
        // Every one is armed, also when an earlier one refuses: disarm undoes all of them.
        let mut quiet = true;
        for named in &mut self.transports {
            quiet &= named.transport.arm();
        }
        quiet
    }

    fn disarm(&mut self) {
        for named in &mut self.transports {
            named.transport.disarm();
        }
    }

    fn stale(&self) -> u64 {
        self.transports.iter().map(|n| n.transport.stale()).sum()
    }

    fn flushed(&mut self, to: MemberId) -> bool {
        self.route(to).is_none_or(|transport| transport.flushed(to))
    }
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mux").field("host", &self.host).field("routes", &self.routes).finish_non_exhaustive()
    }
}
