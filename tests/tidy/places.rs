//! What may stand only in certain files: unsafe code, async code, reads of the environment, sleeps.

use crate::source::{Source, Violation};

const RULE: &str = "places";

/// Files with unsafe code, each a thin wall around one kind of it.
const UNSAFE: &[&str] = &[
    "src/device/memory.rs",
    "src/device/cpu/simd.rs",
    "src/transport/shm/raw.rs",
    "src/comm/raw.rs",
    "tests/raw.rs",
    "tests/wire_memory.rs", // an allocator that counts
];

/// Files of `src/` with atomics. `src/sync.rs` has all that a wake-up or shared memory depends on, the others count.
const ATOMIC: &[&str] = &["src/sync.rs", "src/comm/buffer.rs", "src/sim/sweep.rs"];

/// The folder with the async runtime.
const ASYNC: &str = "src/control/";

/// The reader of environment variables.
const CONFIG: &str = "src/config.rs";

/// Programs that start themselves again as a child of a test or bench and are told by a variable what to be.
const CHILDREN: &[&str] = &[
    "tests/shm_processes.rs",
    "tests/control_plane.rs",
    "tests/control_plane/launched.rs",
    "tests/idle.rs",
    "benches/transport_shm.rs",
];

/// Variables by which whoever runs the tests chooses seeds.
const SEEDS: &str = "(\"SIM_";

/// Tests that read such variables through a function of their own.
const SEEDED: &[&str] = &["tests/sim_seeds.rs", "tests/mutants.rs"];

pub fn check(sources: &[&Source]) -> Vec<Violation> {
    sources.iter().flat_map(|source| check_one(source)).collect()
}

fn check_one(source: &Source) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut add = |at: usize, what: &str| {
        out.push(Violation::new(RULE, &source.path, source.line(at), what.to_owned()));
    };
    let path = source.path.as_str();
    let in_src = path.starts_with("src/");
    let tests = source.test_ranges();
    for (at, word) in source.words() {
        let before = &source.code[..at];
        let after = &source.code[at + word.len()..];
        match word {
            "unsafe" if !UNSAFE.contains(&path) => {
                add(at, "unsafe code stands only in the files of UNSAFE (tests/tidy/places.rs)");
            }
            "atomic"
                if in_src && before.ends_with("sync::") && !source.is_test() && !ATOMIC.contains(&path) =>
            {
                add(
                    at,
                    "atomics stand only in the files of ATOMIC (tests/tidy/places.rs); use `crate::sync`",
                );
            }
            "tokio" | "async" | "await" if in_src && !path.starts_with(ASYNC) => {
                add(at, "async code stands only in src/control; the data path is a loop that polls");
            }
            "var" | "vars" | "var_os" | "vars_os" | "set_var" | "remove_var" if before.ends_with("env::") => {
                let seed = source.is_test() && source.text[at + word.len()..].starts_with(SEEDS);
                let named = [CHILDREN, SEEDED].iter().any(|files| files.contains(&path));
                if path != CONFIG && !named && !seed {
                    add(at, "only src/config.rs reads the environment; take the value as an argument");
                }
            }
            "sleep" if after.starts_with('(') && tests.iter().any(|r| r.contains(&at)) => {
                add(at, "a test waits for what it wants to see, with a deadline; it does not sleep");
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&[&Source::new(path, text)]).len()
    }

    #[test]
    fn unsafe_code_is_found_outside_its_files() {
        assert_eq!(count("src/driver/x.rs", "fn f() { unsafe { g() } }"), 1);
        assert_eq!(count("tests/x.rs", "unsafe impl Send for X {}"), 1);
        assert_eq!(count("src/transport/shm/raw.rs", "unsafe { g() }"), 0);
        assert_eq!(count("src/core/lib.rs", "#![forbid(unsafe_code)] // not unsafe"), 0);
    }

    #[test]
    fn every_file_that_may_is_there() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in [UNSAFE, ATOMIC, CHILDREN, SEEDED, &[CONFIG, ASYNC]].into_iter().flatten() {
            assert!(root.join(file).exists(), "{file} is gone");
        }
    }

    #[test]
    fn atomics_are_found_outside_their_files() {
        assert_eq!(count("src/driver/x.rs", "use std::sync::atomic::AtomicU64;"), 1);
        assert_eq!(count("src/driver/x.rs", "use crate::sync::local::AtomicU64; // std::sync::atomic"), 0);
        assert_eq!(count("src/sync.rs", "use std::sync::atomic::AtomicU64;"), 0);
        assert_eq!(count("tests/x.rs", "use std::sync::atomic::AtomicU64;"), 0);
    }

    #[test]
    fn async_code_is_found_outside_control() {
        assert_eq!(count("src/driver/x.rs", "async fn f() { g().await }"), 2);
        assert_eq!(count("src/launch/x.rs", "use tokio::runtime;"), 1);
        assert_eq!(count("src/control/x.rs", "async fn f() { tokio::spawn(g()).await }"), 0);
    }

    #[test]
    fn reads_of_the_environment_are_found() {
        assert_eq!(count("src/bin/phalanx/x.rs", "let x = std::env::var(\"HOME\");"), 1);
        assert_eq!(count("src/core/x.rs", "use std::env; fn f() { env::vars(); }"), 1);
        assert_eq!(count("tests/x.rs", "std::env::var(\"HOME\")"), 1);
        assert_eq!(count("tests/x.rs", "std::env::var(\"SIM_SEED\")"), 0);
        assert_eq!(count("src/config.rs", "std::env::var(\"PHALANX_LOG\")"), 0);
        assert_eq!(count("src/x.rs", "env!(\"CARGO_MANIFEST_DIR\"); std::env::args();"), 0);
    }

    #[test]
    fn sleeps_in_tests_are_found() {
        assert_eq!(count("tests/x.rs", "std::thread::sleep(d);"), 1);
        assert_eq!(count("src/x.rs", "#[cfg(test)]\nmod tests { fn f() { sleep(d) } }"), 1);
        assert_eq!(count("src/x.rs", "fn backoff() { sleep(d) }"), 0);
    }
}
