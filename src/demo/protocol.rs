//! What a training process tells the demo that started it: one line of text a report, on a pipe.
//!
//! A line is `PHX`, the kind of report, then `name=value` fields in a fixed order. Whatever else a process prints
//! (a panic, a log line) is no report and parses as `None`.

use std::fmt;
use std::str::FromStr;

use crate::core::ids::{MemberId, Rank, StepId};
use crate::demo::network::ParamsHash;

/// Declares the points of a recovery: variant, name on the wire, name on the screen.
macro_rules! milestones {
    ($($(#[$doc:meta])* $name:ident = $wire:literal $label:literal,)*) => {
        /// Points of a recovery, in the order in which they are passed.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Milestone { $($(#[$doc])* $name,)* }

        impl Milestone {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in a report.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }

            /// The name that people read.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

milestones! {
    /// Somebody has evidence that the rank is gone.
    Detected = "detected" "detected",
    /// No byte of the old epoch can land any more.
    Fenced = "fenced" "fenced",
    /// The coordinator has written the next view and the verdict of each op.
    Decided = "decided" "decided",
    /// The spare has the seat, and links to its peers.
    Reseated = "reseated" "reseated",
    /// The newcomer holds the training state of its seat.
    Transferred = "transferred" "state transferred",
    /// The newcomer has repeated the step up to the op that was in flight.
    Replayed = "replayed" "replayed",
    /// The op that was in flight is complete; training goes on.
    Resumed = "resumed" "resumed",
}

/// One line from a training process.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// The process waits as a spare.
    Spare {
        /// The process.
        member: MemberId,
    },
    /// The process has taken a seat and will compute `step` next.
    Seated {
        /// The seat.
        rank: Rank,
        /// The process.
        member: MemberId,
        /// The step it begins with.
        step: StepId,
    },
    /// The all-reduce of `step` is in flight here: a kill between this line and the next `Step` hits it.
    InFlight {
        /// The step.
        step: StepId,
        /// The seat.
        rank: Rank,
    },
    /// A step is complete.
    Step {
        /// The step.
        step: StepId,
        /// The seat.
        rank: Rank,
        /// Mean loss over this rank's shard, before the step.
        loss: f32,
    },
    /// This process saw a point of the recovery.
    Milestone {
        /// The point.
        milestone: Milestone,
        /// The seat.
        rank: Rank,
        /// When: microseconds on a clock that all processes of the machine share.
        at_us: u64,
    },
    /// A call returned an error to the training loop.
    Error {
        /// The seat.
        rank: Rank,
        /// The step.
        step: StepId,
        /// The error with its sources. One line: control characters become spaces.
        text: String,
    },
    /// Training is over.
    Done {
        /// The seat.
        rank: Rank,
        /// Steps that were made.
        steps: u64,
        /// Part of the held-out images read correctly, in `[0, 1]`.
        accuracy: f64,
        /// The parameters' hash.
        hash: ParamsHash,
        /// The longest time from the end of one step to the end of the next, in microseconds.
        stall_us: u64,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spare { member } => write!(f, "PHX spare member={}", member.0),
            Self::Seated { rank, member, step } => {
                write!(f, "PHX seated rank={} member={} step={}", rank.0, member.0, step.0)
            }
            Self::InFlight { step, rank } => write!(f, "PHX in_flight step={} rank={}", step.0, rank.0),
            Self::Step { step, rank, loss } => {
                write!(f, "PHX step step={} rank={} loss={loss}", step.0, rank.0)
            }
            Self::Milestone { milestone, rank, at_us } => {
                write!(f, "PHX milestone name={} rank={} at_us={at_us}", milestone.name(), rank.0)
            }
            Self::Error { rank, step, text } => {
                let text = text.replace(char::is_control, " ");
                write!(f, "PHX error rank={} step={} text={text}", rank.0, step.0)
            }
            Self::Done { rank, steps, accuracy, hash, stall_us } => write!(
                f,
                "PHX done rank={} steps={steps} accuracy={accuracy} hash={hash} stall_us={stall_us}",
                rank.0
            ),
        }
    }
}

impl Report {
    /// The report in `line` (with or without its line end); `None` when it is anything else.
    ///
    /// Strict: a line is a report only if the report prints as that line. A line cut short may read as another report
    /// (`loss=0.2` of `loss=0.25`); a process that writes each line with one call, shorter than the pipe's atomic
    /// write (4 KiB on Linux), never leaves one, even when it is killed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let (kind, rest) = line.strip_prefix("PHX ")?.split_once(' ')?;
        let mut fields = Fields(rest);
        let report = match kind {
            "spare" => Self::Spare { member: MemberId(fields.take("member")?) },
            "seated" => Self::Seated {
                rank: Rank(fields.take("rank")?),
                member: MemberId(fields.take("member")?),
                step: StepId(fields.take("step")?),
            },
            "in_flight" => {
                Self::InFlight { step: StepId(fields.take("step")?), rank: Rank(fields.take("rank")?) }
            }
            "step" => Self::Step {
                step: StepId(fields.take("step")?),
                rank: Rank(fields.take("rank")?),
                loss: fields.take("loss")?,
            },
            "milestone" => {
                let name: String = fields.take("name")?;
                Self::Milestone {
                    milestone: Milestone::ALL.iter().copied().find(|milestone| milestone.name() == name)?,
                    rank: Rank(fields.take("rank")?),
                    at_us: fields.take("at_us")?,
                }
            }
            "error" => Self::Error {
                rank: Rank(fields.take("rank")?),
                step: StepId(fields.take("step")?),
                text: fields.0.strip_prefix("text=")?.to_owned(),
            },
            "done" => Self::Done {
                rank: Rank(fields.take("rank")?),
                steps: fields.take("steps")?,
                accuracy: fields.take("accuracy")?,
                hash: fields.take("hash")?,
                stall_us: fields.take("stall_us")?,
            },
            _ => return None,
        };
        // Refuses what was left over, and every second spelling of a number, without a rule for each.
        (report.to_string() == line).then_some(report)
    }
}

/// The part of a line that is not read yet.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn take<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let (field, rest) = self.0.split_once(' ').unwrap_or((self.0, ""));
        let value = field.strip_prefix(name)?.strip_prefix('=')?;
        self.0 = rest;
        value.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_report() -> impl Strategy<Value = Report> {
        let ids = (any::<u32>(), any::<u64>(), any::<u64>())
            .prop_map(|(rank, member, step)| (Rank(rank), MemberId(member), StepId(step)));
        let finite = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite());
        let loss = any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite());
        (0..7, ids, finite, loss, any::<u64>(), 0..Milestone::ALL.len(), "\\PC*").prop_map(
            |(kind, (rank, member, step), accuracy, loss, number, milestone, text)| match kind {
                0 => Report::Spare { member },
                1 => Report::Seated { rank, member, step },
                2 => Report::InFlight { step, rank },
                3 => Report::Step { step, rank, loss },
                4 => Report::Milestone { milestone: Milestone::ALL[milestone], rank, at_us: number },
                5 => Report::Error { rank, step, text },
                _ => {
                    let hash = ParamsHash(number.rotate_left(17));
                    Report::Done { rank, steps: step.0, accuracy, hash, stall_us: number }
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(report in any_report()) {
            let line = report.to_string();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Report::parse(&line), Some(report.clone()));
            prop_assert_eq!(Report::parse(&format!("{line}\n")), Some(report));
        }

        #[test]
        fn garbage_is_no_report(line in "\\PC*", tail in "[ -~]*") {
            prop_assume!(!line.starts_with("PHX "));
            prop_assert_eq!(Report::parse(&line), None);
            let half_right = format!("PHX {tail}");
            if let Some(report) = Report::parse(&half_right) {
                prop_assert_eq!(report.to_string(), half_right);
            }
        }

        #[test]
        fn a_damaged_line_never_reads_as_the_same_report(
            report in any_report(), place in any::<prop::sample::Index>(), byte in b' '..=b'~',
        ) {
            let line = report.to_string();
            prop_assume!(line.is_ascii());
            let mut damaged = line.clone().into_bytes();
            damaged[place.index(line.len())] = byte;
            let damaged = String::from_utf8(damaged).unwrap();
            prop_assume!(damaged != line);
            prop_assert_ne!(Report::parse(&damaged), Some(report));
        }
    }

    #[test]
    fn lines_look_like_this() {
        let lines = [
            "PHX spare member=4",
            "PHX seated rank=2 member=4 step=131",
            "PHX in_flight step=130 rank=2",
            "PHX step step=130 rank=2 loss=0.2113",
            "PHX milestone name=transferred rank=2 at_us=81000",
            "PHX error rank=1 step=130 text=op7 interrupted on r1: a = b",
            "PHX done rank=0 steps=300 accuracy=0.9638 hash=00c0ffee00c0ffee stall_us=95000",
        ];
        for line in lines {
            assert_eq!(Report::parse(line).map(|report| report.to_string()).as_deref(), Some(line));
        }
        let Some(Report::Step { loss, .. }) = Report::parse("PHX step step=1 rank=0 loss=NaN") else {
            panic!("a diverged run still reports");
        };
        assert!(loss.is_nan());
    }

    #[test]
    fn near_misses_are_refused() {
        let lines = [
            "",
            "PHX",
            "PHX spare",
            "PHX spare member=",
            "PHX spare member=+4",
            "PHX spare member=04",
            "PHX spare member=4 ",
            "PHX spare  member=4",
            "phx spare member=4",
            " PHX spare member=4",
            "PHX spare member=4\n\n",
            "PHX spare member=18446744073709551616",
            "PHX seated member=4 rank=2 step=131",
            "PHX seated rank=2 member=4 step=131 more=1",
            "PHX step step=1 rank=0 loss=0.50",
            "PHX milestone name=done rank=2 at_us=1",
            "PHX error rank=1 step=130",
            "PHX error rank=1 step=130 text=two\tcells",
            "PHX done rank=0 steps=3 accuracy=1 hash=C0FFEE00C0FFEE00 stall_us=9",
            "PHX other rank=0",
        ];
        for line in lines {
            assert_eq!(Report::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn an_error_of_many_lines_stays_one_report() {
        let report =
            Report::Error { rank: Rank(1), step: StepId(2), text: "lost\nPHX spare member=9".to_owned() };
        assert_eq!(report.to_string(), "PHX error rank=1 step=2 text=lost PHX spare member=9");
    }
}
