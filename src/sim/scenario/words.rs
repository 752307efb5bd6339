//! A scenario, a fault, a trap as people would say it.

use phalanx_core::policy::Policy;

use super::{Aim, Fault, Moment, OddCall, Scenario, Trap, When};
use crate::sim::timeline::ms;

impl Scenario {
    /// The whole scenario in one line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let rules = &self.rules;
        let ops: Vec<usize> = (0..self.steps).map(|step| self.called(u64::from(step))).collect();
        let mut parts = vec![
            format!("seed {}: ranks {}, {} a host", self.seed, rules.world_size, self.ranks_per_host),
            format!("spares {}", self.spares),
            self.policy_in_words(),
            format!("domains that may be lost {}", rules.domains_lost_max),
            format!("ops by step {ops:?}"),
            format!("chunks of {} bytes, retained to {}", rules.chunk_bytes_max, rules.retain_bytes),
            format!("links take up to {} us", self.delay_us_max),
        ];
        let flags = [
            (self.asynchronous, "ops overlap"),
            (self.unretained, "some ops are not retained"),
            (self.slow_links.percent > 0, "some links are slower"),
            (self.think_us_max > 0, "programs compute between calls"),
            (self.pause_at.is_some(), "pauses come early"),
            (self.is_one_sided, "links are memory that the sender writes"),
            (self.drift_ppm_max > 0, "clocks differ"),
            (self.shares_hosts, "spares sit on the hosts of ranks"),
        ];
        parts.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, text)| (*text).to_owned()));
        if self.prelude > 0 {
            parts.push(format!("ops before the first step {}", self.before_steps().len()));
        }
        if !self.split.is_empty() {
            parts.push(format!("a second communicator of {} ranks", self.split.len()));
        }
        match self.odd {
            Some(OddCall::Other(rank)) => parts.push(format!("r{rank} calls another count")),
            Some(OddCall::Never(rank)) => parts.push(format!("r{rank} never calls an all-reduce")),
            None => {}
        }
        parts.extend(self.faults.iter().map(|(at, f)| format!("at {} ms {}", ms(*at), f.in_words(false))));
        if let Some((moment, rank)) = self.follow {
            parts.push(format!("{} r{rank} is killed", moment.in_words()));
        }
        if let Some((rank, results, count)) = self.after_release {
            parts.push(format!(
                "with result {results} of r{rank}: {}",
                Fault::KillRun(rank, count).in_words(false)
            ));
        }
        parts.extend(self.traps.iter().map(Trap::in_words));
        parts.extend(self.aims.iter().map(Aim::in_words));
        parts.join("; ")
    }

    fn policy_in_words(&self) -> String {
        let rules = &self.rules;
        match rules.policy {
            Policy::Replace => {
                format!("replace, within {} ms, else {}", rules.replace_within_ms, rules.fallback)
            }
            Policy::Shrink | Policy::Abort => rules.policy.to_string(),
        }
    }
}

impl Fault {
    /// What happens. In a trap ranks count from the one that sprang it.
    #[must_use]
    pub fn in_words(&self, is_counted: bool) -> String {
        let name = |rank: u32| if is_counted { format!("r+{rank}") } else { format!("r{rank}") };
        match *self {
            Self::KillRank(rank) => format!("{} is killed", name(rank)),
            Self::KillSpare(index) => format!("spare {index} is killed"),
            Self::KillHost(rank) if is_counted => format!("the host of {} is killed", name(rank)),
            Self::KillHost(host) => format!("host {host} is killed"),
            Self::Stop(rank) => format!("{} is stopped", name(rank)),
            Self::RestartCoordinator => "the coordinator dies and is started again".to_owned(),
            Self::KillRun(rank, 1) => format!("{} is killed", name(rank)),
            Self::KillRun(rank, count) => format!("{count} ranks from {} on are killed", name(rank)),
            Self::BreakLink(one, two) => format!("the links between {} and {} break", name(one), name(two)),
            Self::Cut(rank) => format!("{} loses its control connection", name(rank)),
            Self::KillHolder => "the lowest rank that holds what another lacks is killed".to_owned(),
            Self::KillNewcomer => "the lowest newcomer is killed".to_owned(),
            Self::Suspect(one, two) => {
                format!("{} takes its whole link with {} for broken", name(one), name(two))
            }
            Self::Flap(one, two) => {
                format!("the links between {} and {} break again and again", name(one), name(two))
            }
            Self::LinkDown(one, two, ms) => {
                format!("the links between {} and {} are down for {ms} ms", name(one), name(two))
            }
            Self::OneWay(one, two, ms) => {
                format!("what {} sends to {} stays under way for {ms} ms", name(one), name(two))
            }
            Self::Partition(first, count, ms) => {
                format!("{count} ranks from {} on are split off for {ms} ms", name(first))
            }
            Self::Mute(rank, ms) => format!("the coordinator does not hear {} for {ms} ms", name(rank)),
            Self::Deaf(rank, ms) => format!("{} does not hear the coordinator for {ms} ms", name(rank)),
            Self::Slow(rank, ms) => format!("{} is slow for {ms} ms", name(rank)),
            Self::LoseCoordinator => "the coordinator dies for good".to_owned(),
            Self::SlowStore(ms) => format!("the store takes {ms} ms for the next write"),
            Self::RefusingStore(true) => {
                "the store makes the next write and answers with an error".to_owned()
            }
            Self::RefusingStore(false) => "the store refuses the next write".to_owned(),
        }
    }
}

impl Aim {
    /// When it strikes, and what then happens.
    #[must_use]
    pub fn in_words(&self) -> String {
        let op = self.op.map_or_else(|| "no op".to_owned(), |op| op.to_string());
        let after = if self.skip > 0 { format!(", seen {} times before", self.skip) } else { String::new() };
        format!("in phase {:?} with {op} in flight{after}: {}", self.phase, self.fault.in_words(false))
    }
}

impl Trap {
    /// When it is sprung, and what then happens.
    #[must_use]
    pub fn in_words(&self) -> String {
        let when = match self.when {
            When::Result(results) => format!("gets result {results}"),
            When::Ahead => "gives back a buffer that another still lacks a part of".to_owned(),
            When::Midway => "has a part of an op".to_owned(),
        };
        let Self { epoch_min, after_us, fault, .. } = self;
        let after = if *after_us > 0 { format!("{after_us} us later ") } else { String::new() };
        format!("when a rank {when} in e{epoch_min} or later, {after}{}", fault.in_words(true))
    }
}

impl Moment {
    fn in_words(self) -> &'static str {
        match self {
            Self::Declared => "when a loss is declared",
            Self::Fenced => "when the fence is answered",
            Self::Decided => "when the view is decided",
            Self::StateHeld => "when a newcomer has the state",
            Self::Replayed => "when a newcomer has replayed",
        }
    }
}
