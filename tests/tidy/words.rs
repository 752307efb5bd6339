//! One word per concept: the last column of docs/glossary.md, and headers that say what a file stands on.

use crate::source::{Source, Violation};

const RULE: &str = "words";

/// Identifier parts that mean something we have another word for, and that word.
const BANNED: &[(&str, &str)] = &[
    ("node", "rank"),
    ("worker", "rank"),
    ("peer_id", "rank or member"),
    ("num_ranks", "world_size"),
    ("nranks", "world_size"),
    ("group_size", "world_size"),
    ("process_id", "member"),
    ("standby", "spare"),
    ("hot_backup", "spare"),
    ("process_group", "communicator"),
    ("schedule", "plan"),
    ("sub_chunk", "chunk"),
    ("fragment", "chunk or segment"),
    ("bucket", "slot"),
    ("mr", "region"),
    ("buffer_handle", "lease"),
    ("incarnation", "epoch"),
    ("membership_list", "view"),
    ("cluster_state", "view"),
    ("reconfigure", "decide"),
    ("failover", "reseat"),
    ("rejoin", "reseat"),
    ("tracker", "ledger"),
    ("state_table", "ledger"),
    ("callback", "command, message, completion, action or event"),
    ("manager", "driver, transport or device"),
    ("handler", "driver, transport or device"),
    ("gbps", "*_gb_per_s"),
    ("throughput", "algbw or busbw"),
    ("fixture", "scenario"),
    ("validator", "checker"),
    ("allreduce", "all_reduce"),
];

/// Banned parts that are right where they stand: a whole identifier that means the thing itself.
const ALLOWED: &[&str] = &["numa_node", "kill_process_group"];

/// Names of modules without a noun.
const NOUNLESS: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

pub fn check(sources: &[&Source]) -> Vec<Violation> {
    sources.iter().flat_map(|s| banned(s).into_iter().chain(nounless(s)).chain(headers(s))).collect()
}

/// The words of an identifier, in lower case and between underscores: `peerId` and `PEER_ID` are `_peer_id_`.
fn parts(identifier: &str) -> String {
    let mut out = String::from("_");
    let mut last = '_';
    for c in identifier.chars() {
        if c.is_uppercase() && (last.is_lowercase() || last.is_ascii_digit()) {
            out.push('_');
        }
        out.extend(c.to_lowercase());
        last = c;
    }
    out + "_"
}

fn banned(source: &Source) -> Vec<Violation> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (at, word) in source.words() {
        let parts = parts(word);
        if ALLOWED.contains(&word) {
            continue;
        }
        for (bad, good) in BANNED {
            if parts.contains(&format!("_{bad}_")) || parts.contains(&format!("_{bad}s_")) {
                let what = format!("`{word}`: the word for `{bad}` here is {good} (docs/glossary.md)");
                out.push(Violation::new(RULE, &source.path, source.line(at), what));
            }
        }
    }
    out
}

fn nounless(source: &Source) -> Option<Violation> {
    let names = source.path.split('/').map(|p| p.strip_suffix(".rs").unwrap_or(p));
    let inline = source.words().windows(2).filter(|w| w[0].1 == "mod").map(|w| w[1].1).collect::<Vec<_>>();
    let name = names.chain(inline).find(|n| NOUNLESS.contains(n))?;
    let what = format!("a module `{name}`: put it where its noun lives, or inline it");
    Some(Violation::new(RULE, &source.path, 1, what))
}

fn headers(source: &Source) -> Vec<Violation> {
    let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    if file == "mod.rs" || source.is_test() {
        return Vec::new();
    }
    let header: Vec<&str> = source.text.lines().map_while(|l| l.strip_prefix("//!")).collect();
    let missing = |what: &str| Violation::new(RULE, &source.path, 1, what.to_owned());
    let mut out = Vec::new();
    match folder {
        "src/core/algorithms" => {
            for field in ["Source:", "Cost:"] {
                if !header.iter().any(|l| l.trim_start().starts_with(field) && l.trim().len() > field.len()) {
                    out.push(missing(&format!("the header of an algorithm has a line `{field}`")));
                }
            }
        }
        "src/sim/checkers" => {
            let first = header.first().map_or("", |l| l.trim_start());
            let numbered =
                first.strip_prefix('I').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if !numbered {
                out.push(missing(
                    "the header of a checker begins with the number of its invariant, as in `I1:`",
                ));
            }
        }
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&[&Source::new(path, text)]).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn banned_words_are_found_in_every_spelling() {
        for text in ["let nodes = 3;", "struct WorkerPool;", "const PEER_ID: u8 = 0;", "fn on_callback() {}"]
        {
            assert_eq!(found("src/x.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn other_words_comments_and_other_folders_pass() {
        for text in
            ["let numa_node = 0;", "// a node", "fn handle_command() {}", "let unscheduled = \"node\";"]
        {
            assert!(found("src/x.rs", text).is_empty(), "{text}");
        }
        assert!(found("tests/x.rs", "let node = 1;").is_empty());
    }

    #[test]
    fn modules_without_a_noun_are_found() {
        assert_eq!(found("src/util.rs", "").len(), 1);
        assert_eq!(found("tests/common/mod.rs", "").len(), 1);
        assert_eq!(found("src/x.rs", "mod helpers { }").len(), 1);
        assert_eq!(found("src/uncommon.rs", "").len(), 0);
    }

    #[test]
    fn headers_that_miss_a_line_are_found() {
        let path = "src/core/algorithms/x.rs";
        assert_eq!(found(path, "//! X.\n//!\n//! Source: a paper.\n//! Cost:   O(1).\n").len(), 0);
        assert_eq!(found(path, "//! X.\n//! Source: a paper.\n\n//! Cost: O(1).\n").len(), 1);
        assert_eq!(found(path, "//! Source:\n//! Cost:\n").len(), 2);
        assert_eq!(found("src/sim/checkers/x.rs", "//! What is checked.\n").len(), 1);
        assert_eq!(found("src/sim/checkers/x.rs", "//! I3 and I4: what is checked.\n").len(), 0);
    }

    #[test]
    fn the_glossary_lists_every_banned_word() {
        let glossary = include_str!("../../docs/glossary.md");
        for (bad, _) in BANNED {
            assert!(glossary.contains(&format!("`{bad}`")), "docs/glossary.md does not ban `{bad}`");
        }
    }
}
