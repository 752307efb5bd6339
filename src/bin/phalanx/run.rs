//! `phalanx run`: starts a program as ranks and spares.

use std::ffi::OsString;

use phalanx::launch;

use crate::{options, world};

const USAGE: &str = "phalanx run -n N [--spares M] [--transport T] [OPTIONS] -- CMD [ARG ...]";

/// Runs the command; the exit code is the first failing rank's.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, &world::with(&[]), args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` stands before `--`; usage: {USAGE}"));
    }
    if options.rest.is_empty() {
        return Err(format!("no command after `--`; usage: {USAGE}"));
    }
    let spec = world::spec(&options, options.rest.clone())?;
    Ok(launch::run_command(spec, |event, at_ms| tracing::info!(at_ms, ?event, "world")))
}
