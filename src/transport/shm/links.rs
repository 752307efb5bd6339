//! Both directions between this member and one other.

use phalanx_core::ids::{Epoch, MemberId};

use super::raw::CELLS;
use super::ring::{ReceiveRing, SendRing};
use crate::sync::Doorbell;
use crate::transport::{Arrival, LinkEvent};

/// Number of a connection of this process, never used twice.
pub type ConnectionId = usize;

/// The link to the other member.
///
/// `Closed` until the first message; `Dialing` until the other end answered; `Broken` until the next epoch, which
/// may try again.
#[derive(Debug)]
pub enum Outgoing {
    /// Nothing was sent yet.
    Closed,
    /// The connection is being made.
    Dialing(ConnectionId),
    /// Messages flow.
    Up(Up<SendRing>),
    /// It failed in this epoch.
    Broken,
}

/// A link that stands.
#[derive(Debug)]
pub struct Up<R> {
    /// This member's end of the ring.
    pub ring: R,
    /// Wakes the other member.
    pub bell: Doorbell,
    /// Tells whether the other member lives.
    pub connection: ConnectionId,
}

/// What this member has with one other.
#[derive(Debug)]
pub struct Links {
    /// Whether it is in the table of the open epoch.
    pub is_listed: bool,
    /// Name of its socket; none: out of reach of shared memory.
    pub address: Option<String>,
    /// The link to it.
    pub outgoing: Outgoing,
    /// The link from it. Stays when the connection broke: what was published before is whole.
    pub incoming: Option<Up<ReceiveRing>>,
    /// What broke while it was not listed.
    unreported: Option<String>,
    /// Whether a fault was reported in this epoch: one is enough as evidence.
    is_reported: bool,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            is_listed: false,
            address: None,
            outgoing: Outgoing::Closed,
            incoming: None,
            unreported: None,
            is_reported: false,
        }
    }
}

impl Links {
    /// Starts an epoch in which the member is listed.
    pub fn list(&mut self, address: Option<String>) {
        self.is_listed = true;
        self.address = address;
        self.is_reported = false;
        match &mut self.outgoing {
            Outgoing::Broken => self.outgoing = Outgoing::Closed,
            Outgoing::Up(up) => up.ring.forget_wanted(),
            Outgoing::Closed | Outgoing::Dialing(_) => {}
        }
        if let Some(up) = &mut self.incoming {
            up.ring.forget_shown();
        }
    }

    /// Remembers that a link broke.
    pub fn note(&mut self, cause: String) {
        self.unreported.get_or_insert(cause);
    }

    /// Whether there is a fault to report now.
    pub const fn has_fault(&self) -> bool {
        self.is_listed && self.unreported.is_some()
    }

    /// The fault to report now, if there is one.
    pub fn poll_fault(&mut self, member: MemberId) -> Option<LinkEvent> {
        if !self.is_listed {
            return None;
        }
        let cause = self.unreported.take()?;
        let is_first = !std::mem::replace(&mut self.is_reported, true);
        is_first.then_some(LinkEvent::Fault { member, cause })
    }

    /// Forgets the connection `id` that has ended, and what cannot be without it.
    pub fn lose(&mut self, id: ConnectionId) {
        match &self.outgoing {
            Outgoing::Dialing(connection) if *connection == id => self.outgoing = Outgoing::Broken,
            Outgoing::Up(up) if up.connection == id => self.outgoing = Outgoing::Broken,
            Outgoing::Closed | Outgoing::Dialing(_) | Outgoing::Up(_) | Outgoing::Broken => {}
        }
    }

    /// The connections these links rest on.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> {
        let outgoing = match &self.outgoing {
            Outgoing::Dialing(connection) => Some(*connection),
            Outgoing::Up(up) => Some(up.connection),
            Outgoing::Closed | Outgoing::Broken => None,
        };
        outgoing.into_iter().chain(self.incoming.as_ref().map(|up| up.connection))
    }

    /// The first message of epoch `open`; older ones are dropped and counted into `stale`.
    ///
    /// # Errors
    /// What is wrong with the link from the member.
    pub fn peek(&mut self, open: Epoch, stale: &mut u64) -> Result<Option<Arrival>, String> {
        let Some(up) = &mut self.incoming else { return Ok(None) };
        // A full ring of old messages at most: a sender that goes on in its old epoch must not keep us here.
        for _ in 0..CELLS {
            let Some(header) = up.ring.head().map_err(|e| e.to_string())? else { return Ok(None) };
            if header.epoch > open {
                return Ok(None);
            }
            if header.epoch == open {
                return Ok(Some(Arrival { payload: up.ring.payload(&header), header }));
            }
            *stale += 1;
            up.release();
        }
        Ok(None)
    }

    /// Says of both links that this process is about to sleep.
    pub fn announce_park(&self) {
        if let Outgoing::Up(up) = &self.outgoing {
            up.ring.announce_park();
        }
        if let Some(up) = &self.incoming {
            up.ring.announce_park();
        }
    }

    /// Awake again.
    pub fn cancel_park(&self) {
        if let Outgoing::Up(up) = &self.outgoing {
            up.ring.cancel_park();
        }
        if let Some(up) = &self.incoming {
            up.ring.cancel_park();
        }
    }

    /// Whether one of the links has something to do that was not told before.
    pub fn take_news(&mut self, open: Epoch) -> bool {
        let room = match &mut self.outgoing {
            Outgoing::Up(up) => up.ring.take_news(),
            Outgoing::Closed | Outgoing::Dialing(_) | Outgoing::Broken => false,
        };
        room || self.incoming.as_mut().is_some_and(|up| up.ring.take_news(open))
    }
}

impl Up<ReceiveRing> {
    /// Gives the first message's room back and wakes a sender that waits for it.
    pub fn release(&mut self) {
        if self.ring.release() {
            self.bell.ring();
        }
    }
}
