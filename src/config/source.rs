//! Looks up setting values in their sources, and masks secrets for display.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::PathBuf;

use strsim::osa_distance;
use url::Url;

use super::values::Parsed;
use super::{SETTINGS, Secrecy, Setting};

const MASK: &str = "***";

/// The beginnings of names that other programs seldom use.
const PREFIXES: [&str; 10] = [
    "AUDIT_",
    "CLEANUP_",
    "DATABASE_",
    "FINGERPRINT_",
    "MINT_",
    "READ_DATABASE_",
    "SHUTDOWN_",
    "TLS_",
    "TOKEN_",
    "UPSTREAM_",
];

/// The beginning of the variables that Kubernetes sets for a service named token-vendor.
const SERVICE_LINK: &str = "TOKEN_VENDOR_";

/// The sources of values: flags, environment, `.env` and defaults. Records the values that were read
/// and the problems that were found.
///
/// Does not implement `Debug` because it contains unmasked secrets.
#[derive(Default)]
pub struct Source {
    flags: HashMap<String, String>,
    environment: HashMap<String, String>,
    dotenv: HashMap<String, String>,
    pub(super) problems: Vec<String>,
    read: Vec<(&'static Setting, Found)>,
}

/// The text of a setting and the name of its source.
struct Found {
    text: String,
    source: String,
}

impl Found {
    fn new(text: &str, source: impl Into<String>) -> Self {
        Found {
            text: text.to_owned(),
            source: source.into(),
        }
    }
}

/// Returns the process environment. Replaces invalid UTF-8, which no setting accepts anyway.
fn read_environment() -> impl Iterator<Item = (String, String)> {
    let to_string = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (to_string(name), to_string(value)))
}

