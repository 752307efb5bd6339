//! What ranks tell one another on their links besides data: confirmations (rule R2), and who wants to be sent nothing
//! more of a communicator for now.
//!
//! Communicators share links, and a rank may not have called what another one sends it. It sets such messages aside, so
//! that those behind them pass. That they are not too many, it asks the sender to pause that communicator. Only that
//! one: what it waits for itself comes on another, over the same link.

use super::{Engine, Op, STATE_COMM};
use crate::ids::{Attempt, ChunkId, CommId, MemberId, OpId, OpSeq, Rank};
use crate::wire::{Header, Kind};

/// Confirmations of one rank that are kept for ops to be called here later. A rank can be ahead by what its links take
/// before it must wait, a few dozen ops a communicator; what goes beyond this many is made up.
const EARLY_MAX: usize = 4096;

impl Engine {
    /// Posts the notes that are due, on each link in their order; `post` says whether there was room. True if any went
    /// out.
    pub fn post_notes(&mut self, mut post: impl FnMut(MemberId, &Header) -> bool) -> bool {
        if self.notes.is_empty() || !self.phase.is_moving() {
            return false;
        }
        let before = self.notes.len();
        let mut full = Vec::new();
        self.notes.retain(|(to, header)| {
            let stays = full.contains(to) || !post(*to, header);
            if stays {
                full.push(*to);
            }
            stays
        });
        self.notes.len() < before
    }

    /// The occupant of plan rank `place` of `op`, if it may be sent something of the op now. A confirmation to it goes
    /// first: it may wait for that before it calls the op.
    #[must_use]
    pub fn receiver_at(&self, op: &Op, place: Rank) -> Option<MemberId> {
        let to = self.member_at(op, place)?;
        let is_behind = self.notes.iter().any(|(first, _)| *first == to);
        (!is_behind && !self.paused.contains(&(to, op.id.comm))).then_some(to)
    }

    /// Whether links may carry notes that this rank waits for.
    #[must_use]
    pub fn awaits_notes(&self) -> bool {
        self.confirming || self.is_paused()
    }

    /// Whether some rank wants to be sent nothing of a communicator for now.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// Members whose confirmation an op here waits for: their links must be looked at.
    pub fn awaited_confirms(&self) -> impl Iterator<Item = MemberId> + '_ {
        let waiting = self.comms.values().flat_map(|c| c.unreleased().filter(|o| o.done));
        waiting.flat_map(move |o| o.unconfirmed().filter_map(move |p| self.member_at(o, p)))
    }

    /// A note came in.
    pub fn handle_note(&mut self, from: MemberId, header: &Header) {
        if header.epoch != self.epoch || !self.phase.is_moving() {
            return;
        }
        match header.kind {
            Kind::Confirm => self.handle_confirm(from, header),
            // Whoever asks for it was sent something of the communicator, so this rank has it.
            Kind::Pause if self.comms.contains_key(&header.op.comm) || header.op.comm == STATE_COMM => {
                self.paused.insert((from, header.op.comm));
            }
            Kind::Proceed => {
                self.paused.remove(&(from, header.op.comm));
            }
            Kind::Pause | Kind::Partial | Kind::Final => {}
        }
    }

    fn handle_confirm(&mut self, from: MemberId, header: &Header) {
        let Some(rank) = self.view.rank_of(from) else { return };
        if self.op(header.op).is_none() {
            if self.comms.get(&header.op.comm).is_some_and(|c| header.op.seq < c.next) {
                return; // Over and forgotten here.
            }
            // Its sender needed nothing from this rank and is ahead of the call here.
            let early = self.early_confirms.entry(rank).or_default();
            if early.len() < EARLY_MAX {
                early.insert((header.op, header.attempt));
            }
            return;
        }
        if let Some(op) = self.op_mut(header.op).filter(|o| o.attempt == header.attempt) {
            op.confirm(rank);
            self.try_release(header.op);
        }
    }

    /// Who has confirmed the op before it was called here.
    pub(super) fn take_early_confirms(&mut self, op: OpId, attempt: Attempt) -> Vec<Rank> {
        let early = self.early_confirms.iter_mut();
        early.filter_map(|(rank, of)| of.remove(&(op, attempt)).then_some(*rank)).collect()
    }

    /// Tells those who wait for it that the op is whole here.
    pub(super) fn confirm_to(&mut self, id: OpId, due: &[Rank]) {
        let Some(op) = self.op(id) else { return };
        let header = self.header(op, Kind::Confirm, ChunkId(0), 0);
        let to: Vec<_> = due.iter().filter_map(|place| self.member_at(op, *place)).collect();
        self.notes.extend(to.into_iter().map(|member| (member, header)));
    }

    /// Asks `member` to pause a communicator on its link to here, or to proceed with it.
    pub fn ask_to_pause(&mut self, member: MemberId, comm: CommId, pause: bool) {
        let header = Header {
            kind: if pause { Kind::Pause } else { Kind::Proceed },
            op: OpId { comm, seq: OpSeq(0) },
            attempt: Attempt(0),
            epoch: self.epoch,
            chunk: ChunkId(0),
            signature: 0,
            payload_bytes: 0,
            stable: OpSeq(0),
            checksum: 0,
        };
        self.notes.push_back((member, header));
    }
}
