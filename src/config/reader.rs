//! Reads one setting after the other and remembers every mistake.

use std::fmt;
use std::time::Duration;

use super::Problem;
use super::mask;
use super::settings::{Kind, Presence, Setting};
use super::source::{Origin, Source};
use super::values::{self, Parsed};

/// Reads settings from a [`Source`]; what is wrong is collected instead of returned.
pub struct Reader<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
    listed: Vec<Listed>,
}

/// A setting as it may be shown: secrets are masked.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    variable: &'static str,
    masked: Option<(String, Origin)>,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.masked {
            Some((value, origin)) => write!(f, "{}={value}  # source: {origin}", self.variable),
            None => write!(f, "{}=  # not set", self.variable),
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            problems: source.dotenv_problems().to_vec(),
            listed: Vec::new(),
        }
    }

    /// The mistakes so far.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// What was read so far.
    pub(super) fn listed(&self) -> Vec<Listed> {
        self.listed.clone()
    }

    /// Remembers a mistake.
    pub(super) fn note(&mut self, variable: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(variable, message));
    }

    /// The parsed value; none where the setting is not set or wrong.
    ///
    /// The message of a failed `parse` must not quote the value of a secret.
    pub(super) fn value<T>(
        &mut self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Option<T> {
        let setting = Setting::named(variable);
        let found = match self.source.find(setting) {
            Ok(found) => found,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        self.listed.push(Listed {
            variable,
            masked: found
                .as_ref()
                .map(|(value, origin)| (mask::masked(setting, value), origin.clone())),
        });
        let Some((value, _)) = found else {
            if let Presence::Required = setting.presence {
                self.note(variable, missing(setting));
            }
            return None;
        };
        let parsed = if value.contains('\0') {
            Err("contains a NUL character".into())
        } else {
            parse(&value)
        };
        parsed.map_err(|message| self.note(variable, message)).ok()
    }

    /// A whole number within the bounds of the table, which must fit `T`.
    pub(super) fn integer<T: TryFrom<u64>>(&mut self, variable: &'static str) -> Option<T> {
        let Kind::Integer(min, max) = Setting::named(variable).kind else {
            panic!("{variable} is no integer");
        };
        self.value(variable, |text| values::integer(text, min, max))
    }

    /// A duration within the bounds of the table.
    pub(super) fn duration(&mut self, variable: &'static str) -> Option<Duration> {
        let Kind::Span(min, max) = Setting::named(variable).kind else {
            panic!("{variable} is no duration");
        };
        self.value(variable, |text| values::duration(text, min, max))
    }
}

fn missing(setting: &Setting) -> String {
    match setting.file_variable() {
        Some(file) => format!("is required (or {file}, a path to read it from)"),
        None => "is required".into(),
    }
}
