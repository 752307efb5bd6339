//! What can be left out of a drawn scenario.
//!
//! A smaller scenario is written as its seed and what is left out of the seed's draw, not as its fields: that is short
//! enough for a command line, and it stays true when a scenario gets fields that no seed of before draws. A fault, a
//! trap or an op keeps the number that the draw gave it, so that the order of a list of reductions means nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use phalanx_core::ids::Rank;

use super::scenario::{Aim, Fault, OddCall, Scenario, SlowLinks};

/// One thing that a scenario may have or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Looking at I4 now and then only. What looks after every event finds the same whatever else is left out.
    Sampling,
    /// The second death at a moment of a recovery.
    Follow,
    /// The deaths after a result.
    AfterRelease,
    /// The second communicator.
    Split,
    /// The wrong program.
    Odd,
    /// Ops that are not retained.
    Unretained,
    /// Unequal links.
    SlowLinks,
    /// Time between calls.
    Think,
    /// Ops before the first step.
    Prelude,
    /// Ops that overlap.
    Overlap,
    /// Waits for one op while others are open.
    Waits,
    /// Pauses that come early.
    Pause,
    /// Hosts of several ranks.
    Hosts,
    /// A promise for two lost domains.
    SecondLoss,
    /// Links that are memory.
    OneSided,
    /// Clocks that differ.
    Drift,
    /// Spares on the hosts of ranks.
    SharedHosts,
}

impl Part {
    /// Every part and its name.
    pub const ALL: [(Self, &str); 17] = [
        (Self::Sampling, "sampling"),
        (Self::Follow, "follow"),
        (Self::AfterRelease, "after_release"),
        (Self::Split, "split"),
        (Self::Odd, "odd"),
        (Self::Unretained, "unretained"),
        (Self::SlowLinks, "slow_links"),
        (Self::Think, "think"),
        (Self::Prelude, "prelude"),
        (Self::Overlap, "overlap"),
        (Self::Waits, "waits"),
        (Self::Pause, "pause"),
        (Self::Hosts, "hosts"),
        (Self::SecondLoss, "second_loss"),
        (Self::OneSided, "one_sided"),
        (Self::Drift, "drift"),
        (Self::SharedHosts, "shared_hosts"),
    ];

    fn leave_out(self, s: &mut Scenario) {
        match self {
            Self::Sampling => s.holders_every = 1,
            Self::Follow => s.follow = None,
            Self::AfterRelease => s.after_release = None,
            Self::Split => s.split.clear(),
            Self::Odd => s.odd = None,
            Self::Unretained => s.unretained = false,
            Self::SlowLinks => s.slow_links = SlowLinks::default(),
            Self::Think => s.think_us_max = 0,
            Self::Prelude => s.prelude = 0,
            Self::Overlap => (s.asynchronous, s.waits) = (false, false),
            Self::Waits => s.waits = false,
            Self::Pause => s.pause_at = None,
            Self::Hosts => s.ranks_per_host = 1,
            Self::SecondLoss => s.rules.domains_lost_max = 1,
            Self::OneSided => s.is_one_sided = false,
            Self::Drift => s.drift_ppm_max = 0,
            Self::SharedHosts => s.shares_hosts = false,
        }
    }
}

/// Something of which a scenario has so much.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Measure {
    /// Ranks of the world.
    Ranks,
    /// Spares at the start.
    Spares,
    /// Steps.
    Steps,
    /// Elements of an op.
    Count,
    /// Microseconds of a link's delay.
    Delay,
    /// Words of the state.
    State,
}

impl Measure {
    /// Every measure and its name.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Ranks, "ranks"),
        (Self::Spares, "spares"),
        (Self::Steps, "steps"),
        (Self::Count, "count"),
        (Self::Delay, "delay"),
        (Self::State, "state"),
    ];

    fn limit(self, s: &mut Scenario, most: u64) {
        let small = u32::try_from(most).unwrap_or(u32::MAX);
        match self {
            Self::Ranks => limit_ranks(s, small.max(1)),
            Self::Spares => s.spares = s.spares.min(small),
            Self::Steps => s.steps = s.steps.min(small.max(1)),
            Self::Count => (s.count_max, s.count_min) = (s.count_max.min(most), s.count_min.min(most)),
            Self::Delay => s.delay_us_max = s.delay_us_max.min(most),
            Self::State => s.state_words = s.state_words.min(small as usize),
        }
    }
}

