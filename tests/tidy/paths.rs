//! What the documentation names is there: files, folders, other pages.

use crate::source::{Source, Violation};

const RULE: &str = "paths";

/// Endings of files that pages name.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".txt", ".json", ".svg", ".py", ".sh", "/"];

/// Folders at the root: a path that begins with one is whole.
const ROOTS: &[&str] = &["src/", "tests/", "docs/", "benches/", "examples/", "data/", ".ci/"];

/// Whether `text` between backticks is a path, as far as this rule can tell.
fn is_path(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let named = ENDINGS.iter().any(|e| text.ends_with(e) && text.len() > e.len());
    plain && !text.starts_with('/') && (named || ROOTS.iter().any(|root| text.starts_with(root)))
}

/// Whether a file or folder is there. A path that does not begin at the root may be the end of one that does.
fn exists(paths: &[&str], named: &str) -> bool {
    let whole = ROOTS.iter().any(|root| named.starts_with(root));
    let at = |path: &str, start: usize| {
        path[start..].starts_with(named)
            && (named.ends_with('/') || matches!(path.as_bytes().get(start + named.len()), None | Some(b'/')))
    };
    paths
        .iter()
        .any(|path| at(path, 0) || !whole && path.match_indices('/').any(|(slash, _)| at(path, slash + 1)))
}

/// The path that a link in the page `from` leads to, seen from the root.
fn target(from: &str, link: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

pub fn check(sources: &[Source]) -> Vec<Violation> {
    let paths: Vec<&str> = sources.iter().map(|s| s.path.as_str()).collect();
    let mut out = Vec::new();
    for page in sources.iter().filter(|s| s.path.ends_with(".md")) {
        let mut add = |line: usize, what| out.push(Violation::new(RULE, &page.path, line, what));
        for (index, line) in page.text.lines().enumerate() {
            // Every second piece is between backticks. A block of code has its fences on lines of their own.
            let quoted = line.split('`').skip(1).step_by(2);
            for path in quoted.filter(|text| is_path(text) && !exists(&paths, text)) {
                add(index + 1, format!("`{path}` is not there"));
            }
            for (at, _) in line.match_indices("](") {
                let link = line[at + 2..].split([')', '#']).next().unwrap_or_default();
                let inside = !(link.is_empty() || link.contains(':'));
                let target = target(&page.path, link);
                let is_there = |path: &&str| {
                    path.strip_prefix(&target).is_some_and(|r| r.is_empty() || r.starts_with('/'))
                };
                if inside && !paths.iter().any(is_there) {
                    add(index + 1, format!("a link to {link}, which is not there"));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str) -> Vec<String> {
        let files =
            ["src/core/recovery/mod.rs", "src/sync.rs", "docs/protocol.md", "docs/decisions/0001-a.md"];
        let mut sources: Vec<Source> = files.iter().map(|path| Source::new(path, "")).collect();
        sources.push(Source::new("docs/page.md", page));
        check(&sources).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn a_file_that_is_gone_is_found() {
        for page in
            ["`src/core/recovery.rs`", "`src/mailbox.rs`", "`recover/mod.rs`", "`src/gone/`", "`ync.rs`"]
        {
            assert_eq!(found(page).len(), 1, "{page}");
        }
        assert_eq!(found("see [it](decisions/0002-b.md), [that](protocol.md#top)").len(), 1);
    }

    #[test]
    fn whole_paths_their_ends_folders_and_other_words_pass() {
        let page = "`src/sync.rs` `recovery/mod.rs` `src/core/recovery/` `src/core/recovery` `sync.rs` `a/b` `1..2`\n\
                    [it](decisions/0001-a.md) [all](decisions) [on](#here) [out](https:) `cargo test --lib` `x.y`";
        assert_eq!(found(page), Vec::<String>::new());
    }
}
