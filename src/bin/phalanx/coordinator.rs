//! `phalanx coordinator`: the coordinator alone, for ranks that other means start on several machines.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use phalanx::auth::JobKey;
use phalanx::config;
use phalanx::control::{
    FileStore, Interrupt, MemoryStore, Server, ServerConfig, ServerHandle, Settings, Store,
};
use phalanx::core::coordinator::WorldEvent;
use phalanx::core::policy::{Policy, Rules};

use crate::options::{self, Option_, Options, Takes};
use crate::world;

const USAGE: &str = "phalanx coordinator -n N [--listen ADDR] [--state DIR] [RULES] | --state DIR";

const OPTIONS: &[Option_] = &[
    ("listen", Takes::Value, "address and port; port 0 lets the system choose (127.0.0.1:0)"),
    (
        "state",
        Takes::Value,
        "folder of address, key, rules, decisions: started again on it, it goes on (none)",
    ),
];
/// How often it is looked whether the coordinator still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Members read for so long that the run is over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Ranks of a world whose coordinator was not told.
const RANKS: u32 = 4;

/// How it ends.
enum End {
    Finished,
    GivenUp(String),
    Interrupted(i32),
}

/// Serves until every rank has left (0), until nobody is left who could go on (1), or until a signal (128 and its
/// number).
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    refuse_what_launchers_take(&args)?;
    let known: Vec<Option_> = OPTIONS.iter().chain(world::RULES).copied().collect();
    let Some(options) = options::parse(USAGE, &known, args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let files = options.text("state").map(|folder| FileStore::open(Path::new(folder))).transpose();
    let mut files = files.map_err(|e| e.to_string())?;
    let (settings, listener, is_fresh) = match kept(files.as_mut())? {
        Some(kept) => go_on(&options, kept)?,
        None => begin(&options)?,
    };
    if let Some(files) = &mut files {
        // Before anybody is answered: what a member has joined can be found again.
        files.save_settings(&settings).map_err(|e| e.to_string())?;
    }
    let store: Box<dyn Store + Send> = match &files {
        Some(files) => Box::new(files.clone()),
        None => Box::new(MemoryStore::default()),
    };
    let note_over = || {
        let Some(files) = &mut files else { return Ok(()) };
        files.save_settings(&Settings { is_over: true, ..settings.clone() }).map_err(|e| e.to_string())
    };
    Ok(match serve(&settings, listener, store, is_fresh, note_over)? {
        End::Interrupted(signal) => 128 + signal,
        End::Finished => 0,
        End::GivenUp(why) => {
            eprintln!("phalanx: the run cannot go on: {why}");
            1
        }
    })
}

/// A coordinator starts no process, so these would do nothing here.
fn refuse_what_launchers_take(args: &[OsString]) -> Result<(), String> {
    let given = |name: &str| {
        let matches = |arg: &OsString| options::split(&arg.to_string_lossy()).is_some_and(|(n, _)| n == name);
        args.iter().take_while(|arg| *arg != "--").any(matches)
    };
    match world::START.iter().map(|(name, ..)| *name).find(|name| given(name)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "--{name} is for whoever starts the ranks, and a coordinator starts none: give it to `phalanx run \
             --coordinator` on each host"
        )),
    }
}

fn kept(files: Option<&mut FileStore>) -> Result<Option<Settings>, String> {
    let Some(files) = files else { return Ok(None) };
    let kept = files.settings().map_err(|e| e.to_string())?;
    if kept.as_ref().is_some_and(|kept| kept.is_over) {
        let folder = files.folder().display();
        return Err(format!("the run of {folder} is over; give --state an empty folder to start another"));
    }
    Ok(kept)
}

