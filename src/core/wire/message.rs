//! Control messages between a member and the coordinator.

use crate::bitmap::Bitmap;
use crate::ids::{Attempt, CommId, Epoch, MemberId, OpId, OpSeq, Rank};
use crate::policy::Rules;
use crate::spec::Spec;
use crate::view::{MemberInfo, View};
use crate::wire::codec::wire;

/// Version of the control messages; both ends must have the same.
pub const VERSION: u16 = 1;
/// A frame on the control connection is at most this long; a longer one ends the connection.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// What a rank holds of an op as Final.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holding {
    /// Nothing.
    Nothing {},
    /// Every chunk of the op.
    Everything {},
    /// These chunks.
    Some {
        /// One bit a chunk.
        chunks: Bitmap,
    },
    /// It had all that it is due and was released: it lacks nothing, and can serve nothing.
    Satisfied {},
}

impl Holding {
    /// The shortest form of `chunks`.
    #[must_use]
    pub fn of(chunks: &Bitmap) -> Self {
        match chunks.count() {
            0 if chunks.is_empty() => Self::Everything {},
            0 => Self::Nothing {},
            n if n == chunks.len() => Self::Everything {},
            _ => Self::Some { chunks: chunks.clone() },
        }
    }

    /// The set, over `chunks` chunks; a set over another number of chunks counts as nothing.
    #[must_use]
    pub fn expand(&self, chunks: u32) -> Bitmap {
        match self {
            Self::Nothing {} | Self::Satisfied {} => Bitmap::empty(chunks),
            Self::Everything {} => Bitmap::full(chunks),
            Self::Some { chunks: set } if set.len() == chunks => set.clone(),
            Self::Some { .. } => Bitmap::empty(chunks),
        }
    }
}

wire!(enum Holding { 0 => Nothing {}, 1 => Everything {}, 2 => Some { chunks }, 3 => Satisfied {} });

/// One op in a member's ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpReport {
    /// Its position in the communicator.
    pub seq: OpSeq,
    /// What the caller here asked for.
    pub spec: Spec,
    /// The contributor set it ran under.
    pub attempt: Attempt,
    /// World ranks of that set, in plan order.
    pub group: Vec<Rank>,
    /// Chunks that are Final here and can still be served.
    pub held: Holding,
    /// Chunks whose Input is gone here (Final, torn or released).
    pub lost: Holding,
    /// `wait()` has returned success, or may any time.
    pub released: bool,
    /// Every chunk due here was Final at some time.
    pub done: bool,
    /// The error it ended with here.
    pub failed: Option<FailCause>,
}
wire!(struct OpReport { seq, spec, attempt, group, held, lost, released, done, failed });

/// One communicator in a member's ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommReport {
    /// The communicator.
    pub comm: CommId,
    /// Its world ranks, in rank order.
    pub group: Vec<Rank>,
    /// The op the caller will call next.
    pub next: OpSeq,
    /// Ops not known stable by all, ascending.
    pub ops: Vec<OpReport>,
    /// First op that no commit covers.
    pub step_first: OpSeq,
    /// First op of the open step, or of the one to come: ops before it were called outside of steps.
    pub begins: OpSeq,
}
wire!(struct CommReport { comm, group, next, ops, step_first, begins });

/// Where a member stands in the sequence of steps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StepReport {
    /// Steps committed here.
    pub committed: u64,
    /// Whether the next one has begun here.
    pub open: bool,
    /// Bytes of all state regions (0: none named yet).
    pub state_bytes: u64,
    /// Whether the caller took its state regions back although the step is open (its body failed): nothing is served.
    pub state_gone: bool,
    /// State chunks this newcomer has; everything for a rank that was never new.
    pub state_held: Option<Bitmap>,
}
wire!(struct StepReport { committed, open, state_bytes, state_gone, state_held });

/// A member's answer to a fence: from here until the decision nothing changes its buffers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The fence it answers.
    pub epoch: Epoch,
    /// Its communicators.
    pub comms: Vec<CommReport>,
    /// Its step.
    pub step: StepReport,
}
wire!(struct Report { epoch, comms, step });

