//! `/bank/tokens/`: issues tokens and reads their records.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::http::header::{self, ContentType, HeaderName};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use secrecy::zeroize::Zeroizing;
use uuid::Uuid;

use super::token_view::{PageView, RecordView, TokenView, outcome};
use crate::api::extract::authorization::{Authorized, TokensIssue, TokensRead};
use crate::api::extract::body::Body;
use crate::api::extract::cache_control::{Directives, cache_status};
use crate::api::extract::cursor::Cursor;
use crate::api::extract::fields;
use crate::api::extract::json::{Json, read_members};
use crate::api::extract::query::{self, read_parameters, reject_parameters};
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::audit_events::TokenReadRow;
use crate::db::tokens::{TokenFilter, find_token, list_tokens as list_records};
use crate::db::{Checkout, Database, Lane};
use crate::model::rules;
use crate::model::{Access, Caller, Combination, EventKind, Scope, Token};
use crate::vending::{IssuedToken, TokenRequest};

/// The members of a token request.
pub const TOKEN_REQUEST: [&str; 5] = ["userId", "lifetime", "country", "bank", "access"];

/// The members of `access` in a token request.
pub const ACCESS: [&str; 3] = ["accounts", "balances", "transactions"];

/// The query parameters of the list.
pub const FILTER: [&str; 8] = [
    "userId", "country", "bank", "isValid", "from", "to", "limit", "cursor",
];

/// The allowed lifetimes, in seconds.
pub const LIFETIMES: RangeInclusive<i32> = 0..=2_592_000;

/// The default lifetime, in seconds.
pub const DEFAULT_LIFETIME: i32 = 3600;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// `POST /bank/tokens/`. Returns a token of the combination.
///
/// The status is 201 for the request that started the mint, and 200 for all others.
pub async fn issue_token(
    authorized: Authorized<TokensIssue>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let document = body.read_json().await?;
    let may_renew = authorized.holds_scope(Scope::TokensRenew);
    let mut token_request =
        read_token_request(document, &request, may_renew, state.vendor.min_remaining())?;
    token_request.mints_per_hour = authorized.client().limits.mints_per_hour;
    let waited = authorized.waited();
    let issued = state
        .vendor
        .issue(token_request, authorized.into_caller(), waited)
        .await?;
    Ok(respond_with_token(&issued, &state.verification_base_url))
}

/// Parses a token request from its body, query string and headers. Returns every field error.
pub fn read_token_request(
    document: Json,
    request: &HttpRequest,
    may_renew: bool,
    min_remaining: Duration,
) -> Result<TokenRequest, FieldErrors> {
    let mut errors = FieldErrors::default();
    let [] = read_parameters(request.query_string(), [], &mut errors);
    let (combination, lifetime) = read_members(document, "#", TOKEN_REQUEST, &mut errors)
        .map_or((None, None), |members| check_members(members, &mut errors));
    let directives = Directives::read(request.headers(), lifetime, &mut errors);
    let token_request = combination.zip(lifetime).map(|(combination, lifetime)| {
        let renew = directives.no_cache && may_renew;
        TokenRequest::new(
            combination,
            lifetime,
            directives.min_fresh,
            renew,
            min_remaining,
        )
    });
    errors.into_result(token_request)
}

/// Returns the combination and the lifetime. Either is `None` if it has a field error.
fn check_members(
    [user_id, lifetime, country, bank, access]: [Option<Json>; 5],
    errors: &mut FieldErrors,
) -> (Option<Combination>, Option<i32>) {
    let user_id = fields::required_string(user_id).and_then(rules::user_id);
    let user_id = errors.check_member("#/userId", user_id);
    let lifetime = errors.check_member("#/lifetime", fields::optional_integer(lifetime, LIFETIMES));
    let country = fields::nullable_string(country, fields::country);
    let country = errors.check_member("#/country", country);
    let bank = errors.check_member("#/bank", fields::nullable_string(bank, rules::bank));
    let access = match access {
        None => Some(Access::default()),
        Some(access) => read_access(access, errors),
    };
    let combination = || {
        Some(Combination {
            user_id: user_id?.into(),
            country: country?,
            bank: bank?.map(Into::into),
            access: access?,
        })
    };
    let lifetime = lifetime.map(|seconds| seconds.unwrap_or(DEFAULT_LIFETIME));
    (combination(), lifetime)
}

fn read_access(value: Json, errors: &mut FieldErrors) -> Option<Access> {
    let [accounts, balances, transactions] = read_members(value, "#/access", ACCESS, errors)?;
    let mut flag = |pointer, value| errors.check_member(pointer, fields::optional_boolean(value));
    let accounts = flag("#/access/accounts", accounts);
    let balances = flag("#/access/balances", balances);
    let transactions = flag("#/access/transactions", transactions);
    Some(Access {
        accounts: accounts?.unwrap_or(false),
        balances: balances?.unwrap_or(false),
        transactions: transactions?.unwrap_or(false),
    })
}

