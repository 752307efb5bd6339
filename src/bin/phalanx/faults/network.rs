//! Hosts in network namespaces of their own, joined by a bridge, and what is done to their links: by the kernel's own
//! means alone, with `ip`, `nft` and `tc`.

use std::collections::BTreeSet;
use std::process::Command;

/// Packets of a hundred that a lossy link drops.
const LOST_PERCENT: u32 = 20;
/// Packets of a hundred that go the slow way where packets overtake one another.
const SLOW_PERCENT: u32 = 25;
/// A queue that a link's packets wait in, where the kernel has no netem: so slow that the ops of a run fill it.
const QUEUE: &[&str] = &["root", "tbf", "rate", "40mbit", "burst", "8kb", "latency", "100ms"];
/// The same with netem.
const NETEM_DELAY: &[&str] = &["root", "netem", "delay", "20ms", "10ms"];
const NETEM_REORDER: &[&str] = &["root", "netem", "delay", "10ms", "reorder", "75%", "50%"];
/// The classes of a link on which packets overtake one another without netem: most go at once, some wait.
const CLASSES: &[(&str, &[&str])] = &[
    ("qdisc", &["root", "handle", "1:", "htb", "default", "10"]),
    ("class", &["parent", "1:", "classid", "1:10", "htb", "rate", "4gbit", "burst", "64kb"]),
    ("class", &["parent", "1:", "classid", "1:20", "htb", "rate", "20mbit", "burst", "2kb", "cburst", "2kb"]),
];

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the host to the others.
    Out,
    /// To the host.
    In,
}

/// Runs a program that must succeed.
pub fn run(words: &[&str]) -> Result<String, String> {
    let [program, arguments @ ..] = words else { return Err("nothing to run".to_owned()) };
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.map_err(|e| format!("`{program}` cannot be run: {e}"))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&ran.stderr).trim()))
}

fn ip(words: &[&str]) -> Result<String, String> {
    run(&[&["ip"], words].concat())
}

