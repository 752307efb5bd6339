//! Who may name whom. The table is the architecture diagram (docs/architecture.md).

use crate::source::{Source, Violation, words};

const RULE: &str = "layers";

/// Row: a module of `src/` and the sibling modules it may name. Everybody may use `phalanx_core`. Nothing points
/// back, and siblings that are not listed are strangers.
const MAY_USE: &[(&str, &[&str])] = &[
    ("auth", &[]),
    ("sync", &[]),
    ("device", &[]),
    ("config", &["auth"]),
    ("transport", &["auth", "device", "sync"]), // a link reduces nothing, but its slots are device memory
    ("control", &["auth"]),
    ("driver", &["auth", "config", "control", "device", "sync", "transport"]),
    ("sim", &["device", "driver", "transport"]), // one more transport, under the same executor
    ("launch", &["auth", "control"]),
    ("demo", &["comm", "config"]),
    ("comm", &["auth", "config", "control", "device", "driver", "launch", "sync", "transport"]),
    ("bin", &["auth", "comm", "config", "control", "demo", "device", "launch", "sim"]),
];

/// The module of `src/` a file belongs to; none for the root, for the core and for what is outside `src/`.
fn module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let first = inside.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(name, "lib" | "core")).then_some(name)
}

/// Modules that `code` names behind `root::`, with where: `root::x`, `root::{x, y::z, w::{a, b}}`.
fn named<'a>(code: &'a str, root: &str) -> Vec<(usize, &'a str)> {
    let mut out = Vec::new();
    for (at, word) in words(code).into_iter().filter(|(_, w)| *w == root) {
        let Some(path) = code[at + word.len()..].strip_prefix("::") else { continue };
        let start = code.len() - path.len();
        if !path.starts_with('{') {
            out.extend(words(path).first().filter(|(i, _)| *i == 0).map(|(_, w)| (start, *w)));
            continue;
        }
        let mut depth = 0;
        let mut fresh = true;
        for (i, b) in path.bytes().enumerate() {
            match b {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' => fresh |= depth == 1,
                _ if fresh && depth == 1 && (b.is_ascii_alphabetic() || b == b'_') => {
                    let len =
                        path[i..].bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
                    out.push((start + i, &path[i..i + len]));
                    fresh = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    out
}

pub fn check(sources: &[&Source]) -> Vec<Violation> {
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src/")) {
        for (at, _) in source.code.match_indices("super::super") {
            let what = "`super::super` hides which module is meant; write the path from `crate`".to_owned();
            out.push(Violation::new(RULE, &source.path, source.line(at), what));
        }
        let Some(from) = module(&source.path) else { continue };
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == from) else {
            let what = format!("`{from}` has no row in MAY_USE (tests/tidy/layers.rs)");
            out.push(Violation::new(RULE, &source.path, 1, what));
            continue;
        };
        // The command is a crate of its own: `crate::` there is itself, the library has its name.
        let root = if from == "bin" { "phalanx" } else { "crate" };
        for (at, to) in named(&source.code, root) {
            let is_module = MAY_USE.iter().any(|(name, _)| *name == to);
            if is_module && to != from && !allowed.contains(&to) {
                let what = format!("`{from}` must not use `{to}`; see MAY_USE (tests/tidy/layers.rs)");
                out.push(Violation::new(RULE, &source.path, source.line(at), what));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&[&Source::new(path, text)]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_edge_that_is_not_in_the_table_is_found() {
        for text in [
            "use crate::driver::Executor;",
            "fn f() { crate::driver::g() }",
            "use crate::{device::Span, driver};",
            "use crate::{\n    device::{Span, Block},\n    driver::{Executor},\n};",
        ] {
            let found = found("src/transport/tcp/mod.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("`transport` must not use `driver`"), "{found:?}");
        }
        assert_eq!(found("src/bin/phalanx/run.rs", "use phalanx::transport::Mux;").len(), 1);
    }

    #[test]
    fn edges_of_the_table_comments_and_own_paths_pass() {
        let fine = "//! Not `crate::driver`.\nuse crate::device::{Span, cpu};\nuse crate::transport::Peer;\n\
                    use crate::core::ids;";
        assert!(found("src/transport/shm/mod.rs", fine).is_empty());
        assert!(found("src/bin/phalanx/main.rs", "use phalanx::launch; use crate::run;").is_empty());
    }

    #[test]
    fn a_module_without_a_row_and_a_climb_are_found() {
        assert!(found("src/gossip.rs", "")[0].contains("no row"));
        assert!(found("src/core/x.rs", "use super::super::y;")[0].contains("super::super"));
    }

    #[test]
    fn nothing_points_back() {
        for (name, uses) in MAY_USE {
            for to in *uses {
                let back = MAY_USE.iter().any(|(row, of)| row == to && of.contains(name));
                assert!(!back, "`{name}` and `{to}` may use each other");
            }
        }
    }
}
