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
    let mut help = format!("{} [env: {}]", setting.help.trim(), setting.variable);
    if let Some(default) = setting.default.filter(|default| !default.is_empty()) {
        help += &format!(" [default: {default}]");
    }
    let arg = Arg::new(setting.variable)
        .long(setting.variable.to_ascii_lowercase().replace('_', "-"))
        .value_name("VALUE")
        .help(help)
        .help_heading("Settings");
    match setting.default {
        Some("true" | "false") => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    }
}

impl<C: CommandConfig> Args for Flags<C> {
    fn augment_args(command: Command) -> Command {
        command.args(settings::<C>().map(arg))
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
