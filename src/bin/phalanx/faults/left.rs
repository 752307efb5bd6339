//! What a run has left behind.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::network::{self, Network};
use super::world::{self, World};

/// A process that was killed is gone within this time.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Tables of sockets, and the column of the inode in each.
const TABLES: &[(&str, usize)] = &[("unix", 6), ("tcp", 9), ("tcp6", 9)];

/// What is known of a run while it still runs, to find what of it is left.
pub struct Traces {
    mark: String,
    folder: PathBuf,
    /// Inodes of the sockets that its processes had open.
    sockets: BTreeSet<u64>,
    /// Names of shared memory that were there before.
    names: BTreeSet<OsString>,
}

impl Traces {
    pub fn of(world: &World<'_>, names: BTreeSet<OsString>) -> Self {
        let (mark, folder) = world.traces();
        let sockets = world.processes().into_iter().flat_map(sockets_of).collect();
        Self { mark, folder, sockets, names }
    }

    /// What is left of the run, once everything was asked to end.
    pub fn left(&self, network: Option<&Network>, hosts: usize) -> Vec<String> {
        let until = Instant::now() + GONE_WITHIN;
        let mut processes = world::marked(&self.mark);
        while !processes.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            processes = world::marked(&self.mark);
        }
        let mut left: Vec<String> = processes.iter().map(|pid| format!("process {pid}")).collect();
        let mut sockets = open_sockets(network, hosts);
        sockets.retain(|inode| self.sockets.contains(inode));
        left.extend(sockets.iter().map(|inode| format!("socket {inode}")));
        left.extend(
            named_segments().difference(&self.names).map(|name| format!("segment {}", name.display())),
        );
        let files =
            std::fs::read_dir(&self.folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.file_name()));
        left.extend(files.filter(|name| name != "state").map(|name| format!("file {}", name.display())));
        left
    }
}

/// Names of shared memory that are this project's.
pub fn named_segments() -> BTreeSet<OsString> {
    let names = std::fs::read_dir("/dev/shm").into_iter().flatten().filter_map(|e| Some(e.ok()?.file_name()));
    names.filter(|name| name.to_string_lossy().contains("phalanx")).collect()
}

fn sockets_of(pid: u32) -> Vec<u64> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let inode = |to: PathBuf| to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    targets.filter_map(inode).collect()
}

/// Inodes of the sockets that are open on the hosts of the run.
fn open_sockets(network: Option<&Network>, hosts: usize) -> BTreeSet<u64> {
    let mut open = BTreeSet::new();
    for (table, column) in TABLES {
        let path = format!("/proc/net/{table}");
        let texts: Vec<String> = match network {
            None => vec![std::fs::read_to_string(&path).unwrap_or_default()],
            Some(network) => (0..hosts)
                .map(|host| {
                    network::run(&["ip", "netns", "exec", &network.host(host), "cat", &path])
                        .unwrap_or_default()
                })
                .collect(),
        };
        let lines = texts.iter().flat_map(|text| text.lines().skip(1));
        // One that only waits for late packets has no inode any more.
        open.extend(lines.filter_map(|line| line.split_whitespace().nth(*column)?.parse::<u64>().ok()));
    }
    open.remove(&0);
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_open_is_found_and_one_that_is_closed_is_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let mine: BTreeSet<u64> = sockets_of(std::process::id()).into_iter().collect();
        let open = open_sockets(None, 0);
        assert!(mine.intersection(&open).count() >= 2, "{mine:?}");
        drop((tcp, unix));
        let left: Vec<u64> = open_sockets(None, 0).intersection(&mine).copied().collect();
        let still: BTreeSet<u64> = sockets_of(std::process::id()).into_iter().collect();
        assert!(left.iter().all(|inode| still.contains(inode)), "{left:?}");
    }

    #[test]
    fn a_process_with_the_mark_is_found_until_it_ends() {
        let mark = "0123456789abcdef-only-here";
        let mut child =
            std::process::Command::new("sleep").arg("1000").env("CHAOS_RUN", mark).spawn().unwrap();
        let until = Instant::now() + GONE_WITHIN;
        while world::marked(mark) != [child.id()] {
            assert!(Instant::now() < until, "it is not found");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world::marked(mark).is_empty());
    }
}
