//! Reads the body of a request, after the caller was authorized.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::body::{BodyStream, to_bytes_limited};
use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest};
use secrecy::zeroize::Zeroizing;

use super::json::{Json, read_members};
use super::query::read_parameters;
use crate::api::middleware::header::single_header;
use crate::api::problem::field_error::FieldErrors;
use crate::api::problem::{Problem, ProblemKind};

/// The maximum size of a body, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// The maximum time for a body to arrive.
const MAX_BODY_TIME: Duration = Duration::from_secs(10);

/// A body that has not been read.
///
/// Extracting it reads nothing. Actix runs the extractors of a handler concurrently, but 401, 403 and
/// 429 take precedence over 415, 413, 408 and 400.
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
    /// Reads a JSON document. Fails with 415, 413, 408 or 400 `malformed`, in this order.
    pub async fn read_json(self) -> Result<Json, Problem> {
        Json::parse(&self.read_bytes("application/json").await?)
    }

    /// Reads a form and returns its named fields and the errors so far.
    pub async fn read_form<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<([Option<String>; N], FieldErrors), Problem> {
        let bytes = self.read_bytes("application/x-www-form-urlencoded").await?;
        let not_utf8 = |_| Problem::new(ProblemKind::Malformed, "the form must be UTF-8");
        let text = std::str::from_utf8(&bytes).map_err(not_utf8)?;
        let mut errors = FieldErrors::default();
        let fields = read_parameters(text, names, &mut errors);
        Ok((fields, errors))
    }

    /// Reads a body that is wiped when it is dropped, because it can contain a token string.
    async fn read_bytes(self, media_type: &str) -> Result<Zeroizing<Vec<u8>>, Problem> {
        check_headers(self.request.headers(), media_type)?;
        let bytes = to_bytes_limited(BodyStream::new(self.payload), MAX_BODY);
        match tokio::time::timeout(MAX_BODY_TIME, bytes).await {
            Ok(Ok(Ok(bytes))) => Ok(Zeroizing::new(bytes.into())),
            Ok(Ok(Err(_))) => {
                let detail = "the body could not be read to its end; send it again";
                Err(Problem::new(ProblemKind::Malformed, detail))
            }
            Ok(Err(_)) => Err(body_too_large()),
            Err(_) => {
                let detail =
                    format!("the body did not arrive within {MAX_BODY_TIME:?}; send it again");
                Err(Problem::new(ProblemKind::RequestTimeout, detail))
            }
        }
    }

    /// Reads a JSON object like [`read_object`](Body::read_object). A request without a body stands for an empty object.
    pub async fn read_optional_object<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<([Option<Json>; N], FieldErrors), Problem> {
        let headers = self.request.headers();
        let length = headers.get(header::CONTENT_LENGTH);
        let is_absent = !headers.contains_key(header::CONTENT_TYPE)
            && !headers.contains_key(header::TRANSFER_ENCODING)
            && length.is_none_or(|length| length == "0");
        if is_absent {
            let mut errors = FieldErrors::default();
            let [] = read_parameters(self.request.query_string(), [], &mut errors);
            return Ok(([const { None }; N], errors));
        }
        self.read_object(names).await
    }

    /// Reads a JSON object and returns its named members and the errors so far.
    ///
    /// Other members and all query parameters are errors.
    pub async fn read_object<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<([Option<Json>; N], FieldErrors), Problem> {
        let mut errors = FieldErrors::default();
        let [] = read_parameters(self.request.query_string(), [], &mut errors);
        match read_members(self.read_json().await?, "#", names, &mut errors) {
            Some(members) => Ok((members, errors)),
            None => Err(errors.into()),
        }
    }
}

fn body_too_large() -> Problem {
    let detail = format!("the body must have at most {MAX_BODY} bytes");
    Problem::new(ProblemKind::BodyTooLarge, detail)
}

/// Rejects a wrong media type, an encoding or an excessive length before the body is read.
fn check_headers(headers: &HeaderMap, media_type: &str) -> Result<(), Problem> {
    let is_declared = single_header(headers, header::CONTENT_TYPE).is_some_and(|declared| {
        let essence = declared.as_bytes().split(|byte| *byte == b';').next();
        let essence = essence.unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(media_type.as_bytes())
    });
    if !is_declared || headers.contains_key(header::CONTENT_ENCODING) {
        let detail = format!(
            "send exactly one header `Content-Type: {media_type}` and no `Content-Encoding`"
        );
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail));
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if length.unwrap_or(0) > MAX_BODY {
        return Err(body_too_large());
    }
    Ok(())
}
