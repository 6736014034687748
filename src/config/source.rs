//! Where values come from, and which place wins.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::flags::Flags;
use super::settings::Setting;
use super::{CommandConfig, Problem};

/// The most that a `NAME_FILE` may hold, in bytes.
const FILE_LIMIT: u64 = 64 * 1024;

/// The settings that `dev` gives itself, whatever the environment says.
const OWN_OF_DEV: [&str; 11] = [
    "DATABASE_URL",
    "READ_DATABASE_URL",
    "UPSTREAM_BASE_URL",
    "UPSTREAM_ALLOW_HTTP",
    "UPSTREAM_API_KEY",
    "UPSTREAM_API_SECRET",
    "TOKEN_KEYS",
    "FINGERPRINT_KEY",
    "LISTEN_ADDR",
    "TLS_CERT",
    "TLS_KEY",
];

/// Whether `dev` gives itself this setting.
pub(super) fn is_own_of_dev(setting: &Setting) -> bool {
    OWN_OF_DEV.contains(&setting.variable)
}

/// The places that values are looked up in: the command itself, flags, environment, `.env`, default.
///
/// It holds secrets in the clear and therefore has no `Debug`.
pub struct Source {
    own: HashMap<&'static str, String>,
    flags: HashMap<&'static str, String>,
    environment: HashMap<OsString, OsString>,
    dotenv: HashMap<String, String>,
    dotenv_problems: Vec<Problem>,
}

/// The place that a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The command sets it itself.
    Command,
    /// A flag.
    Flag,
    /// The process environment.
    Environment,
    /// The file `.env`.
    DotEnv,
    /// The file that `NAME_FILE` names.
    File(PathBuf),
    /// The table of settings.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Command => f.write_str("command"),
            Origin::Flag => f.write_str("flag"),
            Origin::Environment => f.write_str("environment"),
            Origin::DotEnv => f.write_str(".env"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

impl Source {
    /// The environment of this process, and `.env` in the working directory where there is one.
    /// The process environment is not changed.
    pub fn of_process() -> Self {
        let source = Self::of_environment(std::env::vars_os());
        match std::fs::read(".env") {
            Ok(bytes) => source.with_dotenv(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => source,
            Err(error) => source.with_dotenv_problem(format!("cannot be read: {error}")),
        }
    }

    /// These environment variables alone.
    pub fn of_environment<N, V>(variables: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        Self {
            own: HashMap::new(),
            flags: HashMap::new(),
            environment: variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            dotenv: HashMap::new(),
            dotenv_problems: Vec::new(),
        }
    }

    /// What `dev` runs on: the values that it gives itself (addresses, database, credentials,
    /// keys), for everything else the environment of this process, and no `.env`.
    ///
    /// What `dev` gives itself is never taken from the environment, so that a shell set up for
    /// another deployment leads nowhere near it.
    pub fn for_dev(own: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self::of_environment(std::env::vars_os()).with_own_of_dev(own)
    }

    pub(super) fn with_own_of_dev(
        mut self,
        own: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        self.own = OWN_OF_DEV.map(|name| (name, String::new())).into();
        self.own.extend(own);
        self
    }

    /// With the content of a `.env` file, for what the environment does not set.
    pub fn with_dotenv(mut self, content: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(content) else {
            return self.with_dotenv_problem("is not valid UTF-8".into());
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for item in dotenvy::from_read_iter(text.as_bytes()) {
            match item {
                Ok((name, value)) => {
                    self.dotenv.entry(name).or_insert(value);
                }
                // dotenvy's own message quotes the line, which may hold a secret.
                Err(error) => {
                    self = self.with_dotenv_problem(match line_of(&error, text) {
                        Some(line) => format!(
                            "line {line} is not NAME=value (quote a value that has spaces, quotes, $ or #)"
                        ),
                        None => "cannot be read".into(),
                    });
                }
            }
        }
        self
    }

    fn with_dotenv_problem(mut self, message: String) -> Self {
        self.dotenv_problems.push(Problem::new(".env", message));
        self
    }

    /// With the flags that were given, before everything but what the command sets itself.
    pub fn with_flags<C: CommandConfig>(mut self, flags: &Flags<C>) -> Self {
        self.flags.extend(flags.given().iter().cloned());
        self
    }

    /// What is wrong with `.env` as a whole.
    pub(super) fn dotenv_problems(&self) -> &[Problem] {
        &self.dotenv_problems
    }

    /// The value of a setting and its place; none where it is set nowhere and has no default.
    pub(super) fn find(&self, setting: &Setting) -> Result<Option<(String, Origin)>, Problem> {
        let default = || {
            setting
                .default()
                .map(|value| (value.to_owned(), Origin::Default))
        };
        if let Some(value) = self.own.get(setting.variable) {
            let own = (!value.is_empty()).then(|| (value.clone(), Origin::Command));
            return Ok(own.or_else(default));
        }
        if let Some(value) = self.flags.get(setting.variable).filter(|v| !v.is_empty()) {
            return Ok(Some((value.clone(), Origin::Flag)));
        }
        let direct = self.variable(setting.variable)?;
        let Some(file_variable) = setting.file_variable() else {
            return Ok(direct.or_else(default));
        };
        match (direct, self.variable(&file_variable)?) {
            (Some(_), Some(_)) => Err(Problem::new(
                setting.variable,
                format!("is set and {file_variable} too; only one of them may be"),
            )),
            (None, Some((path, _))) => {
                // Not quoted: it may be the secret itself, put into the wrong variable.
                let value = read_file(Path::new(&path))
                    .map_err(|why| Problem::new(&file_variable, format!("its file {why}")))?;
                Ok(Some((value, Origin::File(path.into()))))
            }
            (direct, None) => Ok(direct.or_else(default)),
        }
    }

    /// The environment's value of this name, else that of `.env`. Empty is not set.
    fn variable(&self, name: &str) -> Result<Option<(String, Origin)>, Problem> {
        let environment = self.environment.get(&OsString::from(name));
        if let Some(value) = environment.filter(|value| !value.is_empty()) {
            let Some(value) = value.to_str() else {
                return Err(Problem::new(name, "is not valid UTF-8"));
            };
            return Ok(Some((value.to_owned(), Origin::Environment)));
        }
        let dotenv = self.dotenv.get(name).filter(|value| !value.is_empty());
        Ok(dotenv.map(|value| (value.clone(), Origin::DotEnv)))
    }
}

/// The content without newlines at its end, or what is wrong with the file.
fn read_file(path: &Path) -> Result<String, String> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut content))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() as u64 > FILE_LIMIT {
        return Err(format!("is larger than {FILE_LIMIT} bytes"));
    }
    let content = String::from_utf8(content).map_err(|_| "is not valid UTF-8")?;
    match content.trim_end_matches(['\r', '\n']) {
        "" => Err("is empty".into()),
        value => Ok(value.to_owned()),
    }
}

/// The number of the line in `.env` that dotenvy could not read.
fn line_of(error: &dotenvy::Error, text: &str) -> Option<usize> {
    let dotenvy::Error::LineParse(line, _) = error else {
        return None;
    };
    let start = text.find(line.as_str())?;
    Some(text[..start].matches('\n').count() + 1)
}
