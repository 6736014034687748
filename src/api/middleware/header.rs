//! Reads header fields.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The field's value if the request has it once.
pub fn single_header(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name);
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
}
