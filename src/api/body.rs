//! Reading a request's body: after its caller is known to be allowed, never before.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::json::Json;
use super::problem::Problem;
use super::problem_kind::ProblemKind;

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
        let headers = self.request.headers();
        check_media_type(headers)?;
        check_declared_length(headers)?;
        match tokio::time::timeout(MAX_BODY_TIME, collect(self.payload)).await {
            Ok(bytes) => Json::parse(&bytes?),
            Err(_) => Err(Problem::new(
                ProblemKind::RequestTimeout,
                format!("the body did not arrive within {MAX_BODY_TIME:?}"),
            )),
        }
    }
}

/// The whole body; without copying it where it came in one piece, as most do.
async fn collect(mut payload: Payload) -> Result<Bytes, Problem> {
    let Some(first) = next_chunk(&mut payload).await? else {
        return Ok(Bytes::new());
    };
    check_length(first.len())?;
    let Some(mut chunk) = next_chunk(&mut payload).await? else {
        return Ok(first);
    };
    let mut body = BytesMut::from(first);
    loop {
        check_length(body.len() + chunk.len())?;
        body.extend_from_slice(&chunk);
        match next_chunk(&mut payload).await? {
            Some(next) => chunk = next,
            None => return Ok(body.freeze()),
        }
    }
}

async fn next_chunk(payload: &mut Payload) -> Result<Option<Bytes>, Problem> {
    let broken = |_| Problem::new(ProblemKind::Malformed, "the body breaks off");
    payload.next().await.transpose().map_err(broken)
}

fn check_length(length: usize) -> Result<(), Problem> {
    if length <= MAX_BODY {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::BodyTooLarge,
        format!("a body has at most {MAX_BODY} bytes"),
    ))
}

/// Refuses by what the request says of itself, before a byte is read.
fn check_declared_length(headers: &HeaderMap) -> Result<(), Problem> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .map_or(Ok(()), check_length)
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut declared = headers.get_all(header::CONTENT_TYPE);
    let is_json = match (declared.next(), declared.next()) {
        (Some(only), None) => {
            let essence = only.as_bytes().split(|byte| *byte == b';').next();
            essence.is_some_and(|essence| {
                essence
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"application/json")
            })
        }
        _ => false,
    };
    let detail = if !is_json {
        "the body must be declared once, as `Content-Type: application/json`"
    } else if headers.contains_key(header::CONTENT_ENCODING) {
        "the body must come without a `Content-Encoding`"
    } else {
        return Ok(());
    };
    Err(Problem::new(ProblemKind::UnsupportedMediaType, detail))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    async fn read(request: TestRequest) -> Result<Json, ProblemKind> {
        let (request, mut payload) = request.to_http_parts();
        let body = Body::from_request(&request, &mut payload).await;
        let body = body.expect("inert");
        body.read().await.map_err(|problem| problem.kind())
    }

    #[tokio::test]
    async fn only_plain_json_is_read() {
        for (media_type, good) in [
            ("application/json", true),
            ("Application/JSON ; charset=utf-8", true),
            ("text/json", false),
            ("application/json, text/plain", false),
            ("application/problem+json", false),
            ("", false),
        ] {
            let request = TestRequest::post()
                .insert_header((header::CONTENT_TYPE, media_type))
                .set_payload("{}");
            let expected = match good {
                true => Ok(Json::Object(vec![])),
                false => Err(ProblemKind::UnsupportedMediaType),
            };
            assert_eq!(read(request).await, expected, "{media_type}");
        }
    }

    #[tokio::test]
    async fn a_missing_or_repeated_type_and_any_encoding_are_refused() {
        let json = ("content-type", "application/json");
        let refused = Err(ProblemKind::UnsupportedMediaType);
        let none = TestRequest::post().set_payload("{}");
        assert_eq!(read(none).await, refused);
        let twice = TestRequest::post().insert_header(json).append_header(json);
        assert_eq!(read(twice).await, refused);
        let encoded = TestRequest::post()
            .insert_header(json)
            .insert_header((header::CONTENT_ENCODING, "identity"));
        assert_eq!(read(encoded).await, refused);
    }

    #[tokio::test]
    async fn the_bound_holds_declared_or_not() {
        let request =
            || TestRequest::post().insert_header((header::CONTENT_TYPE, "application/json"));
        let longest = format!("\"{}\"", "x".repeat(MAX_BODY - 2));
        assert!(read(request().set_payload(longest.clone())).await.is_ok());
        let over = read(request().set_payload(longest + " ")).await;
        assert_eq!(over, Err(ProblemKind::BodyTooLarge));
        let declared = request().insert_header((header::CONTENT_LENGTH, "1000000"));
        assert_eq!(read(declared).await, Err(ProblemKind::BodyTooLarge));
        assert_eq!(read(request()).await, Err(ProblemKind::Malformed));
    }
}
