//! The only reader of environment variables, and the defaults they change.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A variable that Phalanx reads.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it sets.
    pub meaning: &'static str,
}

/// Every variable; any other `PHALANX_*` is an error.
pub const VARIABLES: &[Variable] = &[
    Variable { name: "PHALANX_COORDINATOR", meaning: "host:port of the coordinator" },
    Variable { name: "PHALANX_JOB_KEY", meaning: "the secret of the job, 64 hexadecimal digits" },
    Variable { name: "PHALANX_RANK", meaning: "the seat this process asks for; unset: it is a spare" },
    Variable {
        name: "PHALANX_WORLD_SIZE",
        meaning: "ranks of the world, for programs that want to know early",
    },
    Variable {
        name: "PHALANX_TRANSPORT",
        meaning: "shm or tcp: forces one; unset: shm inside a host, tcp between",
    },
    Variable { name: "PHALANX_DOMAIN", meaning: "rank or host: what dies together" },
    Variable { name: "PHALANX_SOCKET_IFNAME", meaning: "network interface of the TCP data listener" },
    Variable { name: "PHALANX_BIND", meaning: "address of the TCP data listener" },
    Variable { name: "PHALANX_PORTS", meaning: "first-last: ports of the TCP data listener" },
    Variable { name: "PHALANX_PARENT_PID", meaning: "set by the launcher: end with this process" },
    Variable { name: "PHALANX_LOG", meaning: "level of the log: error, warn, info, debug, trace" },
];

/// A variable that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A `PHALANX_*` name that nothing reads: most likely a typing error.
    #[error("{name} is not a variable of Phalanx; known are: {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A value that means nothing.
    #[error("{name}={value} cannot be used: {why}")]
    Bad {
        /// The variable.
        name: &'static str,
        /// Its value (not shown for the key).
        value: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A variable that must be set.
    #[error("{name} is not set ({meaning}); start the program with `phalanx run`, or set it")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What it sets.
        meaning: &'static str,
    },
}

/// Which transport carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// Shared memory inside a host, TCP between hosts.
    #[default]
    Auto,
    /// Shared memory only.
    Shm,
    /// TCP only.
    Tcp,
}

impl TransportChoice {
    /// The name as commands and variables spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
        }
    }
}

impl std::str::FromStr for TransportChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "shm" => Ok(Self::Shm),
            "tcp" => Ok(Self::Tcp),
            other => Err(format!("`{other}` is no transport; use shm, tcp or auto")),
        }
    }
}

/// What dies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DomainChoice {
    /// Each rank by itself.
    #[default]
    Rank,
    /// All ranks of a host.
    Host,
}

impl std::str::FromStr for DomainChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rank" => Ok(Self::Rank),
            "host" => Ok(Self::Host),
            other => Err(format!("`{other}` is no failure domain; use rank or host")),
        }
    }
}

/// Everything a process needs to take part.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// The job key.
    pub key: crate::auth::JobKey,
    /// The seat asked for; `None`: a spare.
    pub rank: Option<u32>,
    /// Which transport.
    pub transport: TransportChoice,
    /// What dies together.
    pub domain: DomainChoice,
    /// Interface of the TCP data listener.
    pub interface: Option<String>,
    /// Address of the TCP data listener.
    pub bind: Option<IpAddr>,
    /// Ports of the TCP data listener; `0..=0`: any.
    pub ports: RangeInclusive<u16>,
    /// End with this process.
    pub parent: Option<u32>,
}

impl Config {
    /// The defaults, for a coordinator and a key.
    #[must_use]
    pub fn new(coordinator: String, key: crate::auth::JobKey) -> Self {
        Self {
            coordinator,
            key,
            rank: None,
            transport: TransportChoice::Auto,
            domain: DomainChoice::Rank,
            interface: None,
            bind: None,
            ports: 0..=0,
            parent: None,
        }
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// When a variable is missing, unknown or cannot be used.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars())
    }

