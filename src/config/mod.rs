//! Configuration: the settings, their sources and their validation.
//!
//! The value of a setting comes from its flag, the environment, `.env` or its default, in this
//! order. An empty value counts as not set. All settings of a command are validated before it opens
//! a file, a connection or a port. To add a setting, add a row to the table in `settings.rs`.
//!
//! A type that implements [`CommandConfig`] lists the settings of a command. [`Config`] has all of
//! them. A command flattens `Flags<Config>` into its arguments and loads the configuration from it.

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
    CleanupConfig, Config, DatabaseConfig, HttpConfig, KeysConfig, LogConfig, OidcConfig,
    RetentionConfig, SETTINGS, SealConfig, TracesConfig, UpstreamConfig, VendingConfig,
};
pub use source::Source;
pub use tls::ServerCertificate;
pub use values::{LogFormat, TokenKey, is_key_id};

/// A setting: an environment variable and, unless it is secret, a flag.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable, such as `LISTEN_ADDR`.
    pub variable: &'static str,
    /// The heading of its group in help texts and `.env.example`.
    pub group: &'static str,
    /// The visibility of its value.
    pub secrecy: Secrecy,
    /// The default: `None` = the setting is required, `Some("")` = it is optional.
    pub default: Option<&'static str>,
    /// The description in help texts and `.env.example`.
    pub help: &'static str,
}

/// The visibility of a setting's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// The value may be shown. Only public settings are flags.
    Public,
    /// The value is never shown.
    Secret,
    /// A URL that is shown without its password and parameters.
    SecretUrl,
}

impl Setting {
    /// Returns the variable with the path of a file that contains the value, such as
    /// `TOKEN_KEYS_FILE`. Only secrets have one.
    fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// Returns whether `dev` sets this setting itself and ignores the environment.
    fn is_set_by_dev(&self) -> bool {
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

/// All errors in the configuration, one per line. The text never contains a secret.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The settings that a command uses.
pub trait CommandConfig: Sized {
    /// Returns whether the command uses the setting. Public settings that it uses are its flags.
    fn includes(setting: &Setting) -> bool;

    /// Reads the settings. Returns `None` only if it added a problem to the source.
    fn read(source: &mut Source) -> Option<Self>;

    /// Reads and validates the settings, and reports all errors at once.
    fn load(mut source: Source) -> Result<Self, ConfigError> {
        let config = Self::read(&mut source);
        settings::check_retention(&mut source);
        match config {
            Some(config) if source.problems.is_empty() => Ok(config),
            _ => Err(ConfigError(source.problems)),
        }
    }
}

/// All settings, for `dev`, which sets addresses, database, credentials and keys itself. Load it
/// from [`Source::for_dev`].
#[derive(Debug)]
pub struct DevConfig(pub Config);

impl CommandConfig for DevConfig {
    fn includes(setting: &Setting) -> bool {
        !setting.is_set_by_dev()
    }

    fn read(source: &mut Source) -> Option<Self> {
        Config::read(source).map(Self)
    }
}

/// Defines the configuration of a command as several parts of [`Config`].
macro_rules! command_config {
    ($(#[doc = $doc:literal])+ $name:ident { $($field:ident: $part:ident),+ $(,)? }) => {
        $(#[doc = $doc])+
        #[derive(Debug)]
        #[expect(missing_docs, reason = "the type of each field is documented")]
        pub struct $name {
            $(pub $field: $part),+
        }

        impl CommandConfig for $name {
            fn includes(setting: &Setting) -> bool {
                $($part::includes(setting))||+
            }

            fn read(source: &mut Source) -> Option<Self> {
                // Reads every part before the first `?`, so that all errors are reported.
                $(let $field = $part::read(source);)+
                Some(Self { $($field: $field?),+ })
            }
        }
    };
}

command_config! {
    /// Settings of the commands that only use the database, such as `client`.
    DatabaseCommandConfig { database: DatabaseConfig, log: LogConfig }
}

command_config! {
    /// Settings of `cleanup`, `migrate` and `audit verify`.
    RetentionCommandConfig { database: DatabaseConfig, retention: RetentionConfig, log: LogConfig }
}

command_config! {
    /// Settings of the commands that decrypt stored tokens, such as `keys rotate`.
    KeysCommandConfig { database: DatabaseConfig, keys: KeysConfig, log: LogConfig }
}
