//! Generates `.env.example` from the table of settings.

use super::{SETTINGS, Secrecy, Setting};

const PREAMBLE: &str = "\
# All settings. Copy this file to .env and set the required ones, which are the active lines. The other lines show
# defaults: remove their # to change them.
# Flags and environment variables override .env. An empty value counts as not set.
# Durations are written like 500ms, 30s or 7d.
# Quote values that contain spaces, quotes, $ or #. Single quotes keep every character as it is.
";

/// Returns the content of `.env.example`.
pub fn render_env_example() -> String {
    let mut text = PREAMBLE.to_owned();
    for group in SETTINGS.chunk_by(|left, right| left.group == right.group) {
        text += &format!("\n## {}\n", group[0].group);
        text.extend(group.iter().map(render_setting));
    }
    text
}

fn render_setting(setting: &Setting) -> String {
    let mut text = format!("\n# {}\n", setting.help.trim());
    if setting.default.is_none() {
        text += "# Required.\n";
    }
    if setting.secrecy != Secrecy::Public {
        let file = setting.file_variable();
        text += &format!("# Or set {file} to the path of a file that contains the value.\n");
    }
    let (variable, default) = (setting.variable, setting.default);
    text + &default.map_or(format!("{variable}=\n"), |value| {
        format!("#{variable}={value}\n")
    })
}
