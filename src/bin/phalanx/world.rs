//! Options that several commands share, and how they become a world.

use std::ffi::OsString;
use std::time::Duration;

use phalanx::config::{self, TransportChoice};
use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{Domain, WorldSpec};

use crate::options::{Option_, Options, Takes};

/// What everybody in a world agrees on.
pub const RULES: &[Option_] = &[
    ("ranks", Takes::Value, "ranks of the world (4)"),
    ("n", Takes::Value, "the same as --ranks"),
    ("policy", Takes::Value, "replace, shrink or abort (replace if there are spares)"),
    ("fallback", Takes::Value, "what replace turns into when no spare comes: shrink or abort (abort)"),
    ("replace-within-ms", Takes::Value, "how long a vacant seat waits for a spare (60000)"),
    ("op-timeout-ms", Takes::Value, "an op without a verdict for so long is ended for all (600000)"),
    ("lease-ms", Takes::Value, "a member without a word for so long is out (5000)"),
    ("domains-lost-max", Takes::Value, "failure domains that may be lost at once (1)"),
];

/// How ranks and spares are started.
pub const START: &[Option_] = &[
    ("spares", Takes::Value, "spares that stand by (1 with policy replace, else 0)"),
    ("domain", Takes::Value, "what dies together: rank or host (rank)"),
    ("transport", Takes::Value, "shm or tcp (shm inside a host, tcp between)"),
    ("no-respawn", Takes::Flag, "do not start a new spare when a rank dies"),
];

/// The options of a command that starts a world, behind its own.
pub fn with(own: &[Option_]) -> Vec<Option_> {
    own.iter().chain(RULES).chain(START).copied().collect()
}

/// What the shared options say.
pub fn spec(options: &Options, command: Vec<OsString>) -> Result<WorldSpec, String> {
    let policy = if options.get("spares", 1u32)? > 0 { Policy::Replace } else { Policy::Abort };
    let rules = rules(options, Rules::new(4, policy))?;
    let policy = rules.policy;
    let mut spec = WorldSpec::new(rules.world_size, rules, command);
    spec.spares = options.get("spares", u32::from(policy == Policy::Replace))?;
    spec.respawn = policy == Policy::Replace && !options.has("no-respawn");
    spec.domain = domain(options)?;
    spec.transport = transport(options)?.map(|choice| choice.name().to_owned());
    spec.stops_on_interrupt = true;
    Ok(spec)
}

/// What the options say about the rules, over `base`.
pub fn rules(options: &Options, base: Rules) -> Result<Rules, String> {
    let mut rules = base;
    rules.world_size = options.get(if options.has("n") { "n" } else { "ranks" }, rules.world_size)?;
    if rules.world_size == 0 {
        return Err("--ranks 0: a world needs at least one rank".to_owned());
    }
    rules.policy = options.get("policy", rules.policy)?;
    rules.fallback = options.get("fallback", rules.fallback)?;
    rules.replace_within_ms = options.get("replace-within-ms", rules.replace_within_ms)?;
    rules.op_timeout_ms = options.get("op-timeout-ms", rules.op_timeout_ms)?;
    rules.lease_ms = options.get("lease-ms", rules.lease_ms)?;
    rules.domains_lost_max = options.get("domains-lost-max", rules.domains_lost_max)?;
    Ok(rules)
}

/// What dies together.
pub fn domain(options: &Options) -> Result<Domain, String> {
    match options.text("domain").unwrap_or("rank") {
        "rank" => Ok(Domain::Rank),
        "host" => Ok(Domain::Host),
        other => Err(format!("--domain {other}: use rank or host")),
    }
}

/// The transport of all links; `None`: not said, the environment may.
pub fn transport(options: &Options) -> Result<Option<TransportChoice>, String> {
    let Some(text) = options.text("transport") else { return Ok(None) };
    text.parse().map(Some).map_err(|_: String| format!("--transport {text}: use shm, tcp or auto"))
}

/// The transport between ranks that are started here: the option, else the variable that they inherit, else shared
/// memory.
pub fn transport_here(options: &Options) -> Result<TransportChoice, String> {
    config::transport_here(transport(options)?).map_err(|e| e.to_string())
}

/// This program with other arguments: how a command starts its own ranks.
pub fn own_command(args: &[&str]) -> Result<Vec<OsString>, String> {
    let me = std::env::current_exe().map_err(|e| format!("cannot find this program's own file: {e}"))?;
    Ok(std::iter::once(me.into_os_string()).chain(args.iter().map(OsString::from)).collect())
}

/// Milliseconds with two digits after the point.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}
