//! Incoming connections that belong to no link: not proven yet, or proven but not named by the table yet.

use std::collections::BTreeMap;

use mio::net::TcpStream;
use phalanx_core::ids::MemberId;

use super::outgoing::{Greeted, advance};
use crate::auth::{Handshake, Hello};

/// Connections that may be unproven at once; beyond that the oldest goes.
pub const UNPROVEN_MAX: usize = 256;
/// Proven members that may wait for a table that names them; only holders of the key get here.
pub const WAITING_MAX: usize = 4096;

#[derive(Debug)]
struct Unproven {
    stream: TcpStream,
    handshake: Handshake,
    since_us: u64,
}

/// Both kinds, bounded.
#[derive(Debug, Default)]
pub struct Strangers {
    /// By token: tokens grow, so the first is the oldest.
    unproven: BTreeMap<usize, Unproven>,
    waiting: BTreeMap<MemberId, (TcpStream, usize)>,
}

/// How a handshake goes on.
#[derive(Debug)]
pub enum Heard {
    /// The peer's turn.
    Waits,
    /// This member holds the key and is let in.
    Proven(MemberId, TcpStream),
    /// Closed.
    Refused,
}

impl Strangers {
    /// Takes in a new connection; gives the token of the one that had to go for it.
    pub fn admit(
        &mut self,
        token: usize,
        stream: TcpStream,
        handshake: Handshake,
        since_us: u64,
    ) -> Option<usize> {
        let dropped = match self.unproven.len() < UNPROVEN_MAX {
            true => None,
            false => self.unproven.pop_first().map(|(token, _)| token),
        };
        self.unproven.insert(token, Unproven { stream, handshake, since_us });
        dropped
    }

    /// Goes on with a handshake; `admit` says which proven members get an answer.
    pub fn hear(&mut self, token: usize, admit: impl Fn(MemberId) -> bool) -> Heard {
        let Some(mut one) = self.unproven.remove(&token) else {
            // Proven already: what it sends waits in the kernel until the table names it.
            return Heard::Waits;
        };
        match advance(&mut one.stream, &mut one.handshake, |hello: &Hello| admit(hello.member)) {
            Ok(Greeted::Waits) => {
                self.unproven.insert(token, one);
                Heard::Waits
            }
            Ok(Greeted::Proven) => match one.handshake.peer().map(|hello| hello.member) {
                Some(member) if one.stream.set_nodelay(true).is_ok() => Heard::Proven(member, one.stream),
                Some(_) | None => Heard::Refused,
            },
            Err(_) => Heard::Refused,
        }
    }

    /// Keeps a proven connection until [`claim`](Self::claim); gives the token of the one that had to go for it: an
    /// earlier one of the same member, or beyond the bound the oldest.
    pub fn keep(&mut self, member: MemberId, stream: TcpStream, token: usize) -> Option<usize> {
        if let Some((_, replaced)) = self.waiting.insert(member, (stream, token)) {
            return Some(replaced);
        }
        if self.waiting.len() <= WAITING_MAX {
            return None;
        }
        let oldest = self.waiting.iter().min_by_key(|(_, (_, token))| *token).map(|(&member, _)| member)?;
        self.waiting.remove(&oldest).map(|(_, token)| token)
    }

    /// The waiting connection of `member`.
    pub fn claim(&mut self, member: MemberId) -> Option<(TcpStream, usize)> {
        self.waiting.remove(&member)
    }

    /// Drops one connection that came before `begun_before` (microseconds) and is not proven; gives its token.
    pub fn expire(&mut self, begun_before: u64) -> Option<usize> {
        let oldest = self.unproven.first_entry()?;
        (oldest.get().since_us <= begun_before).then(|| oldest.remove_entry().0)
    }
}
