//! Options that several commands share, and how they become a world.

use std::ffi::OsString;
use std::time::Duration;

use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{Domain, WorldSpec};

use crate::options::{Options, Takes};

/// Options of every command that starts a world.
pub const OPTIONS: &[crate::options::Option_] = &[
    ("ranks", Takes::Value, "ranks of the world (4)"),
    ("n", Takes::Value, "the same as --ranks"),
    ("spares", Takes::Value, "spares that stand by (1 with policy replace, else 0)"),
    ("policy", Takes::Value, "replace, shrink or abort (replace if there are spares)"),
    ("fallback", Takes::Value, "what replace turns into when no spare comes: shrink or abort (abort)"),
    ("replace-within-ms", Takes::Value, "how long a vacant seat waits for a spare (60000)"),
    ("op-timeout-ms", Takes::Value, "an op without a verdict for so long is ended for all (600000)"),
    ("lease-ms", Takes::Value, "a member without a word for so long is out (5000)"),
    ("domains-lost-max", Takes::Value, "failure domains that may be lost at once (1)"),
    ("domain", Takes::Value, "what dies together: rank or host (rank)"),
    ("transport", Takes::Value, "shm or tcp (shm inside a host, tcp between)"),
    ("no-respawn", Takes::Flag, "do not start a new spare when a rank dies"),
];

/// `OPTIONS` and those of one command.
pub fn with(own: &[crate::options::Option_]) -> Vec<crate::options::Option_> {
    own.iter().chain(OPTIONS).copied().collect()
}

/// What the shared options say.
pub fn spec(options: &Options, command: Vec<OsString>) -> Result<WorldSpec, String> {
    let ranks: u32 = match options.text("n") {
        Some(_) => options.get("n", 4)?,
        None => options.get("ranks", 4)?,
    };
    if ranks == 0 {
        return Err("--ranks 0: a world needs at least one rank".to_owned());
    }
    let policy = match options.text("policy") {
        Some(_) => options.get("policy", Policy::Replace)?,
        None if options.get("spares", 1u32)? > 0 => Policy::Replace,
        None => Policy::Abort,
    };
    let mut rules = Rules::new(ranks, policy);
    rules.fallback = options.get("fallback", rules.fallback)?;
    rules.replace_within_ms = options.get("replace-within-ms", rules.replace_within_ms)?;
    rules.op_timeout_ms = options.get("op-timeout-ms", rules.op_timeout_ms)?;
    rules.lease_ms = options.get("lease-ms", rules.lease_ms)?;
    rules.domains_lost_max = options.get("domains-lost-max", rules.domains_lost_max)?;
    let mut spec = WorldSpec::new(ranks, rules, command);
    spec.spares = options.get("spares", u32::from(policy == Policy::Replace))?;
    spec.respawn = policy == Policy::Replace && !options.has("no-respawn");
    spec.domain = match options.text("domain").unwrap_or("rank") {
        "rank" => Domain::Rank,
        "host" => Domain::Host,
        other => return Err(format!("--domain {other}: use rank or host")),
    };
    spec.transport = match options.text("transport") {
        None | Some("auto") => None,
        Some(name @ ("shm" | "tcp")) => Some(name.to_owned()),
        Some(other) => return Err(format!("--transport {other}: use shm, tcp or auto")),
    };
    Ok(spec)
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
