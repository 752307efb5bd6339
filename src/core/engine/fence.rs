//! Messages from the coordinator, the fence, and the ledger that answers it.

use super::{Action, Engine, Op, Phase, Trigger, WORLD};
use crate::bitmap::Bitmap;
use crate::ids::{CommId, Epoch, MemberId, OpSeq};
use crate::spec::Collective;
use crate::wire::message::{CommReport, Downward, Loss, Report, StepReport, Upward};

impl Engine {
    /// Takes a message from the coordinator.
    pub fn handle_message(&mut self, message: Downward, now_ms: u64) {
        // A process that was stopped hears what was said meanwhile before it looks at the time.
        self.notice_lapse(now_ms);
        match message {
            Downward::Welcome { rules, .. } => {
                self.rules = Some(rules);
                if self.rank.is_none() {
                    // A lease comes from a beat alone: this answer may have been under way, or unread, for long.
                    self.awake_from_ms = self.awake_from_ms.max(now_ms);
                }
                self.beat_due_ms = now_ms;
            }
            Downward::BeatSeen { epoch: _, stable } => self.handle_beat_seen(&stable, now_ms),
            Downward::Fence { epoch, losses } => self.handle_fence(epoch, losses),
            Downward::Decide { decision } => self.handle_decision(decision, now_ms),
            Downward::Evicted { epoch, cause } => {
                self.epoch = self.epoch.max(epoch);
                self.halt(&cause);
            }
            Downward::Finished {} => {
                if self.go(Trigger::Halt) {
                    self.end_all(
                        "every rank has left the run; wait for ops before the communicator is dropped",
                    );
                    self.actions.push_back(Action::RunOver);
                }
            }
            Downward::Refused { reason } => self.halt(&format!("the coordinator refused it: {reason}")),
        }
    }

    fn handle_fence(&mut self, epoch: Epoch, losses: Vec<Loss>) {
        if epoch == self.fence && self.phase == Phase::Deciding {
            // Asked again: the answer was lost with its connection. Nothing has changed here since.
            self.tell_ledger();
            return;
        }
        if epoch <= self.fence || epoch <= self.epoch || !self.go(Trigger::Fenced) {
            return; // Heard before.
        }
        self.fence = epoch;
        self.notes.clear();
        self.paused.clear();
        self.early_confirms.clear();
        let dead: Vec<MemberId> = losses.iter().map(|l| l.member).collect();
        self.losses = losses;
        self.actions.push_back(Action::Revoke { dead });
    }

    /// Every transport has shut out the dead: memory is quiet, the ledger can be told.
    pub fn handle_revoked(&mut self) {
        if self.go(Trigger::Revoked) {
            self.tell_ledger();
        }
    }

    fn tell_ledger(&mut self) {
        let report = self.report();
        self.messages.push_back(Upward::Ledger { report });
    }

    /// What this rank has of every op that may be asked for.
    #[must_use]
    pub fn report(&self) -> Report {
        // Holding the commit's result is as good as having returned from it.
        let commit = self.comms.get(&WORLD).and_then(|c| {
            c.ops
                .values()
                .find(|o| o.spec.collective == Collective::Commit && o.held.is_full() && !o.released)
        });
        let passed = commit.map(|o| o.id.seq).filter(|_| !crate::planted!(CommitAsOp));
        let comms = self.comms.iter().map(|(id, c)| self.comm_report(*id, c, passed)).collect();
        let step = StepReport {
            committed: self.step.committed + u64::from(passed.is_some()),
            open: self.step.open && passed.is_none(),
            state_bytes: self.step.state_bytes,
            state_gone: self.step.state_gone,
            state_held: self.state_report(),
        };
        Report { epoch: self.fence, comms, step }
    }

    fn comm_report(&self, id: CommId, c: &super::Comm, passed: Option<OpSeq>) -> CommReport {
        let step_first = match passed {
            Some(seq) if id == WORLD => seq.next(),
            Some(_) => c.next,
            None => c.step_first,
        };
        let ops = c.ops.range(step_first..).filter(|o| o.posted).map(Op::report).collect();
        let begins = if self.step.open && passed.is_none() { c.begins } else { c.next };
        CommReport { comm: id, group: c.group.clone(), next: c.next, ops, step_first, begins }
    }

    /// `None` for a rank that never was new, or is no longer waiting for its state. One of the first hour that was
    /// fenced before it heard of its seat has its own state.
    fn state_report(&self) -> Option<Bitmap> {
        match &self.transfer {
            Some(t) if t.incoming => Some(t.op.held.clone()),
            Some(_) => None,
            None if self.phase == Phase::Deciding && self.rank.is_none() && self.is_spare() => {
                Some(Bitmap::empty(0))
            }
            None => None,
        }
    }
}