/// From a member to the coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upward {
    /// First message of a connection.
    Join {
        /// [`VERSION`].
        version: u16,
        /// Who comes.
        info: MemberInfo,
        /// The epoch it is in: 0 for a new process, more after a lost connection.
        epoch: Epoch,
    },
    /// Still here.
    Beat {
        /// The epoch it is in.
        epoch: Epoch,
        /// Per communicator, every op below this is complete here.
        done_below: Vec<(CommId, OpSeq)>,
    },
    /// Evidence that another member is gone.
    Suspect {
        /// Whom.
        member: MemberId,
        /// The epoch in which it was seen.
        epoch: Epoch,
        /// What was seen.
        cause: String,
    },
    /// The answer to a fence.
    Ledger {
        /// The ledger.
        report: Report,
    },
    /// An op has no verdict and its deadline is over.
    Expired {
        /// The op.
        op: OpId,
        /// The epoch in which it expired.
        epoch: Epoch,
    },
    /// A peer sent something that this rank's call does not expect.
    Mismatch {
        /// The op here.
        op: OpId,
        /// The peer.
        peer: Rank,
        /// The epoch in which it was seen.
        epoch: Epoch,
    },
    /// A milestone of the recovery, for whoever watches.
    Milestone {
        /// The epoch it belongs to.
        epoch: Epoch,
        /// Which.
        what: Milestone,
    },
    /// The member is finished and goes by itself.
    Leave {},
}
wire!(enum Upward {
    0 => Join { version, info, epoch },
    1 => Beat { epoch, done_below },
    2 => Suspect { member, epoch, cause },
    3 => Ledger { report },
    4 => Expired { op, epoch },
    5 => Mismatch { op, peer, epoch },
    6 => Milestone { epoch, what },
    7 => Leave {},
});

/// What a watcher of a recovery wants to see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Milestone {
    /// A newcomer has the whole state.
    StateHeld {},
    /// A newcomer has called again all ops its seat had completed before the death.
    Replayed {},
    /// An op that was in flight at the fence is complete here.
    Resumed {},
}
wire!(enum Milestone { 0 => StateHeld {}, 1 => Replayed {}, 2 => Resumed {} });

/// Why a rank left the view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The seat it had.
    pub rank: Rank,
    /// Who sat there.
    pub member: MemberId,
    /// What was seen.
    pub cause: String,
}
wire!(struct Loss { rank, member, cause });

/// Why an op cannot complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FailCause {
    /// A rank died and the policy is to give up.
    RankLost {
        /// Who, why.
        losses: Vec<Loss>,
    },
    /// More was lost than promised.
    Unrecoverable {
        /// Who, why.
        losses: Vec<Loss>,
        /// What exactly is gone.
        why: String,
    },
    /// Two ranks called different things.
    Mismatch {
        /// One rank.
        one: Rank,
        /// What it called.
        one_spec: Spec,
        /// The other rank.
        two: Rank,
        /// What it called.
        two_spec: Spec,
    },
    /// No verdict within the deadline.
    Expired {
        /// Ranks that had not even called it.
        missing: Vec<Rank>,
    },
    /// The op's shape depends on who takes part, so it cannot go on without the dead.
    ShapeChanged {
        /// Who, why.
        losses: Vec<Loss>,
    },
}
wire!(enum FailCause {
    0 => RankLost { losses },
    1 => Unrecoverable { losses, why },
    2 => Mismatch { one, one_spec, two, two_spec },
    3 => Expired { missing },
    4 => ShapeChanged { losses },
});

/// What becomes of one op.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is complete wherever it must be.
    Keep {},
    /// Chunks somebody holds are forwarded, the others reduced again from every rank's Input.
    Repair {},
    /// Inputs are restored; it runs again over the survivors.
    Shrink {},
    /// The same error everywhere.
    Fail {
        /// Why.
        cause: FailCause,
    },
}
wire!(enum Verdict { 0 => Keep {}, 1 => Repair {}, 2 => Shrink {}, 3 => Fail { cause } });

/// The decision about one op.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpDecision {
    /// The op.
    pub id: OpId,
    /// What it is.
    pub spec: Spec,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The contributor set it completes under.
    pub attempt: Attempt,
    /// World ranks of that set, in plan order.
    pub group: Vec<Rank>,
    /// What each of `group` holds, in that order.
    pub held: Vec<Holding>,
}
wire!(struct OpDecision { id, spec, verdict, attempt, group, held });

/// What a newcomer takes from whom before it replays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateDecision {
    /// Steps committed before the one the newcomers start in.
    pub committed: u64,
    /// Ranks that serve, striped by chunk; each from its begin of that step on.
    pub providers: Vec<Rank>,
    /// Bytes of the state.
    pub bytes: u64,
    /// Newcomers and the chunks they have already.
    pub newcomers: Vec<(Rank, Holding)>,
}
wire!(struct StateDecision { committed, providers, bytes, newcomers });

/// A communicator that a newcomer must know, and where its ops begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommDecision {
    /// The communicator.
    pub comm: CommId,
    /// Its world ranks.
    pub group: Vec<Rank>,
    /// First op that no commit covers.
    pub step_first: OpSeq,
    /// First op of the step the newcomers start in: what was called before it outside of steps they do not call.
    pub begins: OpSeq,
    /// Set when it cannot go on: later calls get this error until the caller builds a new one.
    pub broken: Option<FailCause>,
}
wire!(struct CommDecision { comm, group, step_first, begins, broken });

