//! Files as the rules see them: the text, and the same text with comments and strings blanked.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// One file.
pub struct Source {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    /// The text as it is.
    pub text: String,
    /// The text with every comment, string and character literal turned to spaces; same length, same lines.
    pub code: String,
}

/// A rule that is not kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: &'static str,
    /// Where.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong and what to do instead.
    pub what: String,
}

impl Violation {
    pub fn new(rule: &'static str, file: &str, line: usize, what: String) -> Self {
        Self { rule, file: file.to_owned(), line, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.file, self.line, self.rule, self.what)
    }
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { blank(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Line of a byte offset, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// Every identifier of the code and where it starts, keywords included.
    pub fn words(&self) -> Vec<(usize, &str)> {
        words(&self.code)
    }

    /// Whether the whole file is a test: under `tests/`, or a test module with a file of its own.
    pub fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or("");
        self.path.starts_with("tests/") || name == "tests.rs" || name.ends_with("_tests.rs")
    }

    /// Byte ranges of test code: the whole of a test file, else each module behind `#[cfg(test)]` or the like.
    pub fn test_ranges(&self) -> Vec<Range<usize>> {
        if self.is_test() {
            return std::iter::once(0..self.code.len()).collect();
        }
        let mut out = Vec::new();
        for (at, _) in self.code.match_indices("#[cfg(") {
            let end = self.code[at..].find(']').map_or(self.code.len(), |i| at + i);
            let condition = &self.code[at..end];
            let tests = words(condition).iter().any(|(_, w)| *w == "test") && !condition.contains("not(test");
            let rest = self.code[end..].trim_start_matches(']').trim_start();
            if tests
                && rest.starts_with("mod ")
                && let Some(body) = braces(&self.code, end)
            {
                out.push(body);
            }
        }
        out
    }
}

/// Every identifier in `code` and where it starts. Lifetimes are identifiers, numbers are not.
pub fn words(code: &str) -> Vec<(usize, &str)> {
    let is_part = |b: u8| b == b'_' || b.is_ascii_alphanumeric() || b >= 0x80;
    let bytes = code.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        while at < bytes.len() && is_part(bytes[at]) {
            at += 1;
        }
        if at > start && !bytes[start].is_ascii_digit() {
            out.push((start, &code[start..at]));
        }
        at += usize::from(at == start);
    }
    out
}

/// The next `{ … }` at or after `from`, braces included; nothing if a `;` comes first outside brackets.
pub fn braces(code: &str, from: usize) -> Option<Range<usize>> {
    let (mut depth, mut nested, mut start) = (0, 0, None);
    for (i, b) in code.bytes().enumerate().skip(from) {
        match b {
            b'(' | b'[' if start.is_none() => nested += 1,
            b')' | b']' if start.is_none() => nested -= 1,
            b';' if start.is_none() && nested == 0 => return None,
            b'{' => {
                start.get_or_insert(i);
                depth += 1;
            }
            b'}' if start.is_some() => {
                depth -= 1;
                if depth == 0 {
                    return start.map(|s| s..i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// `text` with comments, strings and character literals turned to spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end > at {
            out[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
            at = end;
        } else if bytes[at] == b'_' || bytes[at].is_ascii_alphanumeric() {
            // The rest of a word cannot begin a literal: the `r` of `for"x"` is none.
            while at < bytes.len() && (bytes[at] == b'_' || bytes[at].is_ascii_alphanumeric()) {
                at += 1;
            }
        } else {
            at += 1;
        }
    }
    String::from_utf8(out).expect("whole literals were turned to spaces, so no character was cut")
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let prefix = [&b"br"[..], b"cr", b"b", b"c", b"r", b""].into_iter().find(|p| {
        let after = rest.get(p.len()..).unwrap_or_default();
        let raw = p.ends_with(b"r");
        rest.starts_with(p)
            && (after.first() == Some(&b'"') || raw && after.starts_with(b"#") && is_raw(after))
    });
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + block_comment(rest);
    }
    if let Some(prefix) = prefix {
        let body = &rest[prefix.len()..];
        let len = if prefix.ends_with(b"r") { raw_string(body) } else { string(body, b'"') };
        return at + prefix.len() + len;
    }
    match rest {
        [b'\'', b'\\', ..] => at + string(rest, b'\''),
        [b'\'', first, ..] => {
            // A lifetime has no closing quote after one character.
            let wide = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                0xf0.. => 4,
            };
            if rest.get(1 + wide) == Some(&b'\'') { at + wide + 2 } else { at }
        }
        _ => at,
    }
}

fn is_raw(hashes: &[u8]) -> bool {
    hashes.iter().find(|b| **b != b'#') == Some(&b'"')
}

fn raw_string(body: &[u8]) -> usize {
    let hashes = body.iter().take_while(|b| **b == b'#').count();
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let inside = &body[hashes + 1..];
    let end = inside.windows(close.len()).position(|w| w == close);
    end.map_or(body.len(), |e| hashes + 1 + e + close.len())
}

fn string(body: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < body.len() && body[at] != quote {
        at += if body[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(body.len())
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Every text file below `root`, but for what git ignores: build folders and logs.
pub fn tree(root: &Path) -> Vec<Source> {
    let mut out = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder of the tree can be listed").path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                if !(name == "target" || name == ".git") {
                    open.push(path);
                }
            } else if !name.ends_with(".log")
                && name != ".git"
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let inside = path.strip_prefix(root).expect("the walk began at the root");
                out.push(Source::new(&inside.to_string_lossy().replace('\\', "/"), &text));
            }
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_nothing_else() {
        let cases = [
            ("a // b", "a     "),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x \" y")"#, "f(        )"),
            ("f(r#\"a \" b\"#)", "f(          )"),
            ("f(b'x', '\\'', 'é')", "f(b   ,     ,     )"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("for x in br\"y\" {}", "for x in       {}"),
            ("\"//\" + x", "     + x"),
        ];
        for (text, want) in cases {
            assert_eq!(blank(text), want, "{text}");
        }
        assert_eq!(blank("a\n/* b\nc */ d").lines().count(), 3);
    }

    #[test]
    fn test_code_is_told_from_the_rest() {
        let text = "fn a() {}\n#[cfg(all(test, not(loom)))]\nmod tests {\n fn b() {}\n}\n\
                    fn c() {}\n#[cfg(test)]\nmod t;\n";
        let source = Source::new("src/x.rs", text);
        let ranges = source.test_ranges();
        assert_eq!(ranges.len(), 1);
        assert!(ranges[0].contains(&text.find("fn b").unwrap()));
        assert!(!ranges[0].contains(&text.find("fn c").unwrap()));
        assert_eq!(Source::new("tests/x.rs", text).test_ranges(), std::slice::from_ref(&(0..text.len())));
    }
}