    /// Reads variables given as pairs; others than `PHALANX_*` are ignored.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_vars(vars: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let vars: std::collections::BTreeMap<String, String> =
            vars.filter(|(name, _)| name.starts_with("PHALANX_")).collect();
        if let Some(name) = vars.keys().find(|name| VARIABLES.iter().all(|v| v.name != name.as_str())) {
            let known = VARIABLES.iter().map(|v| v.name).collect::<Vec<_>>().join(", ");
            return Err(ConfigError::Unknown { name: name.clone(), known });
        }
        let must = |name: &'static str| {
            vars.get(name).cloned().ok_or_else(|| {
                let meaning = VARIABLES.iter().find(|v| v.name == name).map_or("", |v| v.meaning);
                ConfigError::Missing { name, meaning }
            })
        };
        let coordinator = must("PHALANX_COORDINATOR")?;
        let key = parsed_key(&must("PHALANX_JOB_KEY")?)?;
        let mut config = Self::new(coordinator, key);
        config.rank = parsed(&vars, "PHALANX_RANK")?;
        config.transport = parsed(&vars, "PHALANX_TRANSPORT")?.unwrap_or_default();
        config.domain = parsed(&vars, "PHALANX_DOMAIN")?.unwrap_or_default();
        config.interface = vars.get("PHALANX_SOCKET_IFNAME").cloned();
        config.bind = parsed(&vars, "PHALANX_BIND")?;
        config.parent = parsed(&vars, "PHALANX_PARENT_PID")?;
        // The process itself decides what it logs; a level that is none is a mistake all the same.
        parsed::<LogLevel>(&vars, "PHALANX_LOG")?;
        if let Some(text) = vars.get("PHALANX_PORTS") {
            let ends = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let range = ends.map(|(a, b): (u16, u16)| a..=b).filter(|r| !r.is_empty());
            config.ports = range.ok_or_else(|| ConfigError::Bad {
                name: "PHALANX_PORTS",
                value: text.clone(),
                why: "write first-last, as in 20000-20100".to_owned(),
            })?;
        }
        Ok(config)
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// What ends the process.
    #[default]
    Error,
    /// And what may.
    Warn,
    /// And what the world does.
    Info,
    /// And what helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Every level.
    pub const ALL: &'static [Self] = &[Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The name as the variable spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
        let level = Self::ALL.iter().copied().find(|level| level.name() == text);
        level.ok_or_else(|| format!("it is no level of the log; use one of {}", known()))
    }
}

/// The level of the log, from `PHALANX_LOG`.
///
/// # Errors
/// When it is set to what is no level.
pub fn log_level() -> Result<LogLevel, ConfigError> {
    Ok(variable("PHALANX_LOG")?.unwrap_or_default())
}

/// The job key, from `PHALANX_JOB_KEY`; `None`: it is not set.
///
/// # Errors
/// When it is set to what is no key.
pub fn job_key() -> Result<Option<crate::auth::JobKey>, ConfigError> {
    std::env::var("PHALANX_JOB_KEY").ok().map(|text| parsed_key(&text)).transpose()
}

/// The transport of links between ranks that this process starts on this machine: `given` to them, else what
/// `PHALANX_TRANSPORT` says, which they inherit, else shared memory. Never `Auto`.
///
/// # Errors
/// When the variable that counts is set to what is no transport.
pub fn transport_here(given: Option<TransportChoice>) -> Result<TransportChoice, ConfigError> {
    among_neighbours(given, variable("PHALANX_TRANSPORT"))
}

fn among_neighbours(
    given: Option<TransportChoice>,
    variable: Result<Option<TransportChoice>, ConfigError>,
) -> Result<TransportChoice, ConfigError> {
    let choice = match given {
        Some(choice) => choice,
        None => variable?.unwrap_or_default(),
    };
    // Inside a host, `Auto` is shared memory; a rank that cannot have it does not start.
    Ok(if choice == TransportChoice::Auto { TransportChoice::Shm } else { choice })
}