/// Namespaces of this machine whose names begin with `prefix`.
pub fn namespaces(prefix: &str) -> BTreeSet<String> {
    let list = ip(&["netns", "list"]).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Hosts joined by a bridge; gone when dropped.
pub struct Network {
    prefix: String,
    hosts: usize,
    /// Whether the kernel can hold packets back for a time.
    has_netem: bool,
}

impl Network {
    /// Makes `hosts` of them. The error says what is missing.
    pub fn make(hosts: usize) -> Result<Self, String> {
        let mut network = Self { prefix: format!("phx-{}", std::process::id()), hosts, has_netem: false };
        let hub = network.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for host in 0..hosts {
            let (name, port) = (network.host(host), port(host));
            ip(&["netns", "add", &name])?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth", "netns", &name])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "bridge"])?;
            ip(&["-n", &hub, "link", "set", &port, "up"])?;
            ip(&["-n", &name, "address", "add", &format!("{}/24", network.address(host)), "dev", "eth"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth", "up"])?;
        }
        network.has_netem = network.tc(&hub, "qdisc", "add", &port(0), NETEM_DELAY).is_ok();
        if network.has_netem {
            network.tc(&hub, "qdisc", "del", &port(0), &["root"])?;
        }
        Ok(network)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// The namespace of a host.
    pub fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> String {
        format!("10.231.9.{}", host + 1)
    }

    /// What the names of all namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Takes a host's link down or up.
    pub fn link(&self, host: usize, state: &str) -> Result<(), String> {
        ip(&["-n", &self.host(host), "link", "set", "eth", state]).map(drop)
    }

    /// Drops every packet that goes this way.
    pub fn silence(&self, host: usize, way: Way) -> Result<(), String> {
        self.filter(host, way, "counter drop")
    }

    /// Drops some packets, both ways.
    pub fn lose(&self, host: usize) -> Result<(), String> {
        let rule = format!("numgen random mod 100 < {LOST_PERCENT} counter drop");
        self.filter(host, Way::Out, &rule)?;
        self.filter(host, Way::In, &rule)
    }

    /// Holds packets back, both ways.
    pub fn delay(&self, host: usize) -> Result<(), String> {
        let queue = if self.has_netem { NETEM_DELAY } else { QUEUE };
        self.tc(&self.host(host), "qdisc", "add", "eth", queue)?;
        self.tc(&self.hub(), "qdisc", "add", &port(host), queue)
    }

    /// Lets packets of the host overtake one another.
    pub fn reorder(&self, host: usize) -> Result<(), String> {
        let name = self.host(host);
        if self.has_netem {
            return self.tc(&name, "qdisc", "add", "eth", NETEM_REORDER);
        }
        for (what, words) in CLASSES {
            self.tc(&name, what, "add", "eth", words)?;
        }
        let chain = "add chain inet chaos slow { type filter hook output priority 0; }";
        let rule = format!(
            "add rule inet chaos slow numgen random mod 100 < {SLOW_PERCENT} counter meta priority set 1:20"
        );
        self.nft(&name, &format!("add table inet chaos; {chain}; {rule}"))
    }

    /// Packets that met what is done to the host's link.
    pub fn packets_hit(&self, host: usize) -> Result<u64, String> {
        let mut hit = 0;
        for (space, device) in self.ends(host) {
            let rules = run(&["ip", "netns", "exec", &space, "nft", "list", "ruleset"]).unwrap_or_default();
            hit += numbers_behind(&rules, "counter packets ");
            let queue = run(&["ip", "netns", "exec", &space, "tc", "-s", "qdisc", "show", "dev", &device])?;
            if is_slow(&queue) {
                hit += numbers_behind(&queue, "bytes ");
            }
        }
        Ok(hit)
    }

    /// The hub's end and the host's end of its link: where, and which device.
    fn ends(&self, host: usize) -> [(String, String); 2] {
        [(self.hub(), port(host)), (self.host(host), "eth".to_owned())]
    }

    /// Ends all that was done to the host's link.
    pub fn heal(&self, host: usize) -> Result<(), String> {
        self.link(host, "up")?;
        for (space, device) in self.ends(host) {
            // Where nothing was done there is nothing to end; that there is none is looked at below.
            let _ = self.nft(&space, "flush ruleset");
            let _ = self.tc(&space, "qdisc", "del", &device, &["root"]);
            let left = run(&["ip", "netns", "exec", &space, "tc", "qdisc", "show", "dev", &device])?;
            if is_slow(&left) {
                return Err(format!("the link of host {host} is still slow: {left}"));
            }
        }
        Ok(())
    }

    /// A rule for packets that arrive: at the host, or from it at the hub.
    fn filter(&self, host: usize, way: Way, rule: &str) -> Result<(), String> {
        let (space, device) = match way {
            Way::In => (self.host(host), "eth".to_owned()),
            Way::Out => (self.hub(), port(host)),
        };
        let chain = format!(
            "add chain netdev chaos {device} {{ type filter hook ingress device \"{device}\" priority 0; }}"
        );
        self.nft(&space, &format!("add table netdev chaos; {chain}; add rule netdev chaos {device} {rule}"))
    }

    fn nft(&self, space: &str, script: &str) -> Result<(), String> {
        run(&["ip", "netns", "exec", space, "nft", script]).map(drop)
    }

    fn tc(&self, space: &str, what: &str, verb: &str, device: &str, rest: &[&str]) -> Result<(), String> {
        let words = ["ip", "netns", "exec", space, "tc", what, verb, "dev", device];
        run(&[&words, rest].concat()).map(drop)
    }

    /// What makes packets late.
    pub fn queues(&self) -> &'static str {
        if self.has_netem { "netem" } else { "tbf, htb" }
    }
}

/// Whether a queue that holds packets back is among these.
fn is_slow(queues: &str) -> bool {
    ["netem", "tbf", "htb"].iter().any(|kind| queues.contains(kind))
}

/// The sum of the numbers behind each `word`.
fn numbers_behind(text: &str, word: &str) -> u64 {
    let numbers =
        text.split(word).skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    numbers.sum()
}

fn port(host: usize) -> String {
    format!("h{host}")
}

impl Drop for Network {
    fn drop(&mut self) {
        // One that was never made is no loss; one that is left is found by whoever looks for leaks.
        for name in (0..self.hosts).map(|host| self.host(host)).chain([self.hub()]) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}
