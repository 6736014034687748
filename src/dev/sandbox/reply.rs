//! Mints tokens and puts answers on the wire.

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

/// A new token: its string, and the document of the 201 that tells of it.
pub(super) fn mint(asked: &TokenRequest, answer: &Answer) -> (String, Value) {
    let life = match answer {
        Answer::Expires { after_ms } => TimeDelta::milliseconds(*after_ms),
        _ => TimeDelta::seconds(asked.lifetime.into()) + ahead(answer),
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
        "country": asked.country,
        "bank": asked.bank,
        "access": asked.access,
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

/// Answers, as decided at `at`: a latency is one of the way back, and `Date` is from before it.
/// `document` is of the token, if one was minted.
pub(super) async fn send(
    request: &HttpRequest,
    at: DateTime<Utc>,
    answer: Answer,
    document: Value,
) -> HttpResponse {
    let document = document.to_string();
    let mut response = head(at, &answer);
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
        Answer::Reset => cut(request, "").await,
        Answer::Verbatim { text } => cut(request, &text).await,
        Answer::WithoutDate => {
            let text = format!(
                "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{document}",
                document.len()
            );
            cut(request, &text).await
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

/// The status and the headers, `Date` included: the web framework's own is of the sending, and may
/// be half a second late.
fn head(at: DateTime<Utc>, answer: &Answer) -> HttpResponseBuilder {
    let status = match answer {
        Answer::Status(status, ..) | Answer::Raw { status, .. } => *status,
        Answer::Redirect { .. } => 302,
        _ => 201,
    };
    let mut response = HttpResponse::build(StatusCode::from_u16(status).expect("a status"));
    let date = (at + ahead(answer)).format("%a, %d %b %Y %H:%M:%S GMT");
    response.insert_header((header::DATE, date.to_string()));
    match status {
        401 => response.insert_header((header::WWW_AUTHENTICATE, "Basic realm=\"api\"")),
        405 => response.insert_header((header::ALLOW, "POST, OPTIONS")),
        _ => &mut response,
    };
    response.content_type("application/json");
    response
}

fn ahead(answer: &Answer) -> TimeDelta {
    match answer {
        Answer::Skewed { ahead_secs } => TimeDelta::seconds(*ahead_secs),
        _ => TimeDelta::zero(),
    }
}

/// Keeps a second handle of a new connection, for what an HTTP server does not let one send:
/// called by the server for each.
pub(super) fn keep_handle(connection: &dyn Any, extensions: &mut Extensions) {
    let connection = connection.downcast_ref::<actix_web::rt::net::TcpStream>();
    if let Some(Ok(handle)) = connection.map(|it| it.as_fd().try_clone_to_owned()) {
        extensions.insert(TcpStream::from(handle));
    }
}

/// Sends these bytes in place of an answer and closes the connection.
async fn cut(request: &HttpRequest, text: &str) -> HttpResponse {
    let mut connection: &TcpStream = request.conn_data().expect("a handle of the connection");
    // The socket does not block; a caller who is gone misses nothing.
    let _ = connection.write_all(text.as_bytes());
    let _ = connection.shutdown(Shutdown::Both);
    // The HTTP server sees the end of the connection and drops this request.
    pending().await
}
