//! Reads header fields.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// Returns the value of a header field that is present exactly once.
pub fn single_header(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name);
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
}
