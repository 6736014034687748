//! Where values come from, which place wins, and how they are shown.

use std::collections::HashMap;
use std::io::ErrorKind;

use url::Url;

use super::values::Parsed;
use super::{SETTINGS, Secrecy, Setting};

const MASK: &str = "***";

/// The places that values are looked up in: flags, environment, `.env`, default. Remembers what was
/// read and what was wrong with it.
///
/// It holds secrets in the clear and therefore has no `Debug`.
#[derive(Default)]
pub struct Source {
    flags: HashMap<String, String>,
    environment: HashMap<String, String>,
    dotenv: HashMap<String, String>,
    pub(super) problems: Vec<String>,
    read: Vec<(&'static Setting, String, String)>,
}

/// The process environment; what is not UTF-8 in it fits no setting.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

impl Source {
    /// The environment of this process, and `.env` in the working directory where there is one.
    /// The process environment is not changed.
    pub fn of_process() -> Self {
        let mut source = Self::of_environment(variables());
        match std::fs::read(".env") {
            Ok(content) => return source.with_dotenv(&String::from_utf8_lossy(&content)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => source.note(".env", &format!("cannot be read: {error}")),
        }
        source
    }

    /// These environment variables alone.
    pub fn of_environment(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            environment: variables.into_iter().collect(),
            ..Self::default()
        }
    }

    /// What `dev` runs on: the values that it gives itself (addresses, database, credentials,
    /// keys), whatever a shell set up for another deployment says of them; for everything else the
    /// environment of this process, and no `.env`.
    pub fn for_dev(own: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self::of_environment(variables()).with_own_of_dev(own)
    }

    pub(super) fn with_own_of_dev(
        mut self,
        own: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        for setting in SETTINGS.iter().filter(|setting| setting.is_own_of_dev()) {
            self.environment.remove(setting.variable);
            self.environment.remove(&setting.file_variable());
        }
        let own = own.into_iter().map(|(name, value)| (name.into(), value));
        self.environment.extend(own);
        self
    }

    /// With the content of a `.env` file, for what the environment does not set.
    pub fn with_dotenv(mut self, content: &str) -> Self {
        for item in dotenvy::from_read_iter(content.as_bytes()) {
            match item {
                Ok((name, value)) => {
                    self.dotenv.entry(name).or_insert(value);
                }
                // dotenvy's own message quotes the line, which may hold a secret.
                Err(dotenvy::Error::LineParse(line, _)) => {
                    let before = content.split(&line).next().unwrap_or_default();
                    let number = before.matches('\n').count() + 1;
                    let why = "is not NAME=value (quote a value that has spaces, quotes, $ or #)";
                    self.note(".env", &format!("line {number} {why}"));
                }
                Err(_) => self.note(".env", "cannot be read"),
            }
        }
        self
    }

    pub(super) fn with_flags(mut self, given: &[(&'static str, String)]) -> Self {
        let given = given.iter().cloned();
        self.flags.extend(given.map(|(n, value)| (n.into(), value)));
        self
    }

    /// The value of this name and its place. Empty is not set.
    fn get(&self, name: &str) -> Option<(String, String)> {
        let places = [
            (&self.flags, "flag"),
            (&self.environment, "environment"),
            (&self.dotenv, ".env"),
        ];
        places.into_iter().find_map(|(values, place)| {
            let value = values.get(name).filter(|value| !value.is_empty())?;
            Some((value.clone(), place.into()))
        })
    }

    /// The value of a setting and its place.
    fn find(&self, setting: &Setting) -> Parsed<(String, String)> {
        let file_variable = setting.file_variable();
        let file = match setting.secrecy {
            Secrecy::Public => None,
            _ => self.get(&file_variable),
        };
        match (self.get(setting.variable), file, setting.default) {
            (Some(_), Some(_), _) => Err(format!(
                "is set and {file_variable} too; only one of them may be"
            )),
            // The path is not quoted: it may be the secret itself, put into the wrong variable.
            (None, Some((path, _)), _) => match std::fs::read_to_string(&path) {
                Err(error) => Err(format!("the file of {file_variable}: {error}")),
                Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                    "" => Err(format!("the file of {file_variable} is empty")),
                    text => Ok((text.into(), format!("file {path}"))),
                },
            },
            (Some(found), None, _) => Ok(found),
            (None, None, Some(default)) => Ok((default.into(), "default".into())),
            (None, None, None) => Err(format!(
                "is required (or {file_variable}, a path to read it from)"
            )),
        }
    }

    /// Remembers a mistake.
    pub(super) fn note(&mut self, variable: &str, why: &str) {
        self.problems.push(format!("{variable}: {why}"));
    }

    /// The parsed value of a setting in the table; none where it is wrong.
    ///
    /// The message of a failed `parse` must not quote the value of a secret.
    pub(super) fn value<T>(
        &mut self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Option<T> {
        let setting = SETTINGS.iter().find(|setting| setting.variable == variable);
        let setting = setting.expect("only settings of the table are read");
        let parsed = self.find(setting).and_then(|(value, place)| {
            let parsed = parse(&value);
            self.read.push((setting, value, place));
            parsed
        });
        parsed.map_err(|why| self.note(variable, &why)).ok()
    }

    /// The text of a setting that was read before; empty where it is not set.
    pub(super) fn found(&self, variable: &str) -> &str {
        let mut found = self.read.iter();
        let found = found.find(|(setting, ..)| setting.variable == variable);
        found.map_or("", |(_, value, _)| value)
    }

    /// What was read, a line each, secrets masked.
    pub(super) fn render_masked(&self) -> String {
        let line = |(setting, value, place): &(&Setting, String, String)| {
            let shown = masked(setting.secrecy, value);
            format!("{}={shown}  # source: {place}\n", setting.variable)
        };
        self.read.iter().map(line).collect()
    }
}

fn masked(secrecy: Secrecy, value: &str) -> String {
    match secrecy {
        _ if value.is_empty() => String::new(),
        Secrecy::Public => value.into(),
        Secrecy::Secret => MASK.into(),
        Secrecy::SecretUrl => masked_url(value).unwrap_or(MASK.into()),
    }
}

/// The URL without its password and parameters, of which each may hold one.
fn masked_url(value: &str) -> Option<String> {
    let mut url = Url::parse(value).ok()?;
    if url.password().is_some() {
        url.set_password(Some(MASK)).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some(MASK));
    }
    Some(url.into())
}
