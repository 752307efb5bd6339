//! Why an op, or a call, did not do what was asked: what happened, to whom, and what to do next.

use crate::ids::{CommId, Epoch, MemberId, OpId, Rank};
use crate::spec::Spec;
use crate::wire::message::{FailCause, Loss};

/// The typed end of an op that did not complete. Every rank of the view gets the same one for the same op.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The coordinator ended the op for every rank.
    #[error("{op} ({spec}) failed on {rank} in {epoch}: {}", describe(cause))]
    Failed {
        /// This rank.
        rank: Rank,
        /// The epoch of the decision.
        epoch: Epoch,
        /// The op.
        op: OpId,
        /// What it was.
        spec: Spec,
        /// Why.
        cause: FailCause,
    },
    /// A replayed call is not the call that was recorded.
    #[error(
        "{op} on {rank} in {epoch}: the replay calls {called}, the run before the loss called {recorded}; make the \
         step a function of its state alone (seeds, data order), then start the spare again"
    )]
    ReplayMismatch {
        /// This rank.
        rank: Rank,
        /// The epoch.
        epoch: Epoch,
        /// The op.
        op: OpId,
        /// What the newcomer called.
        called: Spec,
        /// What its predecessor's peers recorded.
        recorded: Spec,
    },
    /// This member is out of the view.
    #[error(
        "{member} is out of the view since {epoch} ({cause}); end this process, or join again as a spare"
    )]
    Evicted {
        /// This member.
        member: MemberId,
        /// The epoch that left it out.
        epoch: Epoch,
        /// Why.
        cause: String,
    },
}

/// Why a call was refused before anything was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The member is a spare without a seat.
    #[error("{member} has no seat yet; make the call inside a step, which begins when a seat is taken")]
    NotSeated {
        /// This member.
        member: MemberId,
    },
    /// No such communicator here.
    #[error("{comm} is not a communicator of this rank; use the handle that split() returned here")]
    UnknownComm {
        /// The communicator.
        comm: CommId,
    },
    /// The communicator cannot go on.
    #[error("{comm} is broken: {}", describe(cause))]
    Broken {
        /// The communicator.
        comm: CommId,
        /// Since what.
        cause: FailCause,
    },
    /// The member is out.
    #[error(
        "{member} is out of the view since {epoch} ({cause}); end this process, or join again as a spare"
    )]
    Evicted {
        /// This member.
        member: MemberId,
        /// The epoch that left it out.
        epoch: Epoch,
        /// Why.
        cause: String,
    },
    /// A seat is vacant, and the call cannot go without it.
    #[error(
        "{comm} has vacant seats, and {spec} needs every rank; call it on a communicator of the survivors (split)"
    )]
    Vacant {
        /// The communicator.
        comm: CommId,
        /// What was called.
        spec: Spec,
    },
    /// The id of a new communicator is taken by other ranks.
    #[error("{comm} is already a communicator of other ranks; split once more, the next one gets another id")]
    SplitClash {
        /// The id.
        comm: CommId,
    },
    /// The root is no rank of the communicator.
    #[error("root {root} is no rank of {comm}, which has {world_size}")]
    NoSuchRoot {
        /// The root asked for.
        root: Rank,
        /// The communicator.
        comm: CommId,
        /// Its ranks.
        world_size: u32,
    },
    /// The algorithm cannot do it.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// Steps are begun and committed in turn.
    #[error("{what} in epoch {epoch}: {next}")]
    StepOrder {
        /// What was called.
        what: &'static str,
        /// The epoch.
        epoch: Epoch,
        /// What to do.
        next: &'static str,
    },
    /// The state has another size than the survivors'.
    #[error(
        "the state regions here hold {here} bytes, the survivors' {there}; name the same regions at every rank"
    )]
    StateSize {
        /// Bytes named here.
        here: u64,
        /// Bytes named by the survivors.
        there: u64,
    },
}

fn names(losses: &[Loss]) -> String {
    let one = |l: &Loss| format!("{} ({}: {})", l.rank, l.member, l.cause);
    if losses.is_empty() {
        "nobody".to_owned()
    } else {
        losses.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// One clause that says what happened and what to do next.
#[must_use]
pub fn describe(cause: &FailCause) -> String {
    match cause {
        FailCause::RankLost { losses } => format!(
            "lost {}, and the policy is to give up; start the world again, or run with spares and policy replace",
            names(losses)
        ),
        FailCause::Unrecoverable { losses, why } => format!(
            "lost {}, more than is promised: {why}; restart from a checkpoint, or raise domains_lost_max",
            names(losses)
        ),
        FailCause::Mismatch { one, one_spec, two, two_spec } => {
            format!("{one} called {one_spec}, but {two} called {two_spec}; make every rank call the same ops in order")
        }
        FailCause::Expired { missing } if missing.is_empty() => {
            "no verdict within op_timeout although every rank had called it; raise the timeout or look for a slow rank"
                .to_owned()
        }
        FailCause::Expired { missing } => {
            let list = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("not called by {list} within op_timeout; find out what those ranks wait for")
        }
        FailCause::ShapeChanged { losses } => format!(
            "lost {}, and its shape depends on who takes part; call it again over the survivors",
            names(losses)
        ),
    }
}