impl Source {
    /// Reads the environment of this process and, if it exists, `.env` in the working directory.
    pub fn from_process() -> Self {
        let mut source = Self::from_environment(read_environment());
        match std::fs::read(".env") {
            Ok(content) => return source.with_dotenv(&String::from_utf8_lossy(&content)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => source.add_problem(".env", &format!("cannot be read: {error}")),
        }
        source
    }

    /// Uses only these environment variables.
    pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            environment: variables.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Uses these values for the settings that `dev` sets itself (addresses, database, credentials,
    /// keys), and the environment of this process for all others. A value for another setting is its default. Does not
    /// read `.env`.
    ///
    /// Variables that a shell sets for another deployment therefore cannot reach `dev`.
    pub fn for_dev(values: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self::from_environment(read_environment()).with_dev_values(values)
    }

    pub(super) fn with_dev_values(
        mut self,
        values: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        for setting in SETTINGS.iter().filter(|setting| setting.is_set_by_dev()) {
            self.environment.remove(setting.variable);
            self.environment.remove(&setting.file_variable());
        }
        for (name, value) in values {
            let given = self.environment.entry(name.into()).or_default();
            if given.is_empty() {
                *given = value;
            }
        }
        self
    }

    /// Adds the content of a `.env` file, which the environment overrides.
    pub fn with_dotenv(mut self, content: &str) -> Self {
        for item in dotenvy::from_read_iter(content.as_bytes()) {
            match item {
                Ok((name, value)) => {
                    self.dotenv.entry(name).or_insert(value);
                }
                // The message of dotenvy quotes the line, which can contain a secret.
                Err(dotenvy::Error::LineParse(line, _)) => {
                    let before = content.split(&line).next().unwrap_or_default();
                    let number = before.matches('\n').count() + 1;
                    let why = "must be NAME=value; quote a value with spaces, quotes, $ or #";
                    self.add_problem(".env", &format!("line {number} {why}"));
                }
                Err(_) => self.add_problem(".env", "cannot be read"),
            }
        }
        self
    }

    pub(super) fn with_flags(mut self, values: &[(&'static str, String)]) -> Self {
        let values = values.iter().cloned();
        self.flags
            .extend(values.map(|(name, value)| (name.into(), value)));
        self
    }

    /// Looks up a variable. Ignores empty values.
    fn find_variable(&self, name: &str) -> Option<Found> {
        let sources = [
            (&self.flags, "flag"),
            (&self.environment, "environment"),
            (&self.dotenv, ".env"),
        ];
        sources.into_iter().find_map(|(values, source)| {
            let text = values.get(name).filter(|text| !text.is_empty())?;
            Some(Found::new(text, source))
        })
    }

    /// Looks up a setting, including its file and its default.
    fn find_setting(&self, setting: &Setting) -> Parsed<Found> {
        let file_variable = setting.file_variable();
        let file = match setting.secrecy {
            Secrecy::Public => None,
            _ => self.find_variable(&file_variable),
        };
        match (self.find_variable(setting.variable), file, setting.default) {
            (Some(_), Some(_), _) => {
                Err(format!("{file_variable} is also set; set only one of them"))
            }
            // The message does not quote the path, which can be a misplaced secret.
            (None, Some(Found { text: path, .. }), _) => match std::fs::read_to_string(&path) {
                Err(error) => Err(format!(
                    "the file of {file_variable} cannot be read: {error}"
                )),
                Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                    "" => Err(format!("the file of {file_variable} is empty")),
                    text => Ok(Found::new(text, format!("file {path}"))),
                },
            },
            (Some(found), None, _) => Ok(found),
            (None, None, Some(default)) => Ok(Found::new(default, "default")),
            (None, None, None) => {
                let generator = match setting.variable {
                    "TOKEN_KEYS" => "; `token-vendor keys generate` prints a value",
                    "FINGERPRINT_KEY" => "; `openssl rand -base64 32` prints a value",
                    _ => "",
                };
                Err(format!(
                    "is required; set it, or set {file_variable} to the path of a file that contains it{generator}"
                ))
            }
        }
    }

    /// Records a problem for the error report.
    pub(super) fn add_problem(&mut self, variable: &str, why: &str) {
        self.problems.push(format!("{variable}: {why}"));
    }

    /// Looks up and parses a setting. Records a problem and returns `None` if it is invalid.
    ///
    /// The error of `parse` must not contain the value of a secret.
    pub(super) fn read_value<T>(
        &mut self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Option<T> {
        let setting = SETTINGS.iter().find(|setting| setting.variable == variable);
        let setting = setting.expect("the table contains the variable");
        let parsed = self.find_setting(setting).and_then(|found| {
            let parsed = parse(&found.text);
            self.read.push((setting, found));
            parsed
        });
        parsed.map_err(|why| self.add_problem(variable, &why)).ok()
    }

    /// Returns the text of a setting that was read. Empty means that it was not read or is not set.
    pub(super) fn get_text(&self, variable: &str) -> &str {
        let mut read = self.read.iter();
        let entry = read.find(|(setting, _)| setting.variable == variable);
        entry.map_or("", |(_, found)| &found.text)
    }

    /// Returns the path of the file that contains a secret, if there is one.
    pub(super) fn find_file(&self, variable: &str) -> Option<PathBuf> {
        let found = self.find_variable(&format!("{variable}_FILE"))?;
        Some(found.text.into())
    }

    /// Returns a warning for each variable that has no effect but resembles the name of a setting.
    ///
    /// A name resembles a setting if it begins with a name or with one of [`PREFIXES`], or if it has at most one wrong
    /// character in five, and two in all. Letter case is ignored.
    pub(super) fn find_misspelled_variables(&self) -> Vec<String> {
        let names = SETTINGS.iter().flat_map(|setting| {
            let file = (setting.secrecy != Secrecy::Public).then(|| setting.file_variable());
            file.into_iter().chain([setting.variable.to_owned()])
        });
        let names: Vec<String> = names.collect();
        let set = self.environment.iter().chain(&self.dotenv);
        let set: BTreeSet<&String> = set
            .filter(|(name, value)| !value.is_empty() && !names.contains(name))
            .map(|(name, _)| name)
            .collect();
        let warn = |name: &String| {
            let upper = name.to_ascii_uppercase();
            let distances = names
                .iter()
                .map(|known| (osa_distance(&upper, known), known));
            let (distance, nearest) = distances.min()?;
            let names = names.iter().map(String::as_str);
            let has_prefix = names
                .chain(PREFIXES)
                .any(|prefix| upper.starts_with(prefix));
            let is_similar = distance <= 2.min(upper.len() / 5);
            (is_similar || has_prefix && !upper.starts_with(SERVICE_LINK)).then(|| {
                format!("{name} is not a setting and has no effect; the nearest name is {nearest}")
            })
        };
        set.into_iter().filter_map(warn).collect()
    }

    /// Returns a line for each setting that was read, with secrets masked.
    pub(super) fn render_masked(&self) -> String {
        let render = |(setting, found): &(&Setting, Found)| {
            let value = mask(setting.secrecy, &found.text);
            format!("{}={value}  # source: {}\n", setting.variable, found.source)
        };
        self.read.iter().map(render).collect()
    }
}

fn mask(secrecy: Secrecy, value: &str) -> String {
    match secrecy {
        _ if value.is_empty() => String::new(),
        Secrecy::Public => value.into(),
        Secrecy::Secret => MASK.into(),
        Secrecy::SecretUrl => mask_url(value).unwrap_or(MASK.into()),
    }
}

/// Masks the password and the query of a URL, because parameters can contain a password.
fn mask_url(value: &str) -> Option<String> {
    let mut url = Url::parse(value).ok()?;
    if url.password().is_some() {
        url.set_password(Some(MASK)).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some(MASK));
    }
    Some(url.into())
}
