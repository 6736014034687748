//! Every setting: variable, default, meaning, bounds; checked as a whole before anything is opened.
//!
//! A value is looked up as flag, in the environment, in `.env`, as default, in this order; empty
//! counts as not set. [`SETTINGS`] is the one table of them: to add a setting is a row there, a
//! field in its group and the line that reads it.
//!
//! A command names what it needs by a type: [`Config`] for all, [`DatabaseCommandConfig`],
//! [`KeysCommandConfig`], [`DevConfig`], [`LogConfig`]. [`Flags`] of that type are its flags:
//!
//! ```no_run
//! use clap::Parser;
//! use token_vendor::config::{Config, Flags, Source};
//!
//! #[derive(Parser)]
//! struct Serve {
//!     #[command(flatten)]
//!     settings: Flags<Config>,
//! }
//!
//! let config = Serve::parse().settings.load(Source::of_process())?;
//! # Ok::<(), token_vendor::config::ConfigError>(())
//! ```

mod example;
mod flags;
mod groups;
mod mask;
mod reader;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;

pub use example::render_env_example;
pub use flags::Flags;
pub use groups::{
    DatabaseConfig, HttpConfig, KeysConfig, LogConfig, LogFormat, TlsFiles, TokenKey,
    UpstreamConfig, VendingConfig,
};
pub use reader::Reader;
pub use settings::{Group, Kind, Presence, SETTINGS, Setting};
pub use source::{Origin, Source};
pub(crate) use values::is_key_id;

/// What a command needs of the settings.
pub trait CommandConfig: Sized {
    /// Whether the setting matters to the command; those that do and are no secret are its flags.
    fn concerns(setting: &Setting) -> bool;

    /// Reads what it needs; none only where the reader noted a mistake.
    fn read(reader: &mut Reader<'_>) -> Option<Self>;

    /// Looks up and checks everything that it needs, and reports every mistake.
    fn load(source: &Source) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(source);
        let config = Self::read(&mut reader);
        let problems = reader.into_problems();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError(problems)),
        }
    }
}

/// Every setting, for `serve` and `check`.
#[derive(Debug)]
pub struct Config {
    /// Postgres.
    pub database: DatabaseConfig,
    /// The bank-token provider.
    pub upstream: UpstreamConfig,
    /// Reuse of tokens.
    pub vending: VendingConfig,
    /// Encryption at rest and fingerprints.
    pub keys: KeysConfig,
    /// The service's own HTTP side.
    pub http: HttpConfig,
    /// Logs.
    pub log: LogConfig,
    listed: Vec<reader::Listed>,
}

impl Config {
    /// A line `NAME=value  # source: environment` for each setting, secrets masked.
    pub fn render_masked(&self) -> String {
        self.listed.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl CommandConfig for Config {
    fn concerns(_: &Setting) -> bool {
        true
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let database = DatabaseConfig::read(reader);
        let upstream = UpstreamConfig::read(reader);
        let vending = VendingConfig::read(reader);
        let keys = KeysConfig::read(reader);
        let http = HttpConfig::read(reader);
        let log = LogConfig::read(reader);
        Some(Self {
            database: database?,
            upstream: upstream?,
            vending: vending?,
            keys: keys?,
            http: http?,
            log: log?,
            listed: reader.listed(),
        })
    }
}

/// Every setting, for `dev`, which gives itself addresses, database, credentials and keys: load it
/// from [`Source::for_dev`].
#[derive(Debug)]
pub struct DevConfig(pub Config);

impl CommandConfig for DevConfig {
    fn concerns(setting: &Setting) -> bool {
        !source::is_own_of_dev(setting)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Config::read(reader).map(Self)
    }
}

/// What a command needs that works on the database alone, such as `migrate` and `client`.
#[derive(Debug)]
pub struct DatabaseCommandConfig {
    /// Postgres.
    pub database: DatabaseConfig,
    /// Logs.
    pub log: LogConfig,
}

impl CommandConfig for DatabaseCommandConfig {
    fn concerns(setting: &Setting) -> bool {
        matches!(setting.group, Group::Database | Group::Log)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let database = DatabaseConfig::read(reader);
        let log = LogConfig::read(reader);
        Some(Self {
            database: database?,
            log: log?,
        })
    }
}

/// What a command needs that works on the stored tokens, such as `keys rotate`.
#[derive(Debug)]
pub struct KeysCommandConfig {
    /// Postgres.
    pub database: DatabaseConfig,
    /// Encryption at rest and fingerprints.
    pub keys: KeysConfig,
    /// Logs.
    pub log: LogConfig,
}

impl CommandConfig for KeysCommandConfig {
    fn concerns(setting: &Setting) -> bool {
        DatabaseCommandConfig::concerns(setting) || setting.group == Group::Keys
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let database = DatabaseConfig::read(reader);
        let keys = KeysConfig::read(reader);
        let log = LogConfig::read(reader);
        Some(Self {
            database: database?,
            keys: keys?,
            log: log?,
        })
    }
}

/// For a command that needs nothing else, such as `sandbox`.
impl CommandConfig for LogConfig {
    fn concerns(setting: &Setting) -> bool {
        setting.group == Group::Log
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        LogConfig::read(reader)
    }
}

/// One mistake in the configuration. It never quotes a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The variable that is wrong, or `.env`.
    pub variable: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    fn new(variable: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            variable: variable.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// Every mistake in the configuration, one a line.
#[derive(Debug)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let end_of_last = if index == 0 { "" } else { "\n" };
            write!(f, "{end_of_last}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
