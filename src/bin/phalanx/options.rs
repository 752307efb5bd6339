//! Reads a subcommand's options: `--name value`, flags, positional words, and what follows `--`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::str::FromStr;

/// What an option takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A value.
    Value,
    /// Nothing.
    Flag,
}

/// One option: its name without dashes, what it takes, what it does.
pub type Option_ = (&'static str, Takes, &'static str);

/// Options as given.
pub struct Options {
    values: BTreeMap<&'static str, String>,
    /// Words that are no options.
    pub words: Vec<String>,
    /// Everything after `--`.
    pub rest: Vec<OsString>,
}

/// Parses `args`; `Ok(None)`: help was asked for and printed. Nothing may follow `--`.
pub fn parse(usage: &str, known: &[Option_], args: Vec<OsString>) -> Result<Option<Options>, String> {
    let options = parse_with_command(usage, known, args)?;
    if let Some(word) = options.as_ref().and_then(|o| o.rest.first()) {
        let word = word.display();
        return Err(format!("`{word}` after `--`: this command starts no program of yours; usage: {usage}"));
    }
    Ok(options)
}

/// As [`parse`], for a command that starts what follows `--`.
pub fn parse_with_command(
    usage: &str,
    known: &[Option_],
    args: Vec<OsString>,
) -> Result<Option<Options>, String> {
    let mut options = Options { values: BTreeMap::new(), words: Vec::new(), rest: Vec::new() };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        if text == "--" {
            options.rest = args.collect();
            break;
        }
        if text == "--help" || text == "-h" {
            println!("usage: {usage}\n");
            for (name, takes, meaning) in known {
                let dashes = if name.len() == 1 { "-" } else { "--" };
                let value = if *takes == Takes::Value { " V" } else { "" };
                println!("  {:<22} {meaning}", format!("{dashes}{name}{value}"));
            }
            return Ok(None);
        }
        let Some((name, inline)) = split(&text) else {
            options.words.push(text);
            continue;
        };
        let Some((name, takes, _)) = known.iter().find(|(n, ..)| *n == name) else {
            return Err(format!("`{text}` is no option here; usage: {usage}"));
        };
        let value = match (takes, inline) {
            (Takes::Flag, None) => String::new(),
            (Takes::Flag, Some(_)) => return Err(format!("--{name} takes no value")),
            (Takes::Value, Some(v)) => v.to_owned(),
            (Takes::Value, None) => match args.next() {
                Some(v) => v.to_string_lossy().into_owned(),
                None => return Err(format!("--{name} needs a value; usage: {usage}")),
            },
        };
        options.values.insert(name, value);
    }
    Ok(Some(options))
}

/// Name and value of `--name=value`, `-name=value` and the same without a value; `None`: it is no option.
pub fn split(text: &str) -> Option<(&str, Option<&str>)> {
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    Some(match name.split_once('=') {
        Some((name, value)) if !name.is_empty() => (name, Some(value)),
        Some(_) | None => (name, None),
    })
}

impl Options {
    /// Whether a flag was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// This one option, if it was given.
    pub fn only(&self, name: &str) -> Self {
        let values = self.values.iter().filter(|(n, _)| **n == name).map(|(n, v)| (*n, v.clone())).collect();
        Self { values, words: Vec::new(), rest: Vec::new() }
    }

    /// An option's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// An option's value, or a default.
    pub fn get<V: FromStr>(&self, name: &str, default: V) -> Result<V, String>
    where
        V::Err: std::fmt::Display,
    {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|cause| {
            let dashes = if name.len() == 1 { "-" } else { "--" };
            match wanted::<V>() {
                Some(wanted) => format!("{dashes}{name} {text}: write {wanted}"),
                None => format!("{dashes}{name} {text}: {cause}"),
            }
        })
    }

    /// A number of bytes: plain, or with K, M, G for powers of 1024.
    pub fn bytes(&self, name: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.text(name) else { return Ok(default) };
        let trimmed = text.trim_end_matches("iB").trim_end_matches('B');
        let (digits, unit) = match trimmed.chars().last() {
            Some('k' | 'K') => (&trimmed[..trimmed.len() - 1], 1u64 << 10),
            Some('m' | 'M') => (&trimmed[..trimmed.len() - 1], 1 << 20),
            Some('g' | 'G') => (&trimmed[..trimmed.len() - 1], 1 << 30),
            _ => (trimmed, 1),
        };
        let number: u64 =
            digits.parse().map_err(|_| format!("--{name} {text}: write bytes, as in 65536, 64K or 16M"))?;
        number.checked_mul(unit).ok_or_else(|| format!("--{name} {text} is too large"))
    }
}

/// What to write for a type whose own errors do not say.
fn wanted<V>() -> Option<String> {
    let whole = |max: u64| Some(format!("a whole number from 0 to {max}"));
    match std::any::type_name::<V>() {
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        "u64" | "usize" => whole(u64::MAX),
        "f64" => Some("a number, as in 0.5".to_owned()),
        name if name == std::any::type_name::<std::net::SocketAddr>() => {
            Some("ADDRESS:PORT, as in 127.0.0.1:4711".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Option_] =
        &[("kills", Takes::Value, ""), ("n", Takes::Value, ""), ("json", Takes::Flag, "")];

    fn parsed(words: &[&str]) -> Result<Options, String> {
        parse("phalanx x", KNOWN, words.iter().map(OsString::from).collect()).map(Option::unwrap)
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        let options = parsed(&["--kills", "x", "-n=-1"]).unwrap();
        let kills = options.get("kills", 1u32).unwrap_err();
        assert_eq!(kills, "--kills x: write a whole number from 0 to 4294967295");
        assert!(options.get("n", 1u64).unwrap_err().starts_with("-n -1: write a whole number"));
        assert_eq!(options.get("kills", 0.5).unwrap_err(), "--kills x: write a number, as in 0.5");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(options.get("kills", address).unwrap_err().contains("ADDRESS:PORT"));
        let policy = options.get("kills", phalanx::core::policy::Policy::Abort).unwrap_err();
        assert!(policy.contains("use one of: replace, shrink, abort"), "{policy}");
    }

    #[test]
    fn what_follows_two_dashes_is_a_command_or_refused() {
        let extra = parsed(&["--json", "--", "extra"]).err().unwrap();
        assert!(extra.starts_with("`extra` after `--`"), "{extra}");
        assert!(parsed(&["--json", "--"]).is_ok());
        let args = ["--", "true", "--json"].iter().map(OsString::from).collect();
        let options = parse_with_command("x", KNOWN, args).unwrap().unwrap();
        assert_eq!((options.rest.len(), options.has("json")), (2, false));
    }
}
