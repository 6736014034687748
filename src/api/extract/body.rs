//! Reading a request's body: after its caller is known to be allowed, never before.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::json::{Json, members};
use super::query::parameters;
use crate::api::middleware::header::single_header;
use crate::api::problem::field_error::FieldErrors;
use crate::api::problem::{Problem, ProblemKind};

/// The longest body that is read, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// The longest that a body may take to arrive; who drips it holds a connection, no more.
const MAX_BODY_TIME: Duration = Duration::from_secs(10);

/// A body not yet looked at.
///
/// Extracting it does nothing: actix runs a handler's extractors side by side, and a body must
/// not be judged before its sender is (401, 403 and 429 come before 415, 413 and 400).
pub struct Body {
    request: HttpRequest,
    payload: Payload,
}

impl FromRequest for Body {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(Ok(Body {
            request: request.clone(),
            payload: payload.take(),
        }))
    }
}

impl Body {
    /// Reads the JSON document: 415, 413, 408 or 400 `malformed`, in this order.
    pub async fn read(self) -> Result<Json, Problem> {
        Json::parse(&self.read_bytes("application/json").await?)
    }

    /// The named fields of the form that it must be, and what is wrong so far.
    pub async fn read_form<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<([Option<String>; N], FieldErrors), Problem> {
        let bytes = self.read_bytes("application/x-www-form-urlencoded").await?;
        let not_text = |_| Problem::new(ProblemKind::Malformed, "the form is not UTF-8");
        let text = std::str::from_utf8(&bytes).map_err(not_text)?;
        let mut errors = FieldErrors::default();
        let fields = parameters(text, names, &mut errors);
        Ok((fields, errors))
    }

    async fn read_bytes(self, media_type: &str) -> Result<Bytes, Problem> {
        check_headers(self.request.headers(), media_type)?;
        match tokio::time::timeout(MAX_BODY_TIME, collect(self.payload)).await {
            Ok(bytes) => bytes,
            Err(_) => {
                let detail = format!("the body did not arrive within {MAX_BODY_TIME:?}");
                Err(Problem::new(ProblemKind::RequestTimeout, detail))
            }
        }
    }

    /// The named members of the object that it must be, and what is wrong so far: other members,
    /// any query parameter.
    pub async fn read_members<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<([Option<Json>; N], FieldErrors), Problem> {
        let mut errors = FieldErrors::default();
        let [] = parameters(self.request.query_string(), [], &mut errors);
        match members(self.read().await?, "#", names, &mut errors) {
            Some(found) => Ok((found, errors)),
            None => Err(errors.into()),
        }
    }
}

async fn collect(mut payload: Payload) -> Result<Bytes, Problem> {
    let mut body = Bytes::new();
    while let Some(chunk) = payload.next().await {
        let broken = |_| Problem::new(ProblemKind::Malformed, "the body breaks off");
        let chunk = chunk.map_err(broken)?;
        check_length(body.len() + chunk.len())?;
        // Most bodies come in one piece, which is not copied.
        body = if body.is_empty() {
            chunk
        } else {
            let mut joined = BytesMut::from(body);
            joined.extend_from_slice(&chunk);
            joined.freeze()
        };
    }
    Ok(body)
}

fn check_length(length: usize) -> Result<(), Problem> {
    if length <= MAX_BODY {
        return Ok(());
    }
    let detail = format!("a body has at most {MAX_BODY} bytes");
    Err(Problem::new(ProblemKind::BodyTooLarge, detail))
}

/// Refuses by what the request says of itself, before a byte is read.
fn check_headers(headers: &HeaderMap, media_type: &str) -> Result<(), Problem> {
    let is_declared = single_header(headers, header::CONTENT_TYPE).is_some_and(|declared| {
        let essence = declared.as_bytes().split(|byte| *byte == b';').next();
        let essence = essence.unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(media_type.as_bytes())
    });
    if !is_declared || headers.contains_key(header::CONTENT_ENCODING) {
        let detail = format!(
            "the body must be declared once, as `Content-Type: {media_type}`, \
             without a `Content-Encoding`"
        );
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail));
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    check_length(length.unwrap_or(0))
}