/// The next view and what becomes of every op. Written to the store before anybody acts on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The new view.
    pub view: View,
    /// Who left since the last one.
    pub losses: Vec<Loss>,
    /// Ranks whose occupant is new in this epoch, or has not replayed yet.
    pub newcomers: Vec<Rank>,
    /// Communicators.
    pub comms: Vec<CommDecision>,
    /// Ops, ascending.
    pub ops: Vec<OpDecision>,
    /// Steps that are committed, whatever a rank's own commit says.
    pub committed: u64,
    /// State for newcomers.
    pub state: Option<StateDecision>,
}
wire!(struct Decision { view, losses, newcomers, comms, ops, committed, state });

/// From the coordinator to a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Downward {
    /// Answer to a join.
    Welcome {
        /// [`VERSION`] of the coordinator.
        version: u16,
        /// What everybody agrees on.
        rules: Rules,
    },
    /// Answer to a beat: the lease runs from when that beat was sent.
    BeatSeen {
        /// The epoch in force.
        epoch: Epoch,
        /// Per communicator, every op below this is complete at every rank.
        stable: Vec<(CommId, OpSeq)>,
    },
    /// Stop, shut out the dead, answer with the ledger.
    Fence {
        /// The epoch to come.
        epoch: Epoch,
        /// Who is out.
        losses: Vec<Loss>,
    },
    /// Go on in the new view.
    Decide {
        /// How.
        decision: Decision,
    },
    /// You were declared dead: leave, come back as a spare under a new id.
    Evicted {
        /// The epoch in force.
        epoch: Epoch,
        /// Why.
        cause: String,
    },
    /// The run is over: every seated rank has left.
    Finished {},
    /// You cannot join.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}
wire!(enum Downward {
    0 => Welcome { version, rules },
    1 => BeatSeen { epoch, stable },
    2 => Fence { epoch, losses },
    3 => Decide { decision },
    4 => Evicted { epoch, cause },
    5 => Finished {},
    6 => Refused { reason },
});

wire!(struct MemberInfo { member, host, domain, tcp, shm, pid, wants });
wire!(struct View { epoch, seats, members });

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Wire;
    use proptest::prelude::*;

    fn sample() -> Downward {
        let info = MemberInfo {
            member: MemberId(7),
            host: 1,
            domain: crate::ids::DomainId(2),
            tcp: Some("[::1]:80".parse().unwrap()),
            shm: Some("phalanx-x".into()),
            pid: 4,
            wants: None,
        };
        let view = View { epoch: Epoch(3), seats: vec![Some(MemberId(7)), None], members: vec![info] };
        let loss = Loss { rank: Rank(1), member: MemberId(6), cause: "exit".into() };
        let spec = Spec {
            collective: crate::spec::Collective::AllReduce,
            dtype: crate::spec::Dtype::F32,
            reduction: crate::spec::ReduceOp::Sum,
            count: 10,
            root: Rank(0),
            algorithm: crate::spec::Algorithm::Ring,
        };
        let op = OpDecision {
            id: OpId { comm: CommId(0), seq: OpSeq(4) },
            spec,
            verdict: Verdict::Fail { cause: FailCause::RankLost { losses: vec![loss.clone()] } },
            attempt: Attempt(1),
            group: vec![Rank(0)],
            held: vec![Holding::Some { chunks: Bitmap::from_words(70, &[5, 1]) }],
        };
        Downward::Decide {
            decision: Decision {
                view,
                losses: vec![loss],
                newcomers: vec![Rank(1)],
                comms: vec![CommDecision {
                    comm: CommId(0),
                    group: vec![Rank(0), Rank(1)],
                    step_first: OpSeq(2),
                    begins: OpSeq(2),
                    broken: None,
                }],
                ops: vec![op],
                committed: 9,
                state: Some(StateDecision {
                    committed: 9,
                    providers: vec![Rank(0)],
                    bytes: 100,
                    newcomers: vec![(Rank(1), Holding::Nothing {})],
                }),
            },
        }
    }

    #[test]
    fn a_decision_survives_the_wire() {
        let frame = sample().to_frame();
        assert_eq!(Downward::from_frame(&frame), Ok(sample()));
        for cut in 0..frame.len() {
            assert!(Downward::from_frame(&frame[..cut]).is_err(), "a frame cut at {cut} must not decode");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Downward::from_frame(&bytes);
            let _ = Upward::from_frame(&bytes);
        }

        #[test]
        fn a_damaged_frame_decodes_or_fails_cleanly(at in 0usize..400, value: u8) {
            let mut frame = sample().to_frame();
            let at = at % frame.len();
            frame[at] = value;
            let _ = Downward::from_frame(&frame);
        }
    }
}
