//! How long things may get: files, functions, lines.

use crate::source::{Source, Violation, braces};

const RULE: &str = "sizes";
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 120;

pub fn check(sources: &[&Source]) -> Vec<Violation> {
    let mut out = Vec::new();
    for source in sources {
        let mut add = |line, what| out.push(Violation::new(RULE, &source.path, line, what));
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            add(1, format!("{lines} lines, at most {FILE_LINES_MAX}; split by state, table or thing"));
        }
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS_MAX {
                add(index + 1, format!("line of {columns} columns, at most {LINE_COLUMNS_MAX}"));
            }
        }
        for (at, name, lines) in functions(source) {
            if lines > FUNCTION_LINES_MAX {
                let what = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}");
                add(source.line(at), what);
            }
        }
    }
    out
}

/// Every function with a body: where it starts, its name, its lines.
fn functions(source: &Source) -> Vec<(usize, &str, usize)> {
    let words = source.words();
    let mut out = Vec::new();
    for (i, (at, word)) in words.iter().enumerate() {
        // A type `fn(u32)` has no name.
        let named = source.code[at + word.len()..].starts_with(' ');
        if *word == "fn"
            && named
            && let Some((_, name)) = words.get(i + 1)
            && let Some(body) = braces(&source.code, *at)
        {
            out.push((*at, *name, source.line(body.end) - source.line(*at) + 1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&[&Source::new("src/x.rs", text)]).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(found(&"//\n".repeat(600)).len(), 0);
        assert!(found(&"//\n".repeat(601))[0].contains("601 lines"));
    }

    #[test]
    fn a_long_line_is_found_and_counted_in_characters() {
        assert_eq!(found(&"é".repeat(120)).len(), 0);
        assert!(found(&"x".repeat(121))[0].contains("121 columns"));
    }

    #[test]
    fn a_long_function_is_found_also_behind_a_where_clause() {
        let head = "fn f<T>(x: [u8; 3]) -> T\nwhere\n    T: Copy,\n{\n";
        let of = |body: usize| format!("{head}{}}}\n", "g();\n".repeat(body));
        assert_eq!(found(&of(65)).len(), 0);
        assert!(found(&of(66))[0].contains("`f` has 71 lines"), "{:?}", found(&of(66)));
        assert_eq!(found("trait T { fn f(&self); fn g(); }").len(), 0);
    }
}
