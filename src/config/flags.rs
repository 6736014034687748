//! The settings that are no secret, as flags of the commands that they concern.

use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::settings::{Kind, SETTINGS, Setting};
use super::{CommandConfig, ConfigError, Source};

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
        C::load(&source.with_flags(self))
    }

    /// Variables and the values that the command line gave them.
    pub(super) fn given(&self) -> &[(&'static str, String)] {
        &self.given
    }
}

/// The settings that are flags of the command.
fn settings<C: CommandConfig>() -> impl Iterator<Item = (&'static Setting, String)> {
    SETTINGS
        .iter()
        .filter(|setting| C::concerns(setting))
        .filter_map(|setting| Some((setting, setting.flag()?)))
}

fn arg(setting: &'static Setting, flag: String) -> Arg {
    let mut help = setting.help.to_owned();
    if let Some(bounds) = setting.bounds() {
        help += &format!(" [{bounds}]");
    }
    help += &format!(" [env: {}]", setting.variable);
    if let Some(default) = setting.default() {
        help += &format!(" [default: {default}]");
    }
    let arg = Arg::new(setting.variable)
        .long(flag)
        .help(help)
        .help_heading("Settings");
    match setting.kind {
        Kind::Boolean => arg
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Integer(..) => arg.value_name("N"),
        Kind::Span(..) => arg.value_name("DURATION"),
        Kind::Text | Kind::Secret | Kind::SecretUrl => arg.value_name("VALUE"),
    }
}

impl<C: CommandConfig> Args for Flags<C> {
    fn augment_args(command: Command) -> Command {
        command.args(settings::<C>().map(|(setting, flag)| arg(setting, flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: CommandConfig> FromArgMatches for Flags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = settings::<C>()
            .filter_map(|(setting, _)| {
                let value = matches.get_one::<String>(setting.variable)?;
                Some((setting.variable, value.clone()))
            })
            .collect();
        Ok(Self {
            given,
            command: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
