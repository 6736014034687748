//! The `Cache-Control` request directives (RFC 9111 §5.2.1) and `Cache-Status` (RFC 9211).

use std::borrow::Cow;

use actix_web::http::header::{self, HeaderMap, HeaderValue};

use crate::api::problem::field_error::FieldErrors;
use crate::vending::{CacheStatus, ForwardReason, IssuedToken};

const NAME: &str = "Cache-Control";

/// The directives that the service supports.
#[derive(Default)]
pub struct Directives {
    /// `min-fresh`: the minimum remaining life that the caller requires, in seconds.
    pub min_fresh: Option<i32>,
    /// `no-cache`: the caller requests a new token.
    pub no_cache: bool,
}

impl Directives {
    /// Reads all `Cache-Control` lines and adds the errors of `min-fresh`. Ignores other directives.
    ///
    /// `lifetime` is the upper bound of `min-fresh`. `None` means no bound.
    pub fn read(headers: &HeaderMap, lifetime: Option<i32>, errors: &mut FieldErrors) -> Self {
        let mut directives = Directives::default();
        for line in headers.get_all(header::CACHE_CONTROL) {
            for element in split_list(&String::from_utf8_lossy(line.as_bytes())) {
                let (name, argument) = match element.split_once('=') {
                    Some((name, argument)) => (name.trim_end(), Some(argument.trim_start())),
                    None => (element, None),
                };
                if name.eq_ignore_ascii_case("no-cache") {
                    directives.no_cache = true;
                } else if name.eq_ignore_ascii_case("min-fresh") {
                    match argument.and_then(parse_seconds) {
                        None => {
                            errors.add_header(NAME, "min-fresh must be a whole number of seconds")
                        }
                        seconds if directives.min_fresh.is_none() => directives.min_fresh = seconds,
                        seconds if directives.min_fresh == seconds => {}
                        _ => errors.add_header(
                            NAME,
                            "min-fresh must not appear with two different values",
                        ),
                    }
                }
            }
        }
        if let (Some(min_fresh), Some(lifetime)) = (directives.min_fresh, lifetime)
            && min_fresh > lifetime
        {
            errors.add_header(NAME, "min-fresh must not exceed lifetime");
        }
        directives
    }
}

/// Splits a list into its non-empty elements (RFC 9110 §5.6.1).
///
/// A comma inside a quoted string is not a separator.
fn split_list(line: &str) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    line.split(move |character| {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ',' => return !is_quoted,
            _ => {}
        }
        false
    })
    .map(str::trim)
    .filter(|element| !element.is_empty())
}

/// Parses a number of seconds (RFC 9111 §1.2.2), unquoted or quoted as §5.2 requires of recipients.
///
/// A larger number than `i32::MAX` becomes `i32::MAX`.
fn parse_seconds(argument: &str) -> Option<i32> {
    let digits: Cow<'_, str> = match argument.strip_prefix('"') {
        None => argument.into(),
        Some(quoted) => quoted.strip_suffix('"')?.replace('\\', "").into(),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(i32::MAX))
}

/// Returns the `Cache-Status` header of a response.
pub fn cache_status(issued: &IssuedToken) -> HeaderValue {
    let text = match issued.cache_status {
        CacheStatus::Hit => format!("token-vendor; hit; ttl={}", issued.expires_in),
        CacheStatus::Forwarded {
            reason,
            stored,
            collapsed,
        } => {
            let reason = match reason {
                ForwardReason::UriMiss => "uri-miss",
                ForwardReason::Stale => "stale",
                ForwardReason::Request => "request",
            };
            let stored = if stored { "; stored" } else { "" };
            let collapsed = if collapsed { "; collapsed" } else { "" };
            format!("token-vendor; fwd={reason}{stored}{collapsed}")
        }
    };
    HeaderValue::try_from(text).expect("ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns `min-fresh`, `no-cache` and the number of errors.
    fn read(lines: &str) -> (Option<i32>, bool, usize) {
        let mut headers = HeaderMap::new();
        for line in lines.split(" | ") {
            let value = HeaderValue::from_str(line).unwrap();
            headers.append(header::CACHE_CONTROL, value);
        }
        let mut errors = FieldErrors::default();
        let directives = Directives::read(&headers, Some(3600), &mut errors);
        let errors = errors.into_vec().len();
        (directives.min_fresh, directives.no_cache, errors)
    }

    #[test]
    fn directives_follow_rfc_9111() {
        for (lines, min_fresh, no_cache) in [
            ("", None, false),
            ("max-age=0, only-if-cached, x=\"min-fresh=x\"", None, false),
            ("min-fresh=0", Some(0), false),
            ("MIN-FRESH=\"3600\"", Some(3600), false),
            ("no-cache | min-fresh=7", Some(7), true),
            (
                ", ,No-Cache=\"a, min-fresh=9\",,min-fresh=007",
                Some(7),
                true,
            ),
            ("min-fresh=7,min-fresh=7 | min-fresh=\"7\"", Some(7), false),
            ("x=\"\\\", no-cache\"", None, false),
            ("x=\"unterminated, no-cache", None, false),
        ] {
            assert_eq!(read(lines), (min_fresh, no_cache, 0), "{lines}");
        }
        for bad in [
            "", "=", "=abc", "=-1", "=+1", "=1.5", "=3601", "=\"5", "=\"\"", "=5 6",
        ] {
            assert_eq!(read(&format!("min-fresh{bad}")).2, 1, "{bad}");
        }
        assert_eq!(read("min-fresh=99999999999999999999").2, 1);
        assert_eq!(read("min-fresh=5, min-fresh=6").2, 1);
    }
}
