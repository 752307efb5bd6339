//! What was sent, by kind, and what the process has in use.

use std::collections::BTreeMap;

/// Memory may move by so much between two looks at a world that does the same all the time: the allocator keeps what it
/// had, buffers come and go. A leak of one byte a frame is above it in a run of the full count.
pub const GROWTH_BYTES_MAX: u64 = 24 << 20;

/// Frames by kind.
#[derive(Debug, Default)]
pub struct Toll(BTreeMap<&'static str, u64>);

impl Toll {
    pub fn add(&mut self, kind: &'static str, frames: u64) {
        *self.0.entry(kind).or_default() += frames;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn print(&self) {
        self.0.iter().for_each(|(kind, frames)| println!("{frames:>12}  {kind}"));
        println!("{:>12}  frames in all", self.total());
    }
}

/// What this process has in use.
#[derive(Debug, Clone, Copy)]
pub struct InUse {
    pub resident_bytes: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl InUse {
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let resident_kib: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
        let entries = |folder: &str| std::fs::read_dir(folder).unwrap().count();
        Self {
            resident_bytes: resident_kib << 10,
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
        }
    }

    /// Fails when there is more of anything than before; descriptors and threads to the last one.
    #[track_caller]
    pub fn assert_flat(self, before: Self) {
        println!(
            "resident {} KiB, was {}; {} descriptors, were {}; {} threads, were {}",
            self.resident_bytes >> 10,
            before.resident_bytes >> 10,
            self.descriptors,
            before.descriptors,
            self.threads,
            before.threads
        );
        let grown = self.resident_bytes.saturating_sub(before.resident_bytes);
        assert!(grown <= GROWTH_BYTES_MAX, "{grown} bytes more than before: {self:?}, {before:?}");
        assert!(self.descriptors <= before.descriptors && self.threads <= before.threads, "more than before");
    }
}
