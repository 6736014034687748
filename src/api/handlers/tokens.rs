//! `/bank/tokens/`: get a token, read records.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::http::header::{self, ContentType, HeaderName};
use actix_web::{HttpRequest, HttpResponse, web};
use uuid::Uuid;

use super::token_view::{PageView, RecordView, TokenView, outcome};
use crate::api::extract::authorization::{Authorized, TokensIssue, TokensRead};
use crate::api::extract::body::Body;
use crate::api::extract::cache_control::{Directives, cache_status};
use crate::api::extract::cursor::Cursor;
use crate::api::extract::fields;
use crate::api::extract::json::{Json, members};
use crate::api::extract::query::{self, no_parameters, parameters};
use crate::api::middleware::request_context::Outcome;
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::Database;
use crate::db::tokens::{TokenFilter, find_token, list_tokens as list_records};
use crate::model::{Access, Combination, Scope, Token};
use crate::vending::{IssuedToken, TokenRequest};

/// The members of a request for a token.
pub const TOKEN_REQUEST: [&str; 5] = ["userId", "lifetime", "country", "bank", "access"];

/// The members of its access.
pub const ACCESS: [&str; 3] = ["accounts", "balances", "transactions"];

/// The parameters of the list.
pub const FILTER: [&str; 8] = [
    "userId", "country", "bank", "isValid", "from", "to", "limit", "cursor",
];

/// Seconds of life that may be asked for.
pub const LIFETIMES: RangeInclusive<i32> = 0..=2_592_000;

/// The life of a token whose request does not say, in seconds.
pub const DEFAULT_LIFETIME: i32 = 3600;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// `POST /bank/tokens/`: a token of the combination; 201 for the request that had it minted, 200
/// for every other.
pub async fn issue_token(
    authorized: Authorized<TokensIssue>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let document = body.read().await?;
    let may_renew = authorized.also(Scope::TokensRenew);
    let token_request =
        read_token_request(document, &request, may_renew, state.vendor.min_remaining())?;
    let issued = state
        .vendor
        .issue(token_request, authorized.into_caller())
        .await?;
    Ok(answer_token(&issued, &state.verification_base_url))
}

/// Reads all that a request for a token says, and names all that is wrong with it at once.
pub fn read_token_request(
    document: Json,
    request: &HttpRequest,
    may_renew: bool,
    min_remaining: Duration,
) -> Result<TokenRequest, FieldErrors> {
    let mut errors = FieldErrors::default();
    let [] = parameters(request.query_string(), [], &mut errors);
    let (combination, lifetime) = members(document, "#", TOKEN_REQUEST, &mut errors)
        .map_or((None, None), |members| read_members(members, &mut errors));
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
    errors.check(token_request)
}

/// The combination and the lifetime, each `None` where it has a fault.
fn read_members(
    [user_id, lifetime, country, bank, access]: [Option<Json>; 5],
    errors: &mut FieldErrors,
) -> (Option<Combination>, Option<i32>) {
    let user_id = fields::text(user_id).and_then(fields::user_id);
    let user_id = errors.field("#/userId", user_id);
    let lifetime = errors.field("#/lifetime", fields::integer(lifetime, LIFETIMES));
    let country = fields::nullable(country, |text| fields::country(&text));
    let country = errors.field("#/country", country);
    let bank = errors.field("#/bank", fields::nullable(bank, fields::bank));
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
    let [accounts, balances, transactions] = members(value, "#/access", ACCESS, errors)?;
    let mut flag = |pointer, value| errors.field(pointer, fields::boolean(value));
    let accounts = flag("#/access/accounts", accounts);
    let balances = flag("#/access/balances", balances);
    let transactions = flag("#/access/transactions", transactions);
    Some(Access {
        accounts: accounts?.unwrap_or(false),
        balances: balances?.unwrap_or(false),
        transactions: transactions?.unwrap_or(false),
    })
}

fn answer_token(issued: &IssuedToken, verification_base_url: &str) -> HttpResponse {
    let mut answer = if issued.minted {
        let location = format!("/bank/tokens/{}", issued.issued().id);
        let mut created = HttpResponse::Created();
        created.insert_header((header::LOCATION, location));
        created
    } else {
        HttpResponse::Ok()
    };
    // As long as it gets, or nearly.
    let mut body = Vec::with_capacity(1024);
    let view = TokenView::new(issued, verification_base_url);
    serde_json::to_writer(&mut body, &view).expect("it is JSON");
    let mut answer = answer
        .insert_header((CACHE_STATUS, cache_status(issued)))
        .content_type(ContentType::json())
        .body(body);
    answer.extensions_mut().insert(Outcome(outcome(issued)));
    answer
}

/// `GET /bank/tokens/{id}`: the record, as the primary has it now.
pub async fn get_token(
    _permit: Authorized<TokensRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    let id = id.into_inner();
    let found = state
        .db
        .run(move |pool| async move { find_token(&pool, id).await });
    let token = found
        .await?
        .ok_or_else(|| Problem::not_found("no token has this id"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

/// `GET /bank/tokens/`: records that match, newest first, a page at a time.
pub async fn list_tokens(
    _permit: Authorized<TokensRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let list = ListTokens::from_query(request.query_string())?;
    let (tokens, next_cursor) = read_tokens(state.reads(), list).await?;
    Ok(HttpResponse::Ok().json(PageView {
        items: tokens.iter().map(RecordView::new).collect(),
        next_cursor,
    }))
}

/// A page of records and the cursor of the next one.
pub async fn read_tokens(
    db: &Database,
    list: ListTokens,
) -> Result<(Vec<Token>, Option<String>), Problem> {
    let ListTokens {
        filter,
        limit,
        after,
    } = list;
    let narrowed = filter.clone();
    let after = after.map(|cursor| (cursor.at, cursor.id));
    let one_more = i64::from(limit) + 1;
    let listed =
        db.run(move |pool| async move { list_records(&pool, &narrowed, after, one_more).await });
    let mut tokens = listed.await?;
    let has_more = tokens.len() > limit as usize;
    tokens.truncate(limit as usize);
    let last = tokens.last().filter(|_| has_more).map(|token| Cursor {
        at: token.issued_at,
        id: token.id,
        until: None,
    });
    Ok((tokens, last.map(|cursor| cursor.encode(&filter))))
}

/// The query of the list.
#[derive(Debug)]
pub struct ListTokens {
    /// What it is narrowed to.
    pub filter: TokenFilter,
    limit: u32,
    after: Option<Cursor>,
}

impl ListTokens {
    /// Reads it, and names all that is wrong with it.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [user_id, country, bank, is_valid, from, to, limit, cursor] =
            parameters(query, FILTER, &mut errors);
        let filter = TokenFilter {
            user_id: user_id.and_then(|text| errors.query("userId", fields::user_id(text))),
            country: country.and_then(|text| errors.query("country", fields::country(&text))),
            bank: bank.and_then(|text| errors.query("bank", fields::bank(text))),
            is_valid: is_valid.and_then(|text| errors.query("isValid", query::boolean(&text))),
            from: from.and_then(|text| errors.query("from", query::timestamp(&text))),
            to: to.and_then(|text| errors.query("to", query::timestamp(&text))),
        };
        if let (Some(from), Some(to)) = (filter.from, filter.to)
            && from > to
        {
            errors.parameter("to", "must not lie before from");
        }
        let limit = errors.query("limit", query::limit(limit));
        let after = cursor.and_then(|text| errors.query("cursor", Cursor::decode(&text, &filter)));
        let query = limit.map(|limit| ListTokens {
            filter,
            limit,
            after,
        });
        errors.check(query)
    }
}
