//! `phalanx doctor`: tries what transports and devices need, and says what works here.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

use phalanx::auth::JobKey;

use crate::options;

const USAGE: &str = "phalanx doctor";

/// What came out of one try.
enum Found {
    Works(String),
    Fails(String),
    /// Nothing depends on it: what is there instead.
    Missing(&'static str),
}

struct Finding {
    name: &'static str,
    /// What works without it, or does not.
    use_: &'static str,
    found: Found,
}

/// Prints a line for each; 0 when at least one transport works with all that it needs.
pub fn run(args: Vec<OsString>) -> Result<i32, String> {
    let Some(options) = options::parse(USAGE, &[], args)? else { return Ok(0) };
    if let Some(word) = options.words.first() {
        return Err(format!("`{word}` is no option; usage: {USAGE}"));
    }
    let findings = examine();
    for Finding { name, use_, found } in &findings {
        let (mark, text) = match found {
            Found::Works(text) => ("ok", text.as_str()),
            Found::Fails(text) => ("FAILS", text.as_str()),
            Found::Missing(text) => ("--", *text),
        };
        println!("{mark:<6}{name:<24}{use_}: {text}");
    }
    Ok(i32::from(!is_usable(&findings)))
}

fn examine() -> Vec<Finding> {
    let tried = |name, use_, result: std::io::Result<String>| Finding {
        name,
        use_,
        found: result.map_or_else(|e| Found::Fails(e.to_string()), Found::Works),
    };
    vec![
        tried("epoll", "every transport", mio::Poll::new().map(|_| "can be opened".to_owned())),
        tried("memfd", "transport shm", try_memfd()),
        tried("abstract socket", "transport shm", try_abstract_socket()),
        tried("tcp v4", "transport tcp", try_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))),
        tried("tcp v6", "transport tcp over v6", try_tcp(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)))),
        tried("pidfd", "a death seen at once", try_pidfd()),
        Finding { name: "avx2", use_: "fast reductions", found: processor_has(Feature::Avx2) },
        Finding { name: "f16c", use_: "fast half precision", found: processor_has(Feature::F16c) },
        Finding { name: "rdma", use_: "transport rdma", found: Found::Missing("not built yet") },
        Finding { name: "cuda", use_: "buffers on GPUs", found: Found::Missing("not built yet") },
    ]
}

fn is_usable(findings: &[Finding]) -> bool {
    let works = |name| findings.iter().any(|f| f.name == name && matches!(f.found, Found::Works(_)));
    // The control plane is TCP in any case.
    works("epoll") && works("pidfd") && (works("tcp v4") || works("tcp v6"))
}

fn try_memfd() -> std::io::Result<String> {
    const BYTES: u64 = 4096;
    let file = rustix::fs::memfd_create("phalanx-doctor", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, BYTES)?;
    let written = rustix::io::pwrite(&file, b"phalanx", 0)?;
    let mut back = [0; 7];
    let read = rustix::io::pread(&file, &mut back, 0)?;
    if (written, read, &back) == (7, 7, b"phalanx") {
        Ok("can be made and written".to_owned())
    } else {
        Err(std::io::Error::other("what was written does not come back"))
    }
}

fn try_abstract_socket() -> std::io::Result<String> {
    let random = JobKey::random().map_err(std::io::Error::other)?.to_hex();
    let name = UnixAddress::from_abstract_name(format!("phalanx-doctor-{random}"))?;
    let listener = UnixListener::bind_addr(&name)?;
    let mut near = UnixStream::connect_addr(&name)?;
    let (mut far, _) = listener.accept()?;
    echo(&mut near, &mut far)
}

fn try_tcp(at: SocketAddr) -> std::io::Result<String> {
    let listener = TcpListener::bind(at)?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    echo(&mut near, &mut far)
}

fn echo(near: &mut impl Write, far: &mut impl Read) -> std::io::Result<String> {
    near.write_all(b"phalanx")?;
    let mut back = [0; 7];
    far.read_exact(&mut back)?;
    if &back == b"phalanx" {
        Ok("a message arrives".to_owned())
    } else {
        Err(std::io::Error::other("another message arrives than was sent"))
    }
}

fn try_pidfd() -> std::io::Result<String> {
    let me = rustix::process::getpid();
    rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty())?;
    Ok("can be opened".to_owned())
}

#[derive(Clone, Copy)]
enum Feature {
    Avx2,
    F16c,
}

#[cfg(target_arch = "x86_64")]
fn processor_has(feature: Feature) -> Found {
    let has = match feature {
        Feature::Avx2 => std::is_x86_feature_detected!("avx2"),
        Feature::F16c => std::is_x86_feature_detected!("f16c"),
    };
    if has {
        Found::Works("the processor has it".to_owned())
    } else {
        Found::Missing("portable code is used")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_has(feature: Feature) -> Found {
    match feature {
        Feature::Avx2 | Feature::F16c => Found::Missing("of another processor; portable code is used"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_said_and_decides() {
        let findings = examine();
        for name in ["rdma", "cuda"] {
            assert!(
                findings.iter().any(|f| f.name == name && matches!(f.found, Found::Missing("not built yet")))
            );
        }
        let only = |name: &'static str, found| Finding { name, use_: "", found };
        let works = || Found::Works(String::new());
        let mut few = vec![only("epoll", works()), only("pidfd", works()), only("tcp v4", works())];
        assert!(is_usable(&few));
        few[0].found = Found::Fails("no descriptors".to_owned());
        assert!(!is_usable(&few));
    }

    #[test]
    fn an_address_that_cannot_be_had_fails() {
        // Reserved for documentation: no interface has it.
        assert!(try_tcp(SocketAddr::from(([192, 0, 2, 1], 0))).is_err());
        assert!(try_memfd().is_ok());
    }
}
