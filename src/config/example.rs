//! `.env.example`, written from the table.

use super::{SETTINGS, Secrecy, Setting};

const PREAMBLE: &str = "\
# Every setting with its default. Copy what you need to .env; the environment and flags come before it.
# An empty value counts as not set. Durations are like 500ms, 30s or 7d.
# Quote a value that has spaces, quotes, $ or # ('single quotes' take everything as it is).
";

/// The content of `.env.example`.
pub fn render_env_example() -> String {
    let mut text = PREAMBLE.to_owned();
    for group in SETTINGS.chunk_by(|one, next| one.group == next.group) {
        text += &format!("\n## {}\n", group[0].group);
        text.extend(group.iter().map(entry));
    }
    text
}

fn entry(setting: &Setting) -> String {
    let mut text = format!("\n# {}\n", setting.help.trim());
    if setting.default.is_none() {
        text += "# Required.\n";
    }
    if setting.secrecy != Secrecy::Public {
        let file = setting.file_variable();
        text += &format!("# Instead: {file}, a path to read it from.\n");
    }
    text + &format!("{}={}\n", setting.variable, setting.default.unwrap_or(""))
}