/// A world that begins here.
fn begin(options: &Options) -> Result<(Settings, TcpListener, bool), String> {
    let rules = world::rules(options, Rules::new(RANKS, Policy::Replace))?;
    let (key, is_fresh) = match config::job_key().map_err(|e| e.to_string())? {
        Some(key) => (key, false),
        None => (JobKey::random().map_err(|e| e.to_string())?, true),
    };
    let listen = options.get("listen", SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = Server::listen(listen).map_err(|e| e.to_string())?;
    let listen = listener.local_addr().map_err(|e| format!("the listener has no address: {e}"))?;
    Ok((Settings { listen, key, rules, is_over: false }, listener, is_fresh))
}

/// The world of an earlier coordinator. The same words as at its first start are fine, so that whatever starts it again
/// need not know that it does; others are not.
fn go_on(options: &Options, kept: Settings) -> Result<(Settings, TcpListener, bool), String> {
    let differs = |what: &str, is: &str| {
        let folder = options.text("state").unwrap_or_default();
        Err(format!(
            "{what} contradicts {folder}, where {is}; leave it out, or start a new world in an empty folder"
        ))
    };
    let listen = options.get("listen", kept.listen)?;
    if listen.ip() != kept.listen.ip() || (listen.port() != 0 && listen.port() != kept.listen.port()) {
        return differs(&format!("--listen {listen}"), &format!("the address is {}", kept.listen));
    }
    if config::job_key().map_err(|e| e.to_string())?.is_some_and(|key| key != kept.key) {
        return differs("PHALANX_JOB_KEY", "the key is another");
    }
    for (name, ..) in world::RULES {
        if world::rules(&options.only(name), kept.rules.clone())? != kept.rules {
            let text = options.text(name).unwrap_or_default();
            return differs(&format!("--{name} {text}"), "the world has another value");
        }
    }
    let listener = Server::listen(kept.listen).map_err(|e| {
        format!("{e} The members of this world look for their coordinator there: free the address, and start it again")
    })?;
    Ok((kept, listener, false))
}

fn serve(
    settings: &Settings,
    listener: TcpListener,
    store: Box<dyn Store + Send>,
    is_fresh: bool,
    note_over: impl FnOnce() -> Result<(), String>,
) -> Result<End, String> {
    let (tell, ended) = channel();
    let finished = tell.clone();
    let Settings { listen, key, rules, .. } = settings.clone();
    let ranks = rules.world_size;
    let config = ServerConfig { listen, key, rules, store };
    let server = Server::start_on(listener, config, move |event, at_ms| {
        tracing::info!(at_ms, ?event, "world");
        match event {
            WorldEvent::Finished => _ = finished.send(End::Finished),
            WorldEvent::Unrecoverable(why) => _ = finished.send(End::GivenUp(why.clone())),
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
        Interrupt::watch(move |signal| _ = tell.send(End::Interrupted(signal))).map_err(|e| e.to_string())?;
    println!("{}", how_to_start(server.address(), ranks));
    if is_fresh {
        eprintln!("PHALANX_JOB_KEY={}", settings.key.to_hex());
    }
    let end = wait(&server, &ended)?;
    if !matches!(end, End::Interrupted(_)) {
        // First of all: a coordinator that is killed from here on must not be started again on it.
        note_over()?;
        // The last message is on its way to the members; nothing here is waited for, unless the server stops.
        server.wait_until(LAST_WORDS, |_| false);
    }
    server.shutdown();
    drop(interrupt);
    Ok(end)
}

fn wait(server: &ServerHandle, ended: &std::sync::mpsc::Receiver<End>) -> Result<End, String> {
    loop {
        match ended.recv_timeout(LOOK_AGAIN) {
            Ok(end) => return Ok(end),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if let Some(why) = server.snapshot().stopped {
                    return Err(format!("the coordinator has stopped: {why}"));
                }
            }
        }
    }
}

fn how_to_start(at: SocketAddr, ranks: u32) -> String {
    let host = if at.ip().is_unspecified() { "<this host>".to_owned() } else { at.ip().to_string() };
    let host = if at.is_ipv6() && !at.ip().is_unspecified() { format!("[{host}]") } else { host };
    format!(
        "coordinator at {at}\n\
         start N of the {ranks} ranks, from R on, and M spares on each host with\n  \
         PHALANX_JOB_KEY=<the key> phalanx run --coordinator {host}:{port} -n N --rank-from R --spares M -- PROGRAM\n\
         or each rank R of 0..{ranks} by other means, and spares without PHALANX_RANK, with\n  \
         PHALANX_COORDINATOR={host}:{port} PHALANX_JOB_KEY=<the key> PHALANX_WORLD_SIZE={ranks} PHALANX_RANK=R PROGRAM",
        port = at.port()
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