/// One thing that is left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reduction {
    /// The fault with this place in the draw.
    Fault(usize),
    /// The trap with this place.
    Trap(usize),
    /// The aim with this place.
    Aim(usize),
    /// The op with this place in this step.
    Op(u64, usize),
    /// A part.
    Part(Part),
    /// What is above this.
    Above(Measure, u64),
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(index) => write!(f, "fault {index}"),
            Self::Trap(index) => write!(f, "trap {index}"),
            Self::Aim(index) => write!(f, "aim {index}"),
            Self::Op(step, index) => write!(f, "op {step}.{index}"),
            Self::Part(part) => {
                let name = Part::ALL.iter().find(|(p, _)| p == part).map_or("", |(_, name)| name);
                write!(f, "{name}")
            }
            Self::Above(measure, most) => {
                let name = Measure::ALL.iter().find(|(m, _)| m == measure).map_or("", |(_, name)| name);
                write!(f, "{name}>{most}")
            }
        }
    }
}

impl FromStr for Reduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let measures = Measure::ALL.map(|(_, name)| format!("{name}>N")).join(", ");
            let parts = Part::ALL.map(|(_, name)| name).join(", ");
            format!(
                "`{text}` cannot be left out; write one of: fault N, trap N, aim N, op STEP.N, {measures}, {parts}"
            )
        };
        if let Some((_, name)) = Part::ALL.iter().position(|(_, n)| *n == text).map(|i| (i, Part::ALL[i].0)) {
            return Ok(Self::Part(name));
        }
        if let Some((name, most)) = text.split_once('>') {
            let (measure, _) = Measure::ALL.iter().find(|(_, n)| *n == name).ok_or_else(wrong)?;
            return Ok(Self::Above(*measure, most.parse().map_err(|_| wrong())?));
        }
        let (kind, at) = text.split_once(' ').ok_or_else(wrong)?;
        let index = |at: &str| at.parse::<usize>().map_err(|_| wrong());
        match (kind, at.split_once('.')) {
            ("fault", None) => Ok(Self::Fault(index(at)?)),
            ("trap", None) => Ok(Self::Trap(index(at)?)),
            ("aim", None) => Ok(Self::Aim(index(at)?)),
            ("op", Some((step, op))) => Ok(Self::Op(step.parse().map_err(|_| wrong())?, index(op)?)),
            _ => Err(wrong()),
        }
    }
}

/// A set of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Reductions(BTreeSet<Reduction>);

impl Reductions {
    /// Whether nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With `more` left out too; of one measure the lower limit counts.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = Reduction>) -> Self {
        let mut all = self.0.clone();
        for reduction in more {
            if let Reduction::Above(measure, most) = reduction {
                let same = |r: &Reduction| matches!(r, Reduction::Above(m, _) if *m == measure);
                let lowest = all.iter().filter(|r| same(r)).map(|r| r.most()).min().unwrap_or(most).min(most);
                all.retain(|r| !same(r));
                all.insert(Reduction::Above(measure, lowest));
            } else {
                all.insert(reduction);
            }
        }
        Self(all)
    }

    /// Whether this is left out.
    #[must_use]
    pub fn has(&self, one: &Reduction) -> bool {
        self.0.contains(one)
    }

    /// What is left of a scenario.
    #[must_use]
    pub fn applied(&self, drawn: &Scenario) -> Scenario {
        let mut s = drawn.clone();
        let is_left = |r: Reduction| !self.0.contains(&r);
        let kept = |(k, fault): (usize, &_)| is_left(Reduction::Fault(k)).then_some(*fault);
        s.faults = drawn.faults.iter().enumerate().filter_map(kept).collect();
        let kept = |(k, trap): (usize, &_)| is_left(Reduction::Trap(k)).then_some(*trap);
        s.traps = drawn.traps.iter().enumerate().filter_map(kept).collect();
        let kept = |(k, aim): (usize, &_)| is_left(Reduction::Aim(k)).then_some(*aim);
        s.aims = drawn.aims.iter().enumerate().filter_map(kept).collect();
        for reduction in &self.0 {
            match *reduction {
                Reduction::Fault(_) | Reduction::Trap(_) | Reduction::Aim(_) => {}
                Reduction::Op(step, index) => {
                    s.left_out.insert((step, index));
                }
                Reduction::Part(part) => part.leave_out(&mut s),
                Reduction::Above(measure, most) => measure.limit(&mut s, most),
            }
        }
        if !self.is_empty() {
            keep_promise(&mut s);
        }
        s
    }
}

impl Reduction {
    fn most(self) -> u64 {
        match self {
            Self::Above(_, most) => most,
            Self::Fault(_) | Self::Trap(_) | Self::Aim(_) | Self::Op(..) | Self::Part(_) => u64::MAX,
        }
    }
}

impl fmt::Display for Reductions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(Reduction::to_string).collect();
        write!(f, "{}", all.join(", "))
    }
}

