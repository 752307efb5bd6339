//! The rules of this repository that no compiler knows: who may name whom, what may stand where, how long things may
//! get, which words have one meaning. Each rule has a test that plants a violation and sees it found.
//!
//! A rule reads text, not types: comments and strings are blanked first (see [`source`]), so it costs nothing to run.

#[path = "tidy/addresses.rs"]
mod addresses;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/places.rs"]
mod places;
#[path = "tidy/reach.rs"]
mod reach;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use source::{Source, Violation};

/// A violation that stands for now: (rule, file, text in the message, why). One that is no longer there fails the
/// test, so the table only shrinks by itself being read.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    (
        "places",
        "tests/idle.rs",
        "it does not sleep",
        "the sleep is what is measured: ranks that call nothing, and others that wait for them",
    ),
    (
        "words",
        "src/launch/supervisor.rs",
        "`process_group`",
        "the standard library's name for the system's groups",
    ),
];

/// Every rule over every source.
fn violations(sources: &[Source]) -> Vec<Violation> {
    let rust: Vec<&Source> = sources.iter().filter(|s| s.is_rust()).collect();
    let mut found = Vec::new();
    found.extend(layers::check(&rust));
    found.extend(places::check(&rust));
    found.extend(sizes::check(&rust));
    found.extend(words::check(&rust));
    found.extend(reach::check(&rust));
    found.extend(addresses::check(sources));
    found.extend(paths::check(sources));
    found
}

/// What is neither known nor excused, and excuses nobody needs.
fn judge(found: &[Violation], known: &[(&str, &str, &str, &str)]) -> Vec<String> {
    let is =
        |k: &(&str, &str, &str, &str), v: &Violation| v.rule == k.0 && v.file == k.1 && v.what.contains(k.2);
    let new = found.iter().filter(|v| !known.iter().any(|k| is(k, v))).map(ToString::to_string);
    let stale = known.iter().filter(|k| !found.iter().any(|v| is(k, v)));
    let stale = stale.map(|k| format!("{}: [{}] `{}` is no longer there: drop it from KNOWN", k.1, k.0, k.2));
    new.chain(stale).collect()
}

#[test]
fn the_tree_keeps_its_rules() {
    let sources = source::tree(std::path::Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(sources.len() > 50, "only {} files were read: the walk is broken", sources.len());
    let wrong = judge(&violations(&sources), KNOWN);
    assert!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_excuse_covers_its_violation_and_fails_when_nothing_needs_it() {
    let found = [Violation::new("sizes", "src/a.rs", 7, "line of 130 columns".to_owned())];
    assert_eq!(judge(&found, &[]).len(), 1);
    assert!(judge(&found, &[("sizes", "src/a.rs", "130 columns", "a table")]).is_empty());
    assert_eq!(judge(&found, &[("sizes", "src/b.rs", "130 columns", "a table")]).len(), 2);
    assert!(judge(&[], &[("sizes", "src/a.rs", "130", "a table")])[0].contains("no longer there"));
}
