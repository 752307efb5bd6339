//! Every file is part of something that is built: a file nobody names is dead, and nothing says so otherwise.

use std::collections::BTreeSet;

use crate::source::{Source, Violation};

const RULE: &str = "reach";

/// Whether a file is the root of a crate.
fn is_root(path: &str) -> bool {
    if matches!(path, "src/lib.rs" | "src/main.rs" | "src/core/lib.rs" | "build.rs") {
        return true;
    }
    let parts: Vec<&str> = path.split('/').collect();
    matches!(
        parts[..],
        ["src", "bin", _]
            | ["src", "bin", _, "main.rs"]
            | ["tests" | "benches" | "examples", _]
            | ["tests" | "benches" | "examples", _, "main.rs"]
            | ["tests", "fuzz", "fuzz_targets", _]
    )
}

/// Folder in which the modules that a file declares have their files.
fn folder_of(path: &str, by_path: bool) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    if is_root(path) || by_path || stem == "mod" { folder.to_owned() } else { format!("{folder}/{stem}") }
}

pub fn check(sources: &[&Source]) -> Vec<Violation> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let roots = sources.iter().filter(|s| is_root(&s.path)).map(|s| (s.path.clone(), false));
    let mut open: Vec<(String, bool)> = roots.collect();
    let mut out = Vec::new();
    while let Some((path, by_path)) = open.pop() {
        let Some(source) = sources.iter().find(|s| s.path == path) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        for (at, candidates, explicit) in declared(source, by_path) {
            match candidates.iter().find(|c| sources.iter().any(|s| s.path == **c)) {
                Some(found) => open.push((found.clone(), explicit)),
                None => {
                    let what = format!("a module without a file: none of {}", candidates.join(", "));
                    out.push(Violation::new(RULE, &path, source.line(at), what));
                }
            }
        }
    }
    let dead = sources.iter().filter(|s| !reached.contains(&s.path));
    out.extend(dead.map(|s| Violation::new(RULE, &s.path, 1, "no `mod` leads to this file".to_owned())));
    out
}

/// Modules with files of their own: where they are declared, where the file may be, whether `#[path]` says so.
fn declared(source: &Source, by_path: bool) -> Vec<(usize, Vec<String>, bool)> {
    let words = source.words();
    let folder = folder_of(&source.path, by_path);
    let mut out = Vec::new();
    for pair in words.windows(2) {
        let [(at, "mod"), (start, name)] = pair else { continue };
        if !source.code[start + name.len()..].trim_start().starts_with(';') {
            continue;
        }
        let before = source.text[..*at].trim_end();
        let line = before.rfind('\n').map_or(before, |i| &before[i + 1..]).trim_start();
        let given = line.strip_prefix("#[path").and_then(|l| l.split('"').nth(1));
        match given {
            Some(given) => {
                let beside = source.path.rsplit_once('/').map_or("", |(f, _)| f);
                out.push((*at, vec![format!("{beside}/{given}")], true));
            }
            None => {
                let both = vec![format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
                out.push((*at, both, false));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        check(&sources.iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_nobody_names_is_found() {
        let found = found(&[("src/lib.rs", "mod a; // mod b;"), ("src/a.rs", ""), ("src/b.rs", "")]);
        assert_eq!(found, ["src/b.rs:1: [reach] no `mod` leads to this file"]);
    }

    #[test]
    fn folders_nested_modules_and_given_paths_are_followed() {
        let files = [
            ("src/lib.rs", "pub mod a;\npub(crate) mod b;"),
            ("src/a/mod.rs", "mod c;"),
            ("src/a/c.rs", "#[cfg(test)]\n#[path = \"c_tests.rs\"]\nmod tests;"),
            ("src/a/c_tests.rs", ""),
            ("src/b.rs", "mod d;"),
            ("src/b/d.rs", ""),
            ("tests/t.rs", "#[path = \"t/e.rs\"]\nmod e;"),
            ("tests/t/e.rs", ""),
        ];
        assert_eq!(found(&files), Vec::<String>::new());
    }

    #[test]
    fn a_module_without_a_file_is_found() {
        assert!(found(&[("src/lib.rs", "mod gone;")])[0].contains("without a file"));
    }
}
