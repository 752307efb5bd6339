//! No address of the place where this was written: a checkout builds anywhere, from the public registry alone.

use crate::source::{Source, Violation};

const RULE: &str = "addresses";

/// Hosts that files may name in a link. A package mirror, a build machine or a bare address is none of them.
const HOSTS: &[&str] = &[
    "archive.ics.uci.edu",
    "creativecommons.org",
    "doc.rust-lang.org",
    "docs.rs",
    "doi.org",
    "github.com",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
    "www.w3.org",
];

/// Folders of somebody's machine, in two halves so that this file does not name them itself.
const FOLDERS: &[(&str, &str)] =
    &[("/wo", "rk/"), ("/fa", "rm/"), ("/ho", "me/"), ("/ro", "ot/"), ("/Us", "ers/")];

pub fn check(sources: &[Source]) -> Vec<Violation> {
    let mut out = Vec::new();
    for source in sources {
        for (at, _) in source.text.match_indices("://") {
            let scheme = &source.text[..at];
            if !(scheme.ends_with("http") || scheme.ends_with("https")) {
                continue;
            }
            let rest = &source.text[at + 3..];
            let end =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".-:@".contains(c))).unwrap_or(rest.len());
            let host = rest[..end].trim_end_matches(['.', ':']);
            if host.is_empty() || HOSTS.contains(&host) {
                continue;
            }
            let what = format!("a link to `{host}`, which is not in HOSTS (tests/tidy/addresses.rs)");
            out.push(Violation::new(RULE, &source.path, source.line(at), what));
        }
        for (left, right) in FOLDERS {
            let folder = format!("{left}{right}");
            // Part of a longer path is another folder: `target/` of a checkout may be anywhere.
            let alone =
                |at: &usize| !source.text[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '.');
            for at in source.text.match_indices(&folder).map(|(at, _)| at).filter(alone) {
                let what = format!("a path of one machine, `{folder}`");
                out.push(Violation::new(RULE, &source.path, source.line(at), what));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&[Source::new(path, text)]).len()
    }

    #[test]
    fn foreign_hosts_are_found() {
        let link = |host: &str| format!("see https:{}{host}/x", "//");
        assert_eq!(count("README.md", &link("mirror.example")), 1);
        assert_eq!(count(".ci/run", &link("10.0.0.1:8080")), 1);
        assert_eq!(count("Cargo.lock", &format!("source = \"registry+{}\"", &link("github.com")[4..])), 0);
    }

    #[test]
    fn folders_of_a_machine_are_found() {
        let path = |tail: &str| format!("cd {}{tail}", "/");
        assert_eq!(count("docs/x.md", &path("work/main")), 1);
        assert_eq!(count("src/x.rs", &format!("// {}", path("home/me"))), 1);
        assert_eq!(count("docs/x.md", "network/main, team/work/x"), 0);
    }
}
