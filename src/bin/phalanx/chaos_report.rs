//! What a rank of `phalanx chaos` tells its parent: one line a report, `name key=value …`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use phalanx::Rank;

/// How a rank's run ended before the parent ended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The typed error that every rank gets under policy abort.
    Aborted,
    /// This process was put out of the view.
    Evicted,
    /// Any other error.
    Failed,
}

impl Ending {
    const ALL: &'static [Self] = &[Self::Aborted, Self::Evicted, Self::Failed];

    const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Evicted => "evicted",
            Self::Failed => "failed",
        }
    }
}

/// One report. `op` counts the ops of the run from 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// Every op up to `op` is checked; the median of those since the last report took `op_us`.
    Progress { rank: Rank, op: u64, op_us: u64 },
    /// An op whose epoch is not that of the op before, and the next one: when it was complete here (microseconds of the
    /// system's clock) and how long the caller took to make its input.
    Disturbed { rank: Rank, op: u64, epoch: u64, done_us: u64, fill_us: u64 },
    /// From `op` on the contributors are these.
    Contributors { rank: Rank, op: u64, ranks: Vec<Rank> },
    /// Elements of `op` that are not what they should be; the first one.
    Wrong { rank: Rank, op: u64, elements: u64, at: u64, is: u64, should: u64 },
    /// The run ended here in `op`.
    Ended { rank: Option<Rank>, op: u64, how: Ending, text: String },
}

/// Microseconds of the clock that all processes of a machine share.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

impl Report {
    /// The line of process `pid`, without its end.
    pub fn to_line(&self, pid: u32) -> String {
        let (fields, text) = self.fields();
        let text = text.map_or_else(String::new, |text| format!(" text={}", text.replace('\n', " ")));
        format!("{fields} pid={pid}{text}")
    }

    fn fields(&self) -> (String, Option<&str>) {
        let fields = match self {
            Self::Progress { rank, op, op_us } => format!("progress rank={} op={op} op_us={op_us}", rank.0),
            Self::Disturbed { rank, op, epoch, done_us, fill_us } => {
                format!("disturbed rank={} op={op} epoch={epoch} done_us={done_us} fill_us={fill_us}", rank.0)
            }
            Self::Contributors { rank, op, ranks } => {
                let list = ranks.iter().map(|r| r.0.to_string()).collect::<Vec<_>>().join(",");
                format!("contributors rank={} op={op} ranks={list}", rank.0)
            }
            Self::Wrong { rank, op, elements, at, is, should } => {
                let rank = rank.0;
                format!("wrong rank={rank} op={op} elements={elements} at={at} is={is} should={should}")
            }
            Self::Ended { rank, op, how, text } => {
                let rank = rank.map_or_else(|| "none".to_owned(), |r| r.0.to_string());
                return (format!("ended rank={rank} op={op} how={}", how.name()), Some(text));
            }
        };
        (fields, None)
    }

    /// Which process printed a line that is a report.
    pub fn pid_of(line: &str) -> Option<u32> {
        let (fields, _) = line.split_once(" text=").unwrap_or((line, ""));
        fields.split(' ').find_map(|field| field.strip_prefix("pid=")?.parse().ok())
    }

    /// A report, if the line is one.
    pub fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(' ')?;
        let (rest, text) = rest.split_once(" text=").unwrap_or((rest, ""));
        let fields: BTreeMap<&str, &str> = rest.split(' ').filter_map(|f| f.split_once('=')).collect();
        let number = |key: &str| fields.get(key)?.parse::<u64>().ok();
        let seat = || fields.get("rank")?.parse().ok().map(Rank);
        let op = number("op")?;
        Some(match name {
            "progress" => Self::Progress { rank: seat()?, op, op_us: number("op_us")? },
            "disturbed" => Self::Disturbed {
                rank: seat()?,
                op,
                epoch: number("epoch")?,
                done_us: number("done_us")?,
                fill_us: number("fill_us")?,
            },
            "contributors" => {
                let ranks = fields.get("ranks")?.split(',').map(|r| r.parse().map(Rank));
                Self::Contributors { rank: seat()?, op, ranks: ranks.collect::<Result<_, _>>().ok()? }
            }
            "wrong" => Self::Wrong {
                rank: seat()?,
                op,
                elements: number("elements")?,
                at: number("at")?,
                is: number("is")?,
                should: number("should")?,
            },
            "ended" => {
                let how = fields.get("how")?;
                let how = *Ending::ALL.iter().find(|e| e.name() == *how)?;
                Self::Ended { rank: seat(), op, how, text: text.to_owned() }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_survives_its_line() {
        let rank = Rank(3);
        let reports = [
            Report::Progress { rank, op: 7, op_us: 12 },
            Report::Disturbed { rank, op: 7, epoch: 2, done_us: u64::MAX, fill_us: 0 },
            Report::Contributors { rank, op: 9, ranks: vec![Rank(0), Rank(3)] },
            Report::Wrong { rank, op: 9, elements: 2, at: 5, is: 1, should: u64::MAX },
            Report::Ended { rank: None, op: 0, how: Ending::Evicted, text: "out: a = b pid=1".to_owned() },
            Report::Ended { rank: Some(rank), op: 1, how: Ending::Aborted, text: String::new() },
        ];
        for report in reports {
            let line = report.to_line(4711);
            assert_eq!((Report::parse(&line), Report::pid_of(&line)), (Some(report), Some(4711)), "{line}");
        }
        for line in ["", "progress", "progress rank=1", "hello op=1", "contributors rank=1 op=2 ranks=x"] {
            assert_eq!(Report::parse(line), None, "{line}");
        }
    }
}
