//! Time: beats, the lease, deadlines of ops, broken links.

use super::{CommId, Engine, Phase};
use crate::ids::{MemberId, OpId, OpSeq};
use crate::units::BEATS_PER_LEASE;
use crate::wire::message::Upward;

impl Engine {
    fn lease_ms(&self) -> u64 {
        self.rules.as_ref().map_or(crate::units::LEASE_MS, |r| r.lease_ms)
    }

    /// From when on this member gives the coordinator up. An op that is called while it is away has had its whole
    /// deadline by then, and a lease more. Time in which this process did not run does not count: what the coordinator
    /// said then is still to be read.
    fn orphaned_at_ms(&self) -> u64 {
        let op_timeout = self.rules.as_ref().map_or(u64::MAX, |r| r.op_timeout_ms);
        let from = self.leased_from_ms.max(self.awake_from_ms);
        from.saturating_add(self.lease_ms()).saturating_add(op_timeout)
    }

    /// Whether the lease is over: until the next answer to a beat nothing moves here.
    pub(super) fn notice_lapse(&mut self, now_ms: u64) {
        self.lapsed = self.rules.is_some() && now_ms.saturating_sub(self.leased_from_ms) >= self.lease_ms();
    }

    pub(super) fn handle_beat_seen(&mut self, stable: &[(CommId, OpSeq)], now_ms: u64) {
        // The lease runs from when the beat was sent: the answer may have been under way for long.
        if let Some(sent) = self.beats.pop_front() {
            self.leased_from_ms = self.leased_from_ms.max(sent);
        }
        self.notice_lapse(now_ms);
        for &(comm, below) in stable {
            if let Some(c) = self.comms.get_mut(&comm) {
                c.stable = c.stable.max(below.min(c.done_below));
                let stable = c.stable;
                self.forget_stable(comm, stable);
            }
        }
        self.release_pending();
    }

    fn release_pending(&mut self) {
        let ids: Vec<OpId> =
            self.comms.values().flat_map(|c| c.unreleased().filter(|o| o.done).map(|o| o.id)).collect();
        for id in ids {
            self.try_release(id);
        }
    }

    /// Sends beats, notices a lapsed lease and overdue ops. Without a word from the coordinator for a lease and the
    /// deadline of an op the member leaves the view by itself: no call waits for ever (P5).
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let Some(rules) = &self.rules else { return };
        if self.phase == Phase::Halted {
            return;
        }
        let (lease, op_timeout) = (rules.lease_ms, rules.op_timeout_ms);
        if now_ms.saturating_sub(self.looked_ms) >= lease {
            self.awake_from_ms = now_ms;
        }
        self.looked_ms = now_ms;
        if now_ms >= self.beat_due_ms {
            self.beat_due_ms = now_ms + lease / BEATS_PER_LEASE;
            self.beats.push_back(now_ms);
            let done_below = self.comms.iter().map(|(id, c)| (*id, c.done_below)).collect();
            self.messages.push_back(Upward::Beat { epoch: self.epoch, done_below });
        }
        self.notice_lapse(now_ms);
        if self.lapsed && now_ms >= self.orphaned_at_ms() {
            self.is_orphan = true;
            let silent_s = now_ms.saturating_sub(self.leased_from_ms) / 1_000;
            self.halt(&format!(
                "no word from the coordinator for {silent_s} s, and nobody else may decide; see why it is gone"
            ));
            return;
        }
        if !self.phase.is_moving() {
            return;
        }
        let late = |o: &&mut super::Op| {
            o.posted && !o.released && !o.overdue && now_ms.saturating_sub(o.posted_ms) >= op_timeout
        };
        let mut expired = Vec::new();
        for op in self.comms.values_mut().flat_map(|c| c.ops.values_mut()).filter(late) {
            op.overdue = true;
            expired.push(op.id);
        }
        for op in expired {
            self.messages.push_back(Upward::Expired { op, epoch: self.epoch });
        }
    }

    /// When `handle_timeout` has something to do at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.phase == Phase::Halted {
            return None;
        }
        let rules = self.rules.as_ref()?;
        let beat = self.beat_due_ms;
        let lease = if self.lapsed { self.orphaned_at_ms() } else { self.leased_from_ms + rules.lease_ms };
        let ops = self.comms.values().flat_map(super::Comm::unreleased);
        let op = ops
            .filter(|o| o.posted && !o.overdue && self.phase.is_moving())
            .map(|o| o.posted_ms.saturating_add(rules.op_timeout_ms))
            .min()
            .unwrap_or(u64::MAX);
        Some(beat.min(lease).min(op))
    }

    /// A link broke. Evidence: it goes to the coordinator, once per epoch and member, and ops wait.
    pub fn handle_link_fault(&mut self, member: MemberId, cause: String) {
        if self.view.rank_of(member).is_none() || self.faults.contains_key(&member) {
            return;
        }
        self.faults.insert(member, cause.clone());
        self.messages.push_back(Upward::Suspect { member, epoch: self.epoch, cause });
    }
}
