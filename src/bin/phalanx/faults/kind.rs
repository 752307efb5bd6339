//! The faults by name, and the world each is done to.

use std::str::FromStr;

use phalanx::config::TransportChoice;
use phalanx::core::policy::Policy;

use super::world::{Plan, Share, Store};

/// A lease that a fault must outlast, in milliseconds: short, or a run would take long.
const LEASE_OUTLASTED_MS: u64 = 800;
/// A lease that no fault outlasts.
const LEASE_KEPT_MS: u64 = 4000;
/// An op without a verdict for so long is ended for all.
const OP_TIMEOUT_MS: u64 = 15_000;
/// Sizes of an all-reduce, from one that is over in a moment to one that is always in flight.
const BYTES: &[u64] = &[1 << 10, 1 << 16, 1 << 20];

/// What is done to a running world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Kill,
    HostKill,
    Stop,
    Pause,
    LinkDown,
    LinkFlap,
    OneWay,
    Loss,
    Delay,
    Reorder,
    CoordinatorRestart,
    DiskFull,
    NoDescriptors,
    NoMemory,
}

impl Fault {
    pub const ALL: &'static [Self] = &[
        Self::Kill,
        Self::HostKill,
        Self::Stop,
        Self::Pause,
        Self::LinkDown,
        Self::LinkFlap,
        Self::OneWay,
        Self::Loss,
        Self::Delay,
        Self::Reorder,
        Self::CoordinatorRestart,
        Self::DiskFull,
        Self::NoDescriptors,
        Self::NoMemory,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::HostKill => "host-kill",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::LinkDown => "link-down",
            Self::LinkFlap => "link-flap",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Reorder => "reorder",
            Self::CoordinatorRestart => "coordinator-restart",
            Self::DiskFull => "disk-full",
            Self::NoDescriptors => "no-descriptors",
            Self::NoMemory => "no-memory",
        }
    }

    /// Hosts with ranks, each in a network namespace of its own; 0: all ranks are here, in no namespace.
    pub const fn hosts(self) -> usize {
        match self {
            Self::HostKill => 4,
            Self::LinkDown | Self::LinkFlap | Self::OneWay | Self::Loss | Self::Delay | Self::Reorder => 2,
            Self::Kill
            | Self::Stop
            | Self::Pause
            | Self::CoordinatorRestart
            | Self::DiskFull
            | Self::NoDescriptors
            | Self::NoMemory => 0,
        }
    }

    pub const fn ranks(self) -> u32 {
        match self.hosts() {
            0 => 4,
            hosts => 2 * hosts as u32,
        }
    }

    /// What it is done with, besides the right to do it.
    pub const fn tools(self) -> &'static [&'static str] {
        match self {
            Self::OneWay | Self::Loss => &["ip", "nft"],
            Self::Delay | Self::Reorder => &["ip", "nft", "tc"],
            Self::HostKill | Self::LinkDown | Self::LinkFlap => &["ip"],
            Self::DiskFull => &["mount", "umount"],
            Self::Kill
            | Self::Stop
            | Self::Pause
            | Self::CoordinatorRestart
            | Self::NoDescriptors
            | Self::NoMemory => &[],
        }
    }

    pub const fn lease_ms(self) -> u64 {
        match self {
            Self::Stop | Self::LinkDown | Self::OneWay => LEASE_OUTLASTED_MS,
            Self::Kill
            | Self::HostKill
            | Self::Pause
            | Self::LinkFlap
            | Self::Loss
            | Self::Delay
            | Self::Reorder
            | Self::CoordinatorRestart
            | Self::DiskFull
            | Self::NoDescriptors
            | Self::NoMemory => LEASE_KEPT_MS,
        }
    }

    const fn store(self) -> Store {
        match self {
            Self::CoordinatorRestart => Store::Folder,
            Self::DiskFull => Store::Small,
            Self::Kill
            | Self::HostKill
            | Self::Stop
            | Self::Pause
            | Self::LinkDown
            | Self::LinkFlap
            | Self::OneWay
            | Self::Loss
            | Self::Delay
            | Self::Reorder
            | Self::NoDescriptors
            | Self::NoMemory => Store::Memory,
        }
    }

    /// Domains that may be lost at once. A rank that gets no memory may be lost besides the one that is killed.
    const fn domains_lost_max(self) -> u32 {
        match self {
            Self::NoDescriptors | Self::NoMemory => 2,
            Self::Kill
            | Self::HostKill
            | Self::Stop
            | Self::Pause
            | Self::LinkDown
            | Self::LinkFlap
            | Self::OneWay
            | Self::Loss
            | Self::Delay
            | Self::Reorder
            | Self::CoordinatorRestart
            | Self::DiskFull => 1,
        }
    }

    /// Bytes of an all-reduce in the run of this number. A slow link gets no large ones.
    pub const fn bytes(self, number: u64) -> u64 {
        let sizes = match self {
            Self::Delay | Self::Loss => BYTES.len() as u64 - 1,
            Self::Kill
            | Self::HostKill
            | Self::Stop
            | Self::Pause
            | Self::LinkDown
            | Self::LinkFlap
            | Self::OneWay
            | Self::Reorder
            | Self::CoordinatorRestart
            | Self::DiskFull
            | Self::NoDescriptors
            | Self::NoMemory => BYTES.len() as u64,
        };
        BYTES[(number % sizes) as usize]
    }

    /// The world for a run: coordinator and spares are on the last host, which nothing is done to.
    pub fn plan(self, policy: Policy, transport: TransportChoice, bytes: u64, seed: u64) -> Plan {
        let (hosts, ranks) = (self.hosts(), self.ranks());
        let spares = match (policy, hosts) {
            (Policy::Shrink | Policy::Abort, _) => 0,
            (Policy::Replace, 0) => self.domains_lost_max(),
            (Policy::Replace, _) => 2,
        };
        let mut shares: Vec<Share> = match hosts {
            0 => vec![Share { ranks, rank_from: 0, spares }],
            _ => (0..hosts as u32).map(|host| Share { ranks: 2, rank_from: 2 * host, spares: 0 }).collect(),
        };
        if hosts > 0 && spares > 0 {
            shares.push(Share { ranks: 0, rank_from: 0, spares });
        }
        let text = |words: &[(&str, String)]| {
            words.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]).collect::<Vec<_>>()
        };
        let rules = text(&[
            ("ranks", ranks.to_string()),
            ("policy", policy.name().to_owned()),
            ("lease-ms", self.lease_ms().to_string()),
            ("op-timeout-ms", OP_TIMEOUT_MS.to_string()),
            ("domains-lost-max", self.domains_lost_max().to_string()),
        ]);
        // Hosts share no memory: there, shared memory is what the ranks of one host have.
        let carried = match (transport, hosts) {
            (TransportChoice::Tcp, _) => TransportChoice::Tcp,
            (TransportChoice::Auto | TransportChoice::Shm, 0) => TransportChoice::Shm,
            (TransportChoice::Auto | TransportChoice::Shm, _) => TransportChoice::Auto,
        };
        let domain = if hosts == 0 { "rank" } else { "host" };
        let start = text(&[("domain", domain.to_owned()), ("transport", carried.name().to_owned())]);
        let mut rank = text(&[("bytes", bytes.to_string()), ("seed", seed.to_string())]);
        if policy == Policy::Replace {
            rank.push("--steps".to_owned());
        }
        Plan { shares, leads: hosts, rules, start, rank, store: self.store() }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", ");
        let fault = Self::ALL.iter().copied().find(|fault| fault.name() == text);
        fault.ok_or_else(|| format!("`{text}` is no fault; use all, or some of: {}", known()))
    }
}
