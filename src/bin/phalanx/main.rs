//! The `phalanx` command: one file a subcommand.

mod bench;
mod bench_overhead;
mod bench_rank;
mod chaos;
mod chaos_rank;
mod chaos_report;
mod chaos_world;
mod coordinator;
mod demo;
mod demo_rank;
mod demo_run;
mod doctor;
mod faults;
mod options;
mod plan;
mod run;
mod sim;
mod tied;
mod world;

use std::io::IsTerminal;
use std::process::ExitCode;

use phalanx::config::LogLevel;

const HELP: &str = "\
phalanx: collectives that survive the death of a rank

usage: phalanx COMMAND [OPTIONS]

  demo         train a network on 4 ranks, kill one inside an all-reduce, compare the result bit for bit
  chaos        loop all-reduces, kill random ranks, check every element
  bench        measure a collective
  run          start a program as ranks and spares
  coordinator  run the coordinator alone
  plan         print a collective's plan and its proof
  sim          run the simulator over seeds
  doctor       say which transports and devices work here

`phalanx COMMAND --help` tells the options. PHALANX_LOG=error|warn|info|debug|trace sets the level of the log.
";

fn main() -> ExitCode {
    match phalanx::config::log_level() {
        Ok(level) => log_to_stderr(level),
        Err(cause) => {
            eprintln!("phalanx: {cause}");
            return ExitCode::from(2);
        }
    }
    let mut args = std::env::args_os().skip(1);
    let command = args.next().map(|c| c.to_string_lossy().into_owned());
    let rest: Vec<_> = args.collect();
    let result = match command.as_deref() {
        Some("demo") => demo::run(rest),
        Some("demo-rank") => demo_rank::run(rest),
        Some("chaos") => chaos::run(rest),
        Some("chaos-rank") => chaos_rank::run(rest),
        Some("coordinator") => coordinator::run(rest),
        Some("doctor") => doctor::run(rest),
        Some("plan") => plan::run(rest),
        Some("run") => run::run(rest),
        Some("sim") => sim::run(rest),
        Some("tied") => tied::run(rest),
        Some("bench") => bench::run(rest),
        Some("bench-rank") => bench_rank::run(rest),
        Some("--help" | "-h" | "help") | None => {
            print!("{HELP}");
            Ok(0)
        }
        Some(other) => Err(format!("`{other}` is no command of phalanx; `phalanx --help` lists them")),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(text) => {
            eprintln!("phalanx: {text}");
            ExitCode::from(2)
        }
    }
}

fn log_to_stderr(level: LogLevel) {
    let filter = tracing_subscriber::EnvFilter::new(level.name());
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .init();
}
