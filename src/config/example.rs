//! `.env.example`, written from the table.

use super::settings::{Group, Presence, SETTINGS, Setting};

const PREAMBLE: &str = "\
# Every setting with its default. Copy what you need to .env; the environment and flags come before it.
# An empty value counts as not set. Durations are like 500ms, 30s or 7d.
# Quote a value that has spaces, quotes, $ or # ('single quotes' take everything as it is).
";

/// The content of `.env.example`.
pub fn render_env_example() -> String {
    let mut text = PREAMBLE.to_owned();
    let mut group: Option<Group> = None;
    for setting in SETTINGS {
        if group.replace(setting.group) != Some(setting.group) {
            text += &format!("\n## {}\n", setting.group.title());
        }
        text += &entry(setting);
    }
    text
}

fn entry(setting: &Setting) -> String {
    let mut text = format!("\n# {}\n", setting.help);
    if let Some(bounds) = setting.bounds() {
        text += &format!("# From {bounds}.\n");
    }
    if let Presence::Required = setting.presence {
        text += "# Required.\n";
    }
    if let Some(file) = setting.file_variable() {
        text += &format!("# Instead: {file}, a path to read it from.\n");
    }
    text + &format!("{}={}\n", setting.variable, setting.default().unwrap_or(""))
}
