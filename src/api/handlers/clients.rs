//! `/clients/`: manages the clients of this service.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentType};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use ipnet::IpNet;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::token_view::PageView;
use crate::api::extract::authorization::{Authorized, ClientsManage, count_denial};
use crate::api::extract::body::Body;
use crate::api::extract::client_key::ClientKey;
use crate::api::extract::cursor::{decode_key, encode_key};
use crate::api::extract::fields;
use crate::api::extract::json::Json;
use crate::api::extract::query::{self, read_parameters, reject_parameters};
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::auth::clients;
use crate::db::Lane;
use crate::db::clients::{find_client_record, list_clients as list_records};
use crate::model::rules::{self, CLIENT_LIMITS, EXPIRIES, MAX_GRACE, MAX_NETWORKS};
use crate::model::{ClientChange, ClientRecord, ClientRefusal, Operator, Origin, Scope};

/// The query parameters of the list.
pub const LIST: [&str; 2] = ["limit", "cursor"];

/// The members of a new client and of a change.
pub const SETTINGS: [&str; 7] = [
    "name",
    "scopes",
    "mintsPerHour",
    "requestsPerSecond",
    "allowFrom",
    "expiresInSeconds",
    "oidcSubject",
];

/// The members of a rotation.
pub const ROTATION: [&str; 2] = ["graceSeconds", "expiresInSeconds"];

/// The allowed times for which the old secret stays valid, in seconds.
pub const GRACES: RangeInclusive<i32> = 0..=MAX_GRACE.as_secs() as i32;

/// The default time for which the old secret stays valid, in seconds.
pub const DEFAULT_GRACE: i32 = 86_400;

/// `GET /clients/`. Returns one page of clients, in the order of their keys.
pub async fn list_clients(
    _authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let [limit, cursor] = read_parameters(request.query_string(), LIST, &mut errors);
    let limit = errors.check_parameter("limit", query::limit(limit));
    let after = errors.check_optional("cursor", cursor, |text| decode_key(&text));
    let limit = errors.into_result(limit)? as usize;
    let rows = state.db.run(Lane::Reads, async move |mut connection| {
        list_records(&mut connection, after.as_deref(), limit as i64 + 1).await
    });
    let mut items = rows.await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| has_more);
    let next_cursor = next.map(|client| encode_key(&client.api_key));
    Ok(HttpResponse::Ok().json(PageView { items, next_cursor }))
}

/// `POST /clients/`. Creates a client. Only this response has its secret.
pub async fn create_client(
    authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let (members, mut errors) = body.read_object(SETTINGS).await?;
    for (name, member) in SETTINGS.iter().zip(&members[..2]) {
        if member.is_none() {
            errors.add_member(format!("#/{name}"), "is required");
        }
    }
    let change = read_change(members, errors)?;
    let operator = operator(authorized);
    let by = operator.clone();
    let created = state.db.run(Lane::Upkeep, async move |mut connection| {
        clients::create_client(&mut connection, change, &by).await
    });
    let created = created.await?;
    let created = created.map_err(|refusal| refuse(refusal, &operator, &request, &state))?;
    Ok(respond_with_secret(StatusCode::CREATED, &created))
}

/// `GET /clients/{key}`. Returns a client without its secret.
pub async fn get_client(
    _authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let key = key.into_inner().0;
    let found = state.db.run(Lane::Reads, async move |mut connection| {
        find_client_record(&mut connection, &key).await
    });
    let client = found
        .await?
        .ok_or_else(|| Problem::not_found("no client has this key"))?;
    Ok(HttpResponse::Ok().json(client))
}

/// `PATCH /clients/{key}`. Changes the members that the body has. Null removes a value.
pub async fn update_client(
    authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let (members, errors) = body.read_object(SETTINGS).await?;
    let change = read_change(members, errors)?;
    let operator = operator(authorized);
    let (by, key) = (operator.clone(), key.into_inner().0);
    let updated = state.db.run(Lane::Upkeep, async move |mut connection| {
        clients::update_client(&mut connection, &key, change, &by).await
    });
    let updated = updated.await?;
    let client = updated.map_err(|refusal| refuse(refusal, &operator, &request, &state))?;
    Ok(HttpResponse::Ok().json(client))
}

/// `POST /clients/{key}/rotate`. Gives a client a new secret. Only this response has it.
pub async fn rotate_client(
    authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([grace, expires_in], mut errors) = body.read_optional_object(ROTATION).await?;
    let grace = errors.check_member(
        "#/graceSeconds",
        fields::optional_integer(grace, GRACES).map(|grace| grace.unwrap_or(DEFAULT_GRACE)),
    );
    let expires_in = fields::optional_integer(expires_in, EXPIRIES);
    let expires_in = errors.check_member("#/expiresInSeconds", expires_in);
    let (grace, expires_in) = errors.into_result(grace.zip(expires_in))?;
    let operator = operator(authorized);
    let (by, key) = (operator.clone(), key.into_inner().0);
    let rotated = state.db.run(Lane::Upkeep, async move |mut connection| {
        let (grace, expires_in) = (seconds(grace), expires_in.map(seconds));
        clients::rotate_client(&mut connection, &key, grace, expires_in, &by).await
    });
    let rotated = rotated.await?;
    let rotated = rotated.map_err(|refusal| refuse(refusal, &operator, &request, &state))?;
    Ok(respond_with_secret(StatusCode::OK, &rotated))
}

