//! The programs that the service is compared with. Each runs in its own process, as `rival KIND ADDRESS ARGUMENT`.
//!
//! | Kind | Behaviour | Argument |
//! | --- | --- | --- |
//! | `constant` | Returns a constant answer. | – |
//! | `document` | Returns its argument. | a text |
//! | `connected` | Opens a database connection, then returns a constant answer. | database URL |
//! | `naive` | Runs a SELECT and an INSERT per request. | database URL |
//! | `herd` | Shares one provider call per user id, in memory only. | address of the provider |

use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{Bytes, Data, Json, post, to};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, Responder, Result, error};
use moka::future::Cache;
use serde::Deserialize;
use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use uuid::Uuid;

/// An answer with the length of an answer of the service.
const ANSWER: &str = r#"{"id":"01a204ea-985b-7711-8188-6bde09e642c2","userId":"u-12345678","tokenString":"22URPv4x0DDV8twlQB7C22URPv4x0DDV8twlQB7C","expiration":"2026-11-22T21:20:13.026268Z","expiresIn":3599,"isValid":true,"country":"LT","bank":"Swedbank","access":{"accounts":true,"balances":false,"transactions":false},"issuedAt":"2026-11-22T20:20:13.030320Z","lifetime":3600,"fingerprint":"28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc1234","outcome":"reused","verificationUrl":"https://bank-verification.ui.idenfy.com/?token=22URPv4x0DDV8twlQB7C22URPv4x0DDV8twlQB7C"}"#;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    user_id: String,
    country: Option<String>,
    bank: Option<String>,
    access: Option<Access>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Access {
    accounts: bool,
    balances: bool,
    transactions: bool,
}

/// Runs a rival until SIGTERM.
pub async fn run(kind: &str, addr: &str, argument: &str) -> anyhow::Result<()> {
    let (kind, argument) = (kind.to_owned(), argument.to_owned());
    // Connections are opened before the server listens.
    let pool = match &*kind {
        "naive" => {
            let pool = PgPoolOptions::new().min_connections(16).max_connections(16);
            Some(pool.connect(&argument).await?)
        }
        _ => None,
    };
    let connection = match &*kind {
        "connected" => Some(Data::new(PgConnection::connect(&argument).await?)),
        _ => None,
    };
    let document = argument.clone();
    let herd = Herd {
        cache: Cache::new(100_000),
        client: reqwest_client(),
        upstream: argument,
    };
    let herd = Data::new(herd);
    HttpServer::new(move || {
        let app = App::new().app_data(herd.clone());
        let app = match &pool {
            Some(pool) => app.app_data(Data::new(pool.clone())),
            None => app,
        };
        let app = match &connection {
            Some(connection) => app.app_data(connection.clone()),
            None => app,
        };
        match &*kind {
            "naive" => app.route("/bank/tokens/", post().to(select_and_insert)),
            "document" => {
                let document = document.clone();
                app.default_service(to(move || std::future::ready(document.clone())))
            }
            "herd" => app.route("/bank/tokens/", post().to(share_flight)),
            _ => app.default_service(to(answer_constant)),
        }
    })
    .max_connections(20_000)
    .backlog(8192)
    .bind(addr)?
    .run()
    .await?;
    Ok(())
}

/// Parses the JSON and returns a constant answer: the upper limit for a handler.
async fn answer_constant(body: Bytes) -> Result<impl Responder> {
    if !body.is_empty() {
        let request: Request = serde_json::from_slice(&body).map_err(error::ErrorBadRequest)?;
        std::hint::black_box(request);
    }
    Ok(json(ANSWER))
}

/// Runs a SELECT for the token and an INSERT for the audit log, as in a simple implementation.
async fn select_and_insert(
    http: HttpRequest,
    request: Json<Request>,
    pool: Data<PgPool>,
) -> Result<impl Responder> {
    if http.headers().get(header::AUTHORIZATION).is_none() {
        return Err(error::ErrorUnauthorized("no credentials"));
    }
    let access = request.access.as_ref().map_or(0, |access| {
        i16::from(access.accounts)
            | i16::from(access.balances) << 1
            | i16::from(access.transactions) << 2
    });
    let (token_id, ciphertext, fingerprint): (Uuid, Vec<u8>, String) = sqlx::query_as(
        "SELECT t.id, t.ciphertext, t.fingerprint FROM slots s
         JOIN tokens t ON t.user_id = s.user_id AND t.id = s.token_id
         WHERE s.user_id = $1 AND s.country = $2 AND s.bank = $3 AND s.access = $4
           AND t.is_valid AND t.ends_at > clock_timestamp()",
    )
    .bind(&request.user_id)
    .bind(request.country.as_deref().unwrap_or_default())
    .bind(request.bank.as_deref().unwrap_or_default())
    .bind(access)
    .fetch_one(&**pool)
    .await
    .map_err(error::ErrorInternalServerError)?;
    sqlx::query(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, fingerprint)
         VALUES ($1, clock_timestamp(), 'token.reused', $2, 'naive', $3, '127.0.0.1', $4, $5, $6, $7, $8)",
    )
    .bind(Uuid::now_v7())
    .bind(&request.user_id)
    .bind(Uuid::new_v4().to_string())
    .bind(&request.country)
    .bind(&request.bank)
    .bind(access)
    .bind(token_id)
    .bind(fingerprint)
    .execute(&**pool)
    .await
    .map_err(error::ErrorInternalServerError)?;
    std::hint::black_box(ciphertext);
    Ok(json(ANSWER))
}

/// A single flight per user id in memory, without a database.
struct Herd {
    cache: Cache<String, Bytes>,
    client: reqwest::Client,
    upstream: String,
}

async fn share_flight(request: Json<Request>, herd: Data<Herd>) -> Result<impl Responder> {
    let token = herd
        .cache
        .try_get_with_by_ref(&request.user_id, herd.mint());
    let token = token
        .await
        .map_err(|error: Arc<reqwest::Error>| error::ErrorBadGateway(error))?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(token))
}

impl Herd {
    async fn mint(&self) -> Result<Bytes, reqwest::Error> {
        let call = self
            .client
            .post(format!("http://{}/bank/tokens/", self.upstream));
        let call = call.basic_auth("sandbox-key", Some("sandbox-secret"));
        let call = call
            .header("content-type", "application/json")
            .body(r#"{"country":"LT"}"#);
        call.send().await?.error_for_status()?.bytes().await
    }
}

fn reqwest_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client")
}

fn json(body: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(body)
}