fn respond_with_token(issued: &IssuedToken, verification_base_url: &str) -> HttpResponse {
    let mut response = if issued.minted {
        let location = format!("/bank/tokens/{}", issued.token().id);
        let mut created = HttpResponse::Created();
        created.insert_header((header::LOCATION, location));
        created
    } else {
        HttpResponse::Ok()
    };
    // Does not grow, because a reallocation would leave a copy of the token string. A byte of it becomes at most 6 bytes
    // as JSON and 3 in the link.
    let secret = issued.token().token_string.expose();
    let capacity = 1536 + verification_base_url.len() + 9 * secret.len();
    let mut body = Zeroizing::new(Vec::with_capacity(capacity));
    let view = TokenView::new(issued, verification_base_url);
    serde_json::to_writer(&mut *body, &view).expect("a token can be serialized");
    let mut response = response
        .insert_header((CACHE_STATUS, cache_status(issued)))
        .content_type(ContentType::json())
        .body(Bytes::from_owner(body));
    response
        .extensions_mut()
        .insert(LoggedOutcome(outcome(issued)));
    response
}

/// `GET /bank/tokens/{id}`. Returns the current record from the primary.
pub async fn get_token(
    authorized: Authorized<TokensRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let token = read_token(&state, id.into_inner(), authorized.into_caller())
        .await?
        .ok_or_else(|| Problem::not_found("no token has this id"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

/// Returns the current record of a token from the primary, and records the read.
pub async fn read_token(
    state: &ApiState,
    id: Uuid,
    caller: Caller,
) -> Result<Option<Token>, Problem> {
    let find = async move |mut connection: Checkout| find_token(&mut connection, id).await;
    let token = state.db.run(Lane::Reads, find).await?;
    if let Some(token) = &token {
        let read = TokenReadRow::of_record(EventKind::TokenRead, caller, token);
        state.token_reads.record(read).await?;
    }
    Ok(token)
}

/// `GET /bank/tokens/`. Returns one page of matching records, newest first.
pub async fn list_tokens(
    authorized: Authorized<TokensRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let list = ListTokens::from_query(request.query_string())?;
    let caller = authorized.into_caller();
    let (tokens, next_cursor) = read_tokens(&state, state.reads(), list, caller).await?;
    Ok(HttpResponse::Ok().json(PageView {
        items: tokens.iter().map(RecordView::new).collect(),
        next_cursor,
    }))
}

/// Reads one page of records from `db`, and records the read. Also returns the cursor of the next page, if there is one.
pub async fn read_tokens(
    state: &ApiState,
    db: &Database,
    list: ListTokens,
    caller: Caller,
) -> Result<(Vec<Token>, Option<String>), Problem> {
    let ListTokens {
        filter,
        limit,
        after,
    } = list;
    let query_filter = filter.clone();
    let after = after.map(|cursor| (cursor.at, cursor.id));
    // One more than the page holds tells whether there is a next page.
    let max_rows = i64::from(limit) + 1;
    let rows = db.run(Lane::Reads, async move |mut connection| {
        list_records(&mut connection, &query_filter, after, max_rows).await
    });
    let mut tokens = rows.await?;
    let has_more = tokens.len() > limit as usize;
    tokens.truncate(limit as usize);
    let read = TokenReadRow::of_list(caller, &filter, &tokens);
    state.token_reads.record(read).await?;
    let next = tokens.last().filter(|_| has_more).map(|token| Cursor {
        at: token.issued_at,
        id: token.id,
        until: None,
    });
    Ok((tokens, next.map(|cursor| cursor.encode(&filter))))
}

/// The query of `GET /bank/tokens/`.
#[derive(Debug)]
pub struct ListTokens {
    /// Selects the records.
    pub filter: TokenFilter,
    limit: u32,
    after: Option<Cursor>,
}

impl ListTokens {
    /// Parses the query string. Returns every field error.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [user_id, country, bank, is_valid, from, to, limit, cursor] =
            read_parameters(query, FILTER, &mut errors);
        let has_user = user_id.is_some();
        let filter = TokenFilter {
            user_id: errors.check_optional("userId", user_id, rules::user_id),
            country: errors.check_optional("country", country, fields::country),
            bank: errors.check_optional("bank", bank, rules::bank),
            is_valid: errors.check_optional("isValid", is_valid, query::boolean),
            ..TokenFilter::default()
        };
        // No index serves these filters. With a user, they are applied to the records of that user only.
        for (name, is_set) in [
            ("country", filter.country.is_some()),
            ("bank", filter.bank.is_some()),
            ("isValid", filter.is_valid.is_some()),
        ] {
            if is_set && !has_user {
                errors.add_parameter(name, "can only be used together with userId");
            }
        }
        let [from, to] = query::time_range(from, to, &mut errors);
        let filter = TokenFilter { from, to, ..filter };
        let limit = errors.check_parameter("limit", query::limit(limit));
        let after = cursor
            .and_then(|text| errors.check_parameter("cursor", Cursor::decode(&text, &filter)));
        let query = limit.map(|limit| ListTokens {
            filter,
            limit,
            after,
        });
        errors.into_result(query)
    }
}
