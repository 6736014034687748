//! Values as people may see them.

use url::Url;

use super::settings::{Kind, Setting};

const MASK: &str = "***";

/// The query parameters of a database URL that hold nothing secret.
const OPEN_PARAMETERS: [&str; 9] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "ssl-mode",
    "application_name",
    "statement-cache-capacity",
];

/// The value on one line; a secret's is hidden.
pub(super) fn masked(setting: &Setting, value: &str) -> String {
    let shown = match setting.kind {
        Kind::Secret => MASK.into(),
        Kind::SecretUrl => masked_url(value),
        Kind::Text | Kind::Boolean | Kind::Integer(..) | Kind::Span(..) => value.into(),
    };
    if !shown.contains(char::is_control) {
        return shown;
    }
    shown.escape_debug().to_string()
}

/// The URL without its password and without parameters that may hold one.
fn masked_url(value: &str) -> String {
    let Ok(mut url) = Url::parse(value) else {
        return MASK.into();
    };
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return MASK.into();
    }
    let query = url.query().map(|query| {
        let parameters: Vec<_> = query.split('&').map(masked_parameter).collect();
        parameters.join("&")
    });
    url.set_query(query.as_deref());
    url.set_fragment(None);
    url.into()
}

fn masked_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, _)) if OPEN_PARAMETERS.contains(&name) => parameter.into(),
        Some((name, _)) if name.bytes().all(|b| b.is_ascii_lowercase()) => format!("{name}={MASK}"),
        _ => MASK.into(),
    }
}
