//! Mints tokens and puts answers on the wire.

use std::convert::Infallible;
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

use super::wire::Wire;
use super::{Answer, TokenRequest};

/// A new token and the 201 that tells of it.
pub(super) struct Minted {
    pub token_string: String,
    pub document: Map<String, Value>,
}

pub(super) fn mint(asked: &TokenRequest, answer: &Answer) -> Minted {
    let life = match answer {
        Answer::Expires { after_ms } => TimeDelta::milliseconds(*after_ms),
        _ => TimeDelta::seconds(asked.lifetime.into()) + ahead(answer),
    };
    let token_string = random_token_string();
    let expiration = (Utc::now() + life).to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut document = Map::from_iter([
        ("tokenString".to_owned(), json!(token_string)),
        ("expiration".to_owned(), json!(expiration)),
        ("isValid".to_owned(), json!(true)),
        ("country".to_owned(), json!(asked.country)),
        ("bank".to_owned(), json!(asked.bank)),
        ("access".to_owned(), json!(asked.access)),
    ]);
    if let Answer::Override { set, remove } = answer {
        document.extend(set.clone());
        document.retain(|member, _| !remove.contains(member));
    }
    Minted {
        token_string,
        document,
    }
}

/// Forty characters, each of the 62 as likely as the others.
fn random_token_string() -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(40);
    while text.len() < 40 {
        let mut bytes = [0; 48];
        getrandom::fill(&mut bytes).expect("the system's random source works");
        let fair = bytes.iter().filter(|byte| **byte < 248);
        text.extend(fair.map(|byte| char::from(ALPHABET[usize::from(byte % 62)])));
    }
    text.truncate(40);
    text
}

/// Answers, as decided at `at`: a latency is one of the way back, and `Date` is from before it.
/// `document` is there where a token was minted.
pub(super) async fn send(
    request: &HttpRequest,
    at: DateTime<Utc>,
    answer: Answer,
    document: Option<Map<String, Value>>,
) -> HttpResponse {
    let document = json!(document).to_string();
    let mut response = head(at, &answer);
    match answer {
        Answer::Status {
            identifier,
            message,
            ..
        } => response.json(json!({
            "identifier": identifier,
            "message": message,
            "documentation": "",
            "severity": "NOT_SEVERE",
        })),
        Answer::Raw {
            content_type, body, ..
        } => response.content_type(content_type).body(body),
        Answer::Redirect { location } => response
            .insert_header((header::LOCATION, location))
            .finish(),
        Answer::Reset => Wire::of(request).cut(b"").await,
        Answer::Verbatim { text } => Wire::of(request).cut(text.as_bytes()).await,
        Answer::WithoutDate => {
            let response = format!(
                "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{document}",
                document.len()
            );
            Wire::of(request).cut(response.as_bytes()).await
        }
        Answer::Hang => std::future::pending().await,
        Answer::Drip { pause_ms } => {
            let pause = Duration::from_millis(pause_ms);
            let length = document.len() as u64;
            let bytes = stream::iter(document.into_bytes()).then(move |byte| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(Bytes::copy_from_slice(&[byte]))
            });
            response.body(SizedStream::new(length, bytes))
        }
        Answer::Flood => {
            let chunk = Ok::<_, Infallible>(Bytes::from_static(&[b' '; 8192]));
            response.streaming(stream::repeat(chunk))
        }
        _ => response.body(document),
    }
}

/// The status and the headers, `Date` included: the web framework's own is of the sending, and may
/// be half a second late.
fn head(at: DateTime<Utc>, answer: &Answer) -> HttpResponseBuilder {
    let status = answer
        .http_status()
        .filter(|status| *status >= 200)
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let date = (at + ahead(answer)).format("%a, %d %b %Y %H:%M:%S GMT");
    let mut response = HttpResponse::build(status);
    response.insert_header((header::DATE, date.to_string()));
    response.content_type("application/json");
    match status {
        StatusCode::UNAUTHORIZED => {
            response.insert_header((header::WWW_AUTHENTICATE, "Basic realm=\"api\""));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            response.insert_header((header::ALLOW, "POST, OPTIONS"));
        }
        _ => {}
    }
    response
}

fn ahead(answer: &Answer) -> TimeDelta {
    match answer {
        Answer::Skewed { ahead_secs } => TimeDelta::seconds(*ahead_secs),
        _ => TimeDelta::zero(),
    }
}
