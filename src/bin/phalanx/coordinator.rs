//! `phalanx coordinator`: the coordinator alone, for ranks that other means start on several machines.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use phalanx::auth::JobKey;
use phalanx::config;
use phalanx::control::{FileStore, Interrupt, MemoryStore, Server, ServerConfig, Store};
use phalanx::core::coordinator::WorldEvent;

use crate::options::{self, Takes};
use crate::world;

const USAGE: &str = "phalanx coordinator --ranks N [--listen ADDR] [--state DIR] [WORLD OPTIONS]";

const OPTIONS: &[options::Option_] = &[
    ("listen", Takes::Value, "address and port; port 0 lets the system choose (127.0.0.1:0)"),
    ("state", Takes::Value, "folder of its decisions: a restart on it goes on (none: they end with it)"),
];
/// How often it is looked whether the coordinator still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Members read for so long that the run is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until every rank has left (0), or until a signal (128 and its number).
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, &world::with(OPTIONS), args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let rules = world::spec(&options, Vec::new())?.rules;
    let listen: SocketAddr = options.get("listen", SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let store: Box<dyn Store + Send> = match options.text("state") {
        Some(folder) => Box::new(FileStore::open(Path::new(folder)).map_err(|e| e.to_string())?),
        None => Box::new(MemoryStore::default()),
    };
    let (key, is_fresh) = match config::job_key().map_err(|e| e.to_string())? {
        Some(key) => (key, false),
        None => (JobKey::random().map_err(|e| e.to_string())?, true),
    };
    let (tell, ended) = channel();
    let finished = tell.clone();
    let ranks = rules.world_size;
    let config = ServerConfig { listen, key: key.clone(), rules, store };
    let server = Server::start(config, move |event, at_ms| {
        tracing::info!(at_ms, ?event, "world");
        match event {
            WorldEvent::Finished => _ = finished.send(0),
            WorldEvent::Unrecoverable(_) => _ = finished.send(1),
            WorldEvent::Formed
            | WorldEvent::Lost(_)
            | WorldEvent::Fenced(_)
            | WorldEvent::Decided(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::SpareReady(_) => {}
        }
    })
    .map_err(|e| e.to_string())?;
    let interrupt =
        // The receiver is gone only when this command ends anyway.
        Interrupt::watch(move |signal| _ = tell.send(128 + signal)).map_err(|e| e.to_string())?;
    println!("{}", how_to_start(server.address(), ranks));
    if is_fresh {
        eprintln!("PHALANX_JOB_KEY={}", key.to_hex());
    }
    let code = loop {
        match ended.recv_timeout(LOOK_AGAIN) {
            Ok(code) => break code,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if let Some(why) = server.snapshot().stopped {
                    return Err(format!("the coordinator has stopped: {why}"));
                }
            }
        }
    };
    if code == 0 {
        // The last message is on its way to the members; nothing here is waited for, unless the server stops.
        server.wait_until(LAST_WORDS, |_| false);
    }
    drop(interrupt);
    server.shutdown();
    Ok(code)
}

fn how_to_start(at: SocketAddr, ranks: u32) -> String {
    let host = if at.ip().is_unspecified() { "<this host>".to_owned() } else { at.ip().to_string() };
    let host = if at.is_ipv6() && !at.ip().is_unspecified() { format!("[{host}]") } else { host };
    format!(
        "coordinator at {at}\n\
         start each rank R of 0..{ranks}, and spares without PHALANX_RANK, with\n  \
         PHALANX_COORDINATOR={host}:{} PHALANX_JOB_KEY=<the key> PHALANX_WORLD_SIZE={ranks} PHALANX_RANK=R PROGRAM",
        at.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted() {
        let text = how_to_start(SocketAddr::from(([10, 0, 0, 7], 4711)), 8);
        assert!(text.contains("PHALANX_COORDINATOR=10.0.0.7:4711 "), "{text}");
        assert!(text.contains("R of 0..8"), "{text}");
        let text = how_to_start("[fe80::1]:5".parse().unwrap(), 2);
        assert!(text.contains("PHALANX_COORDINATOR=[fe80::1]:5 "), "{text}");
        let text = how_to_start("[::]:5".parse().unwrap(), 2);
        assert!(text.contains("PHALANX_COORDINATOR=<this host>:5 "), "{text}");
    }
}
