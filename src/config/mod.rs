//! Every setting: variable, default, meaning; checked as a whole before anything is opened.
//!
//! A value is looked up as flag, in the environment, in `.env`, as default, in this order; empty
//! counts as not set. To add a setting is a row in the table of `settings.rs`.
//!
//! A command names what it needs by a type that is [`CommandConfig`]: [`Config`] is everything.
//! `Flags<Config>`, flattened into its arguments, are its flags and load it.

mod example;
mod flags;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod tls;
mod values;

pub use example::render_env_example;
pub use flags::Flags;
pub use settings::{
    CleanupConfig, Config, DatabaseConfig, HttpConfig, KeysConfig, LogConfig, RetentionConfig,
    SETTINGS, TracesConfig, UpstreamConfig, VendingConfig,
};
pub use source::Source;
pub use values::{LogFormat, TokenKey, is_key_id};

/// One setting: an environment variable and, unless it is secret, a flag.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable, such as `LISTEN_ADDR`.
    pub variable: &'static str,
    /// The heading over it, the same for all settings of its part of the program.
    pub group: &'static str,
    /// Who may see its value.
    pub secrecy: Secrecy,
    /// The value where none is given: none where one is required, empty where it may be absent.
    pub default: Option<&'static str>,
    /// What it means.
    pub help: &'static str,
}

/// Who may see a setting's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// Everybody; only such a setting is a flag.
    Public,
    /// Nobody.
    Secret,
    /// Everybody, the password in it left out.
    SecretUrl,
}

impl Setting {
    /// `TOKEN_KEYS_FILE` for `TOKEN_KEYS`; obeyed for secrets only.
    fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// Whether `dev` gives itself this setting, whatever the environment says.
    fn is_own_of_dev(&self) -> bool {
        const PUBLIC: [&str; 5] = [
            "UPSTREAM_BASE_URL",
            "UPSTREAM_ALLOW_HTTP",
            "LISTEN_ADDR",
            "TLS_CERT",
            "TLS_KEY",
        ];
        self.secrecy != Secrecy::Public || PUBLIC.contains(&self.variable)
    }
}

/// Every mistake in the configuration, one a line. It never quotes a secret.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// What a command needs of the settings.
pub trait CommandConfig: Sized {
    /// Whether the setting matters to the command; those that do and are no secret are its flags.
    fn concerns(setting: &Setting) -> bool;

    /// Reads what it needs; none only where the source noted a mistake.
    fn read(source: &mut Source) -> Option<Self>;

    /// Looks up and checks everything that it needs, and reports every mistake.
    fn load(mut source: Source) -> Result<Self, ConfigError> {
        match Self::read(&mut source) {
            Some(config) if source.problems.is_empty() => Ok(config),
            _ => Err(ConfigError(source.problems)),
        }
    }
}

/// Every setting, for `dev`, which gives itself addresses, database, credentials and keys: load it
/// from [`Source::for_dev`].
#[derive(Debug)]
pub struct DevConfig(pub Config);

impl CommandConfig for DevConfig {
    fn concerns(setting: &Setting) -> bool {
        !setting.is_own_of_dev()
    }

    fn read(source: &mut Source) -> Option<Self> {
        Config::read(source).map(Self)
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
        DatabaseConfig::concerns(setting) || LogConfig::concerns(setting)
    }

    fn read(source: &mut Source) -> Option<Self> {
        let (database, log) = (DatabaseConfig::read(source), LogConfig::read(source));
        Some(Self {
            database: database?,
            log: log?,
        })
    }
}

/// What `cleanup` needs.
#[derive(Debug)]
pub struct CleanupCommandConfig {
    /// Postgres.
    pub database: DatabaseConfig,
    /// How long records are kept.
    pub retention: RetentionConfig,
    /// Logs.
    pub log: LogConfig,
}

impl CommandConfig for CleanupCommandConfig {
    fn concerns(setting: &Setting) -> bool {
        DatabaseCommandConfig::concerns(setting) || RetentionConfig::concerns(setting)
    }

    fn read(source: &mut Source) -> Option<Self> {
        let database = DatabaseConfig::read(source);
        let (retention, log) = (RetentionConfig::read(source), LogConfig::read(source));
        settings::check_retention(source);
        Some(Self {
            database: database?,
            retention: retention?,
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
        DatabaseCommandConfig::concerns(setting) || KeysConfig::concerns(setting)
    }

    fn read(source: &mut Source) -> Option<Self> {
        let database = DatabaseConfig::read(source);
        let (keys, log) = (KeysConfig::read(source), LogConfig::read(source));
        Some(Self {
            database: database?,
            keys: keys?,
            log: log?,
        })
    }
}
