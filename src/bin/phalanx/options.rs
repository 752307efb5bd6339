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

/// Parses `args`; `Ok(None)`: help was asked for and printed.
pub fn parse(usage: &str, known: &[Option_], args: Vec<OsString>) -> Result<Option<Options>, String> {
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
        let Some(name) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            options.words.push(text);
            continue;
        };
        let (name, inline) = match name.split_once('=') {
            Some((n, v)) if !n.is_empty() => (n, Some(v.to_owned())),
            _ => (name, None),
        };
        let Some((name, takes, _)) = known.iter().find(|(n, ..)| *n == name) else {
            return Err(format!("`{text}` is no option here; usage: {usage}"));
        };
        let value = match (takes, inline) {
            (Takes::Flag, None) => String::new(),
            (Takes::Flag, Some(_)) => return Err(format!("--{name} takes no value")),
            (Takes::Value, Some(v)) => v,
            (Takes::Value, None) => match args.next() {
                Some(v) => v.to_string_lossy().into_owned(),
                None => return Err(format!("--{name} needs a value; usage: {usage}")),
            },
        };
        options.values.insert(name, value);
    }
    Ok(Some(options))
}

impl Options {
    /// Whether a flag was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
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
        self.text(name).map_or(Ok(default), |text| text.parse().map_err(|e| format!("--{name} {text}: {e}")))
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
