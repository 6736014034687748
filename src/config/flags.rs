//! The settings that are no secret, as flags of the commands that they concern.

use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{CommandConfig, ConfigError, SETTINGS, Secrecy, Setting, Source};

/// A flag for each setting that is no secret and concerns the command; made for
/// `#[command(flatten)]`.
#[derive(Debug)]
pub struct Flags<C> {
    given: Vec<(&'static str, String)>,
    command: PhantomData<fn() -> C>,
}

impl<C: CommandConfig> Flags<C> {
    /// What the command needs, from these flags and then the source. Every mistake is reported.
    pub fn load(&self, source: Source) -> Result<C, ConfigError> {
        C::load(source.with_flags(&self.given))
    }
}

fn settings<C: CommandConfig>() -> impl Iterator<Item = &'static Setting> {
    let is_flag = |setting: &&Setting| setting.secrecy == Secrecy::Public && C::concerns(setting);
    SETTINGS.iter().filter(is_flag)
}

fn arg(setting: &'static Setting) -> Arg {
    let default = setting.default.unwrap_or_default();
    let mut help = format!("{}\n[env: {}]", setting.help.trim(), setting.variable);
    if !default.is_empty() {
        help += &format!(" [default: {default}]");
    }
    let arg = Arg::new(setting.variable)
        .long(setting.variable.to_ascii_lowercase().replace('_', "-"))
        .value_name(value_name(default))
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

/// What a value looks like, as its default shows.
fn value_name(default: &str) -> &'static str {
    match default {
        "true" | "false" => "true|false",
        _ if default.parse::<u64>().is_ok() => "N",
        _ if humantime::parse_duration(default).is_ok() => "DURATION",
        _ if default.contains("://") => "URL",
        _ => "VALUE",
    }
}

/// What the command takes that is no flag.
fn secrets<C: CommandConfig>() -> String {
    let is_secret = |setting: &&Setting| setting.secrecy != Secrecy::Public && C::concerns(setting);
    let entries = SETTINGS.iter().filter(is_secret).map(|setting| {
        let required = setting.default.map_or(" [required]", |_| "");
        format!(
            "\n  {}\n          {}{required}",
            setting.variable,
            setting.help.trim()
        )
    });
    match entries.collect::<String>() {
        none if none.is_empty() => none,
        some => format!("Not flags, but variables, or in a file that NAME_FILE names:{some}"),
    }
}

impl<C: CommandConfig> Args for Flags<C> {
    fn augment_args(command: Command) -> Command {
        let command = command.args(settings::<C>().map(arg));
        match secrets::<C>() {
            none if none.is_empty() => command,
            some => command.after_long_help(some),
        }
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: CommandConfig> FromArgMatches for Flags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = settings::<C>().filter_map(|setting| {
            let value = matches.get_one::<String>(setting.variable)?;
            Some((setting.variable, value.clone()))
        });
        Ok(Self {
            given: given.collect(),
            command: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
