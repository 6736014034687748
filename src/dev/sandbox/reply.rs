//! Mints tokens and sends answers.

use std::any::Any;
use std::convert::Infallible;
use std::future::pending;
use std::io::Write;
use std::iter::repeat_with;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::dev::Extensions;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::Answer;
use super::validation::TokenRequest;

/// Mints a token. Returns the token string and the body of the 201.
pub(super) fn mint(request: &TokenRequest, answer: &Answer) -> (String, Value) {
    let life = match answer {
        Answer::Expires { after_ms } => TimeDelta::milliseconds(*after_ms),
        _ => TimeDelta::seconds(request.lifetime.into()) + clock_skew(answer),
    };
    let token_string: String = repeat_with(fastrand::alphanumeric).take(40).collect();
    #[expect(
        clippy::disallowed_methods,
        reason = "the sandbox acts as the provider, which has its own clock"
    )]
    let mut document = json!({
        "tokenString": token_string,
        "expiration": (Utc::now() + life).to_rfc3339_opts(SecondsFormat::Micros, true),
        "isValid": true,
        "country": request.country,
        "bank": request.bank,
        "access": request.access,
    });
    match answer {
        Answer::Override(member, Some(value)) => document[*member] = value.clone(),
        Answer::Override(member, None) => {
            document
                .as_object_mut()
                .map(|members| members.remove(*member));
        }
        _ => {}
    }
    (token_string, document)
}

/// Sends an answer that was decided at `decided_at`, which `Date` shows.
///
/// The latency comes after that time, as on a slow way back. `document` is the body of the 201, or null if nothing
/// was minted.
pub(super) async fn send(
    request: &HttpRequest,
    decided_at: DateTime<Utc>,
    answer: Answer,
    document: Value,
) -> HttpResponse {
    let document = document.to_string();
    let mut response = head(decided_at, &answer);
    match answer {
        Answer::Status(_, identifier, message) => response.json(json!({
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
        Answer::Reset => send_raw_and_close(request, "").await,
        Answer::Verbatim { text } => send_raw_and_close(request, &text).await,
        Answer::WithoutDate => {
            let text = format!(
                "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{document}",
                document.len()
            );
            send_raw_and_close(request, &text).await
        }
        Answer::Hang => pending().await,
        Answer::Drip { pause_ms } => {
            let pause = Duration::from_millis(pause_ms);
            let length = document.len() as u64;
            let bytes = stream::iter(document.into_bytes()).then(move |byte| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(Bytes::from(vec![byte]))
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

/// Returns the status and the headers.
///
/// Includes `Date`: actix would set the time of sending, up to half a second late.
fn head(decided_at: DateTime<Utc>, answer: &Answer) -> HttpResponseBuilder {
    let status = match answer {
        Answer::Status(status, ..) | Answer::Raw { status, .. } => *status,
        Answer::Redirect { .. } => 302,
        _ => 201,
    };
    let mut response =
        HttpResponse::build(StatusCode::from_u16(status).expect("a status from 200 to 999"));
    let date = (decided_at + clock_skew(answer)).format("%a, %d %b %Y %H:%M:%S GMT");
    response.insert_header((header::DATE, date.to_string()));
    match status {
        401 => response.insert_header((header::WWW_AUTHENTICATE, "Basic realm=\"api\"")),
        405 => response.insert_header((header::ALLOW, "POST, OPTIONS")),
        _ => &mut response,
    };
    response.content_type("application/json");
    response
}

fn clock_skew(answer: &Answer) -> TimeDelta {
    match answer {
        Answer::Skewed { ahead_secs } => TimeDelta::seconds(*ahead_secs),
        _ => TimeDelta::zero(),
    }
}

/// Stores a second handle of each new connection, so that an answer can bypass the HTTP server.
pub(super) fn keep_handle(connection: &dyn Any, extensions: &mut Extensions) {
    let connection = connection.downcast_ref::<actix_web::rt::net::TcpStream>();
    if let Some(Ok(handle)) = connection.map(|stream| stream.as_fd().try_clone_to_owned()) {
        extensions.insert(TcpStream::from(handle));
    }
}

/// Sends these bytes instead of a response and closes the connection.
async fn send_raw_and_close(request: &HttpRequest, text: &str) -> HttpResponse {
    let mut connection: &TcpStream = request
        .conn_data()
        .expect("`keep_handle` stored the connection");
    // The socket does not block. Errors mean that the caller has gone.
    let _ = connection.write_all(text.as_bytes());
    let _ = connection.shutdown(Shutdown::Both);
    // The HTTP server notices the closed connection and drops this request.
    pending().await
}
