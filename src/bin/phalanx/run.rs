//! `phalanx run`: starts a program as ranks and spares, as a world of its own or as this host's share of one.

use std::ffi::OsString;

use phalanx::config;
use phalanx::core::policy::{Policy, Rules};
use phalanx::launch::{self, ShareSpec, WorldSpec};

use crate::options::{self, Option_, Options, Takes};
use crate::{tied, world};

const USAGE: &str = "\
phalanx run -n N [--spares M] [OPTIONS] -- CMD [ARG ...]
       PHALANX_JOB_KEY=... phalanx run --coordinator HOST:PORT -n N [--rank-from R] [--spares M] [OPTIONS] -- CMD ...";

const OPTIONS: &[Option_] = &[
    (
        "coordinator",
        Takes::Value,
        "join the world of this `phalanx coordinator`; -n counts the ranks of this host",
    ),
    ("rank-from", Takes::Value, "with --coordinator: the first rank of this host (0)"),
];

/// Runs the command; the exit code is the first failing rank's.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let known = world::with(OPTIONS);
    let Some(options) = options::parse_with_command(USAGE, &known, args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` stands before `--`; usage: {USAGE}"));
    }
    if options.rest.is_empty() {
        return Err(format!("no command after `--`; usage: {USAGE}"));
    }
    if options.has("coordinator") {
        let (spec, share) = share(&options)?;
        return Ok(launch::run_share(spec, share));
    }
    if options.has("rank-from") {
        return Err(
            "--rank-from says where this host's ranks begin; it needs --coordinator HOST:PORT".to_owned()
        );
    }
    let mut spec = world::spec(&options, tied::command(&options.rest)?)?;
    // Nobody asked for spares: a command that joins nothing gets none.
    spec.spares_once_formed = !options.has("spares");
    Ok(launch::run_command(spec, |event, at_ms| tracing::info!(at_ms, ?event, "world")))
}

/// What is to be started here, and whose world it joins.
fn share(options: &Options) -> Result<(WorldSpec, ShareSpec), String> {
    let coordinator = options.text("coordinator").unwrap_or_default().to_owned();
    let has_port =
        |(host, port): (&str, &str)| !host.is_empty() && port.parse().is_ok_and(|port: u16| port > 0);
    if !coordinator.rsplit_once(':').is_some_and(has_port) {
        return Err(format!(
            "--coordinator {coordinator}: write HOST:PORT, as `phalanx coordinator` prints it"
        ));
    }
    let count = if options.has("n") { "n" } else { "ranks" };
    if !options.has(count) {
        return Err(
            "--coordinator: say with -n how many ranks of the world this host starts (0: only spares)".into(),
        );
    }
    let others = world::RULES.iter().map(|(name, ..)| *name).filter(|name| !matches!(*name, "n" | "ranks"));
    if let Some(name) = others.into_iter().find(|name| options.has(name)) {
        return Err(format!("--{name} is the same for the whole world: give it to `phalanx coordinator`"));
    }
    let key = config::job_key().map_err(|e| e.to_string())?.ok_or(
        "PHALANX_JOB_KEY is not set: set it to the key of the coordinator's world, which `phalanx coordinator` prints \
         if it was started without one",
    )?;
    let ranks = options.get(count, 0)?;
    // Policy and all else is what the coordinator says.
    let mut spec = WorldSpec::new(ranks, Rules::new(ranks, Policy::Replace), tied::command(&options.rest)?);
    spec.rank_from = options.get("rank-from", 0)?;
    spec.spares = options.get("spares", 0)?;
    spec.respawn = !options.has("no-respawn");
    spec.domain = world::domain(options)?;
    spec.transport = world::transport(options)?.map(|choice| choice.name().to_owned());
    if spec.ranks == 0 && spec.spares == 0 {
        return Err("-n 0 without --spares M: there is nothing to start".to_owned());
    }
    Ok((spec, ShareSpec { coordinator, key }))
}
