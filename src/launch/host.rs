//! Which host this is.

use phalanx_core::fnv::fnv1a;

/// Same value: the two processes can share memory, and see one another's process ids. Network namespaces count as
/// hosts, for abstract sockets end there; and so do those of process ids, or two launchers would take one another's
/// children for their own.
#[must_use]
pub fn host_id() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .map(|p| p.display().to_string())
            .unwrap_or_default()
    };
    fnv1a(boot.bytes().chain(space("net").bytes()).chain(space("pid").bytes()))
}