impl FromStr for Reductions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let all: Result<Vec<Reduction>, String> = words.map(str::parse).collect();
        Ok(Self::default().with(all?))
    }
}

/// Fewer ranks. What was to happen to one that is no more happens to another.
fn limit_ranks(s: &mut Scenario, most: u32) {
    if most >= s.rules.world_size {
        return;
    }
    s.rules.world_size = most;
    let faults = std::mem::take(&mut s.faults);
    let still = |(at, fault)| {
        // A host is counted by its first rank.
        let by_rank = if let Fault::KillHost(host) = fault {
            Fault::KillHost(host.saturating_mul(s.ranks_per_host) % most)
        } else {
            fault
        };
        (at, s.counted_from(by_rank, Rank(0)))
    };
    let aims = s.aims.iter().map(|aim| Aim { fault: still((0, aim.fault)).1, ..*aim }).collect();
    (s.faults, s.aims) = (faults.into_iter().map(still).collect(), aims);
    s.follow = s.follow.map(|(moment, rank)| (moment, rank % most));
    s.after_release = s.after_release.map(|(rank, results, count)| (rank % most, results, count));
    s.odd = s.odd.map(|odd| match odd {
        OddCall::Other(rank) => OddCall::Other(rank % most),
        OddCall::Never(rank) => OddCall::Never(rank % most),
    });
    s.split.retain(|rank| rank.0 < most);
}

/// What every draw keeps to: more hosts than may be lost, also among the ranks of the second communicator, which are
/// more than half of the world's.
fn keep_promise(s: &mut Scenario) {
    let n = s.rules.world_size;
    if n.div_ceil(s.ranks_per_host) <= s.rules.domains_lost_max {
        s.ranks_per_host = 1;
    }
    s.rules.domains_lost_max = s.rules.domains_lost_max.min(n.saturating_sub(1)).max(1);
    let hosts: BTreeSet<u32> = s.split.iter().map(|k| k.0 / s.ranks_per_host).collect();
    if hosts.len() <= s.rules.domains_lost_max as usize || s.split.len() as u32 <= n / 2 {
        s.split.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_read_as_it_is_printed() {
        let text = "fault 2, trap 0, op 1.3, split, waits, ranks>3, count>17";
        let read: Reductions = text.parse().unwrap();
        assert_eq!(read.to_string(), text);
        let twice: Reductions = "ranks>3, split, ranks>5".parse().unwrap();
        assert_eq!(twice.to_string(), "split, ranks>3", "the lower limit counts");
        for wrong in ["fault", "fault x", "op 3", "ranks>", "node>3", "nothing"] {
            let said = wrong.parse::<Reductions>().unwrap_err();
            assert!(said.starts_with(&format!("`{wrong}`")) && said.contains("op STEP.N"), "{said}");
        }
    }

    #[test]
    fn a_smaller_scenario_keeps_what_every_draw_keeps_to() {
        let mut smaller = 0;
        for seed in (0..400).chain(300_000_000..300_000_400) {
            let drawn = Scenario::with_breaks(seed);
            assert_eq!(format!("{:?}", Reductions::default().applied(&drawn)), format!("{drawn:?}"));
            for most in 1..drawn.rules.world_size {
                let s = Reductions::default()
                    .with([Reduction::Above(Measure::Ranks, u64::from(most))])
                    .applied(&drawn);
                assert_eq!(s.rules.world_size, most);
                assert!(
                    most == 1 || s.rules.domains_lost_max < most.div_ceil(s.ranks_per_host),
                    "seed {seed}"
                );
                assert!(s.split.is_empty() || s.split.len() as u32 > most / 2, "seed {seed}");
                assert!(s.split.iter().all(|rank| rank.0 < most), "seed {seed}");
                assert_eq!(s.faults.len(), drawn.faults.len());
                smaller += 1;
            }
        }
        assert!(smaller > 1_000, "{smaller}");
    }

    #[test]
    fn an_op_that_is_left_out_leaves_the_others_as_they_are() {
        let drawn = Scenario::draw(300_000_003);
        let all = drawn.program(0, Rank(0));
        let first = all[0].0;
        let left = Reductions::default().with([Reduction::Op(0, first)]).applied(&drawn);
        let rest: Vec<String> = all[1..].iter().map(|o| format!("{o:?}")).collect();
        let still: Vec<String> = left.program(0, Rank(0)).iter().map(|o| format!("{o:?}")).collect();
        let sorted = |mut v: Vec<String>| {
            v.sort();
            v
        };
        assert_eq!(sorted(still), sorted(rest));
        assert_eq!(left.called(0) + 1, drawn.called(0));
    }
}