/// `POST /clients/{key}/disable`. Disables a client, which cannot be undone. A repeated call succeeds.
///
/// A client can disable itself.
pub async fn disable_client(
    authorized: Authorized<ClientsManage>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let operator = operator(authorized);
    let (by, key) = (operator.clone(), key.into_inner().0);
    let disabled = state.db.run(Lane::Upkeep, async move |mut connection| {
        clients::disable_client(&mut connection, &key, &by).await
    });
    let disabled = disabled.await?;
    let client = disabled.map_err(|refusal| refuse(refusal, &operator, &request, &state))?;
    Ok(HttpResponse::Ok().json(client))
}

/// Returns the caller as the one who changes clients. It can grant only its own scopes.
pub fn operator<S>(authorized: Authorized<S>) -> Operator {
    Operator {
        scopes: Some(authorized.client().scopes.clone()),
        origin: Origin::Request(authorized.into_caller()),
    }
}

/// Returns the problem of a refusal. Counts a missing scope for the audit log.
pub fn refuse(
    refusal: ClientRefusal,
    operator: &Operator,
    request: &HttpRequest,
    state: &ApiState,
) -> Problem {
    match refusal {
        ClientRefusal::Unknown(_) => Problem::not_found("no client has this key"),
        ClientRefusal::NameTaken(_) => {
            let mut errors = FieldErrors::default();
            errors.add_member("#/name", refusal.to_string());
            errors.into()
        }
        ClientRefusal::SubjectTaken(_) => {
            let mut errors = FieldErrors::default();
            errors.add_member("#/oidcSubject", refusal.to_string());
            errors.into()
        }
        ClientRefusal::Disabled(_) | ClientRefusal::NoSecret(_) => {
            Problem::new(ProblemKind::Validation, refusal.to_string())
        }
        ClientRefusal::ScopeNotHeld(_) => {
            if let Origin::Request(caller) = &operator.origin {
                count_denial(state, request, caller.client.clone());
            }
            Problem::new(ProblemKind::Forbidden, refusal.to_string())
        }
        ClientRefusal::KeyTaken(_) => Problem::internal(refusal),
    }
}

/// A client with its new secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WithSecretView<'a> {
    #[serde(flatten)]
    client: &'a ClientRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_secret: Option<&'a str>,
}

fn respond_with_secret(
    status: StatusCode,
    (client, secret): &(ClientRecord, Option<SecretString>),
) -> HttpResponse {
    // Does not grow, because a reallocation would leave a copy of the secret.
    let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
    let view = WithSecretView {
        client,
        api_secret: secret.as_ref().map(ExposeSecret::expose_secret),
    };
    serde_json::to_writer(&mut *body, &view).expect("a client can be serialized");
    let mut response = HttpResponse::build(status);
    if status == StatusCode::CREATED {
        let location = format!("/clients/{}", client.api_key);
        response.insert_header((header::LOCATION, location));
    }
    response
        .content_type(ContentType::json())
        .body(Bytes::from_owner(body))
}

/// Parses the members of [`SETTINGS`]. Returns every field error.
fn read_change(
    [
        name,
        scopes,
        mints_per_hour,
        requests_per_second,
        allow_from,
        expires_in,
        oidc_subject,
    ]: [Option<Json>; 7],
    mut errors: FieldErrors,
) -> Result<ClientChange, FieldErrors> {
    let name = name.map(|name| fields::required_string(Some(name)).and_then(rules::client_name));
    let name = name.map(|name| errors.check_member("#/name", name));
    let scopes = scopes.map(|scopes| errors.check_member("#/scopes", read_scopes(scopes)));
    let mut integer = |pointer, value, range| {
        errors.check_member(pointer, fields::nullable_integer(value, range))
    };
    let mints_per_hour = integer("#/mintsPerHour", mints_per_hour, CLIENT_LIMITS);
    let requests = integer("#/requestsPerSecond", requests_per_second, CLIENT_LIMITS);
    let expires_in = integer("#/expiresInSeconds", expires_in, EXPIRIES);
    let allow_from = allow_from.map(read_networks).transpose();
    let allow_from = errors.check_member("#/allowFrom", allow_from);
    let oidc_subject = oidc_subject.map(read_subject).transpose();
    let oidc_subject = errors.check_member("#/oidcSubject", oidc_subject);
    let change = || {
        Some(ClientChange {
            name: name.flatten(),
            scopes: scopes.flatten(),
            mints_per_hour: mints_per_hour?,
            requests_per_second: requests?,
            allow_from: allow_from?,
            expires_in: expires_in?.map(|length| length.map(seconds)),
            oidc_subject: oidc_subject?,
        })
    };
    errors.into_result(change())
}

fn read_scopes(value: Json) -> Result<BTreeSet<Scope>, Detail> {
    let scope = |text: String| {
        Scope::from_name(&text).ok_or_else(|| {
            let names: Vec<_> = Scope::ALL.iter().map(|scope| scope.name()).collect();
            format!("must contain only scopes: {}", names.join(", ")).into()
        })
    };
    let scopes = fields::list(value, "a list of scopes", scope)?;
    match scopes.is_empty() {
        true => Err("must have at least one scope".into()),
        false => Ok(scopes.into_iter().collect()),
    }
}

fn read_networks(value: Json) -> Result<Option<Vec<IpNet>>, Detail> {
    if value == Json::Null {
        return Ok(None);
    }
    let networks = fields::list(value, "a list of CIDRs or null", |text| {
        rules::network(&text)
    })?;
    match networks.len() {
        1..=MAX_NETWORKS => Ok(Some(networks)),
        _ => Err(format!("must have 1 to {MAX_NETWORKS} CIDRs; null allows every address").into()),
    }
}

fn read_subject(value: Json) -> Result<Option<String>, Detail> {
    match value {
        Json::Null => Ok(None),
        value => {
            let text = fields::required_string(Some(value))?;
            rules::oidc_subject(&text).map(Some)
        }
    }
}

/// Returns a duration of whole seconds.
pub fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(seconds.unsigned_abs().into())
}
