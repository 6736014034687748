//! Command-line flags for public settings.

use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{CommandConfig, ConfigError, SETTINGS, Secrecy, Setting, Source};

const LISTEN_ADDR: &str = "LISTEN_ADDR";

/// The flags of a command: one for each public setting in its configuration `C`. Use it with
/// `#[command(flatten)]`.
#[derive(Debug)]
pub struct Flags<C> {
    values: Vec<(&'static str, String)>,
    config: PhantomData<fn() -> C>,
}

impl<C: CommandConfig> Flags<C> {
    /// Loads the configuration from these flags and the source, and reports all errors at once.
    pub fn load(&self, source: Source) -> Result<C, ConfigError> {
        C::load(source.with_flags(&self.values))
    }
}

fn list_settings<C: CommandConfig>(is_public: bool) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| {
        (setting.secrecy == Secrecy::Public) == is_public && C::includes(setting)
    })
}

fn build_arg(setting: &'static Setting) -> Arg {
    let default = setting.default.unwrap_or_default();
    let mut help = format!("{}\n[env: {}]", setting.help.trim(), setting.variable);
    if !default.is_empty() {
        help += &format!(" [default: {default}]");
    }
    let flag = setting.variable.to_ascii_lowercase().replace('_', "-");
    let arg = Arg::new(setting.variable);
    let arg = match setting.variable {
        // All commands name their address alike.
        LISTEN_ADDR => arg.long("listen").alias(flag),
        _ => arg.long(flag),
    };
    let arg = arg
        .value_name(guess_value_name(default))
        .help(help)
        .help_heading(setting.group)
        .hide_short_help(true);
    match default {
        "true" | "false" => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    }
}

/// Guesses the placeholder of the value in the help text from the default.
fn guess_value_name(default: &str) -> &'static str {
    match default {
        "true" | "false" => "true|false",
        _ if default.parse::<u64>().is_ok() => "N",
        _ if humantime::parse_duration(default).is_ok() => "DURATION",
        _ if default.contains("://") => "URL",
        _ => "VALUE",
    }
}

/// Describes the secret settings of the command for its long help.
fn describe_secrets<C: CommandConfig>() -> Option<String> {
    let entries = list_settings::<C>(false).map(|setting| {
        let required = setting.default.map_or(" [required]", |_| "");
        format!(
            "\n  {}\n          {}{required}",
            setting.variable,
            setting.help.trim()
        )
    });
    let entries: String = entries.collect();
    (!entries.is_empty()).then(|| {
        format!(
            "Secret settings are not flags. Set the variable NAME, or NAME_FILE to the path of a \
             file that contains the value:{entries}"
        )
    })
}

impl<C: CommandConfig> Args for Flags<C> {
    fn augment_args(command: Command) -> Command {
        let command = command.args(list_settings::<C>(true).map(build_arg));
        match describe_secrets::<C>() {
            Some(secrets) => command.after_long_help(secrets),
            None => command,
        }
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: CommandConfig> FromArgMatches for Flags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = list_settings::<C>(true).filter_map(|setting| {
            let value = matches.get_one::<String>(setting.variable)?;
            Some((setting.variable, value.clone()))
        });
        Ok(Self {
            values: values.collect(),
            config: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