fn parsed_key(text: &str) -> Result<crate::auth::JobKey, ConfigError> {
    text.parse().map_err(|e: crate::auth::AuthError| ConfigError::Bad {
        name: "PHALANX_JOB_KEY",
        value: "(secret)".to_owned(),
        why: e.to_string(),
    })
}

/// One variable of this process; `None`: it is not set.
fn variable<V: std::str::FromStr>(name: &'static str) -> Result<Option<V>, ConfigError>
where
    V::Err: std::fmt::Display,
{
    let text = std::env::var(name).ok();
    parsed(&text.map(|text| (name.to_owned(), text)).into_iter().collect(), name)
}

fn parsed<V: std::str::FromStr>(
    vars: &std::collections::BTreeMap<String, String>,
    name: &'static str,
) -> Result<Option<V>, ConfigError>
where
    V::Err: std::fmt::Display,
{
    let bad =
        |value: &String, why: V::Err| ConfigError::Bad { name, value: value.clone(), why: why.to_string() };
    vars.get(name).map(|value| value.parse().map_err(|why| bad(value, why))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let key = crate::auth::JobKey::from_bytes([7; 32]).to_hex();
        let base = [("PHALANX_COORDINATOR", "h:1"), ("PHALANX_JOB_KEY", key.as_str()), ("HOME", "/")];
        Config::from_vars(base.iter().chain(extra).map(|(a, b)| ((*a).to_owned(), (*b).to_owned())))
    }

    #[test]
    fn what_is_given_counts_before_the_variable_and_the_variable_before_the_default() {
        let with = |given, var: Option<&str>| {
            let vars = var.map(|text| ("PHALANX_TRANSPORT".to_owned(), text.to_owned()));
            among_neighbours(given, parsed(&vars.into_iter().collect(), "PHALANX_TRANSPORT"))
        };
        use TransportChoice::{Auto, Shm, Tcp};
        assert_eq!((with(None, None), with(None, Some("tcp"))), (Ok(Shm), Ok(Tcp)));
        assert_eq!((with(Some(Shm), Some("tcp")), with(Some(Auto), Some("tcp"))), (Ok(Shm), Ok(Shm)));
        assert_eq!((with(Some(Tcp), None), with(None, Some("auto"))), (Ok(Tcp), Ok(Shm)));
        assert!(with(None, Some("pigeon")).unwrap_err().to_string().contains("use shm, tcp or auto"));
    }

    #[test]
    fn values_are_read_and_bad_ones_explained() {
        let config =
            read(&[("PHALANX_RANK", "3"), ("PHALANX_TRANSPORT", "tcp"), ("PHALANX_PORTS", "5-9")]).unwrap();
        assert_eq!((config.rank, config.transport, config.ports), (Some(3), TransportChoice::Tcp, 5..=9));
        let unknown = read(&[("PHALANX_RNAK", "3")]).unwrap_err().to_string();
        assert!(
            unknown.contains("PHALANX_RNAK is not a variable") && unknown.contains("PHALANX_RANK"),
            "{unknown}"
        );
        let bad = read(&[("PHALANX_TRANSPORT", "rdma")]).unwrap_err().to_string();
        assert!(bad.contains("use shm, tcp or auto"), "{bad}");
        assert!(read(&[("PHALANX_PORTS", "9-5")]).is_err());
        assert!(read(&[("PHALANX_LOG", "debug")]).is_ok());
        let loud = read(&[("PHALANX_LOG", "lauter")]).unwrap_err().to_string();
        assert!(loud.contains("PHALANX_LOG=lauter") && loud.contains("error, warn, info"), "{loud}");
        let missing = Config::from_vars(std::iter::empty()).unwrap_err().to_string();
        assert!(missing.contains("PHALANX_COORDINATOR is not set"), "{missing}");
    }
}
