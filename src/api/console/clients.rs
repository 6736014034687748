//! `/console/clients`: lists, creates, changes, rotates and disables clients.

use std::ops::RangeInclusive;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};

use super::search::Meaning;
use super::{form, now, page, see_other, text};
use crate::api::extract::authorization::{Authorized, ConsoleClients};
use crate::api::extract::body::Body;
use crate::api::extract::client_key::ClientKey;
use crate::api::extract::query::{read_parameters, reject_parameters};
use crate::api::handlers::clients::{GRACES, operator, refuse, seconds};
use crate::api::problem::Problem;
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::api::state::ApiState;
use crate::auth::clients;
use crate::db::Lane;
use crate::db::clients::{find_client_record, list_clients};
use crate::model::rules::{self, CLIENT_LIMITS, EXPIRIES, MAX_NETWORKS};
use crate::model::{ClientChange, ClientRecord, ClientSettings, Scope};

/// The maximum number of clients on the page.
const MAX_LISTED: i64 = 500;

/// The fields of the forms, besides one checkbox for each scope.
const FIELDS: [&str; 9] = [
    "formToken",
    "action",
    "name",
    "mintsPerHour",
    "requestsPerSecond",
    "allowFrom",
    "expiresInDays",
    "oidcSubject",
    "graceSeconds",
];

/// The number of days in the largest expiry.
const MAX_DAYS: i32 = *EXPIRIES.end() / 86_400;

#[derive(Template)]
#[template(path = "console/clients.html")]
struct ClientsPage {
    clients: Vec<ClientRecord>,
    now: DateTime<Utc>,
    form_token: String,
    /// The empty settings of the form for a new client.
    settings: ClientSettings,
}

#[derive(Template)]
#[template(path = "console/client.html")]
struct ClientPage {
    client: ClientRecord,
    now: DateTime<Utc>,
    /// The action that the page asks to confirm.
    confirm: Option<Action>,
    is_done: bool,
    found: Option<Meaning>,
    /// The form tokens of [`Action::ALL`].
    form_tokens: [String; 3],
}

#[derive(Template)]
#[template(path = "console/secret.html")]
struct SecretPage {
    client: ClientRecord,
    secret: SecretString,
}

/// A change of an existing client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Update,
    Rotate,
    Disable,
}

impl Action {
    const ALL: [Action; 3] = [Action::Update, Action::Rotate, Action::Disable];

    fn name(self) -> &'static str {
        match self {
            Action::Update => "update",
            Action::Rotate => "rotate",
            Action::Disable => "disable",
        }
    }

    fn parse(text: String) -> Result<Self, Detail> {
        let found = Self::ALL.into_iter().find(|action| action.name() == text);
        found.ok_or(Detail::Borrowed("must be one of update, rotate, disable"))
    }

    /// The action that the form token authorizes.
    fn form_action(self, key: &str) -> String {
        format!("client {} {key}", self.name())
    }
}

/// The action that the form token of the form for a new client authorizes.
const CREATE: &str = "client create";

/// `GET /console/clients`: lists the clients, with a form for a new one.
pub async fn show_clients(
    authorized: Authorized<ConsoleClients>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let listed = state.db.run(Lane::Reads, async move |mut connection| {
        list_clients(&mut connection, None, MAX_LISTED).await
    });
    let mut clients = listed.await?;
    clients.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
    let view = ClientsPage {
        clients,
        now: now(),
        form_token: form::token(authorized.client(), CREATE),
        settings: ClientSettings::default(),
    };
    page(StatusCode::OK, &view)
}

/// `POST /console/clients`: creates a client. Only the response shows its secret.
pub async fn create_client(
    authorized: Authorized<ConsoleClients>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let (mut fields, errors) = Fields::read(body).await?;
    form::check_token(
        &request,
        &state,
        &authorized,
        CREATE,
        fields.take("formToken"),
    )?;
    let change = fields.into_change(errors)?;
    let operator = operator(authorized);
    let by = operator.clone();
    let created = state.db.run(Lane::Upkeep, async move |mut connection| {
        clients::create_client(&mut connection, change, &by).await
    });
    let created = created.await?;
    show_change(created.map_err(|refusal| refuse(refusal, &operator, &request, &state))?)
}

/// Shows the new secret of a client once, or the client if it has none.
fn show_change(
    (client, secret): (ClientRecord, Option<SecretString>),
) -> Result<HttpResponse, Problem> {
    match secret {
        Some(secret) => page(StatusCode::OK, &SecretPage { client, secret }),
        None => Ok(see_other(format!(
            "/console/clients/{}?done=1",
            client.api_key
        ))),
    }
}

/// `GET /console/clients/{key}`: shows a client and the forms to change it. `?confirm=` asks for a confirmation.
pub async fn show_client(
    authorized: Authorized<ConsoleClients>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let names = ["confirm", "done", "found"];
    let [confirm, done, found] = read_parameters(request.query_string(), names, &mut errors);
    let confirm = errors.check_optional("confirm", confirm, Action::parse);
    let found = errors.check_optional("found", found, Meaning::parse);
    errors.into_result(Some(()))?;
    let key = key.into_inner().0;
    let form_tokens =
        Action::ALL.map(|action| form::token(authorized.client(), &action.form_action(&key)));
    let client = state.db.run(Lane::Reads, async move |mut connection| {
        find_client_record(&mut connection, &key).await
    });
    let client = client.await?;
    let client = client.ok_or_else(|| Problem::not_found("no client has this key"))?;
    let view = ClientPage {
        client,
        now: now(),
        confirm,
        is_done: done.is_some(),
        found,
        form_tokens,
    };
    page(StatusCode::OK, &view)
}

/// `POST /console/clients/{key}`: changes, rotates or disables a client.
pub async fn change_client(
    authorized: Authorized<ConsoleClients>,
    request: HttpRequest,
    key: web::Path<ClientKey>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let (mut fields, mut errors) = Fields::read(body).await?;
    let key = key.into_inner().0;
    let action = Action::parse(fields.take("action").unwrap_or_default());
    let Some(action) = errors.check_parameter("action", action) else {
        return Err(errors.into());
    };
    let form_token = fields.take("formToken");
    let allowed = action.form_action(&key);
    form::check_token(&request, &state, &authorized, &allowed, form_token)?;
    let grace = fields.take("graceSeconds");
    let grace = errors.check_optional("graceSeconds", grace, |text| integer(&text, GRACES));
    let change = match action {
        Action::Update => fields.into_change(errors)?,
        _ => errors.into_result(Some(ClientChange::default()))?,
    };
    let operator = operator(authorized);
    let (by, target) = (operator.clone(), key);
    let changed = state.db.run(Lane::Upkeep, async move |mut connection| {
        let connection = &mut *connection;
        let without_secret = |record| (record, None);
        Ok(match action {
            Action::Update => clients::update_client(connection, &target, change, &by)
                .await?
                .map(without_secret),
            Action::Disable => clients::disable_client(connection, &target, &by)
                .await?
                .map(without_secret),
            Action::Rotate => {
                let grace = seconds(grace.unwrap_or(0));
                clients::rotate_client(connection, &target, grace, None, &by).await?
            }
        })
    });
    let changed = changed.await?;
    show_change(changed.map_err(|refusal| refuse(refusal, &operator, &request, &state))?)
}

/// The fields of a submitted form, in the order of [`FIELDS`], and its scopes.
struct Fields {
    values: [Option<String>; FIELDS.len()],
    scopes: Vec<Scope>,
}

impl Fields {
    async fn read(body: Body) -> Result<(Self, FieldErrors), Problem> {
        let mut names = [""; FIELDS.len() + Scope::ALL.len()];
        let (fields, scopes) = names.split_at_mut(FIELDS.len());
        fields.copy_from_slice(&FIELDS);
        for (name, scope) in scopes.iter_mut().zip(Scope::ALL) {
            *name = scope.name();
        }
        let (values, errors) = body.read_form(names).await?;
        let mut values = values.into_iter();
        let fields = std::array::from_fn(|_| values.next().flatten());
        let checked = Scope::ALL.iter().zip(values);
        let scopes = checked.filter_map(|(scope, value)| value.map(|_| *scope));
        let scopes = scopes.collect();
        let fields = Fields {
            values: fields,
            scopes,
        };
        Ok((fields, errors))
    }

    /// Takes the value of a field, unless it is empty.
    fn take(&mut self, name: &str) -> Option<String> {
        let index = FIELDS.iter().position(|known| *known == name)?;
        self.values[index].take().filter(|value| !value.is_empty())
    }

    /// Returns the settings of the form. An empty field removes the value, except that of the expiry, which stays.
    fn into_change(mut self, mut errors: FieldErrors) -> Result<ClientChange, FieldErrors> {
        let name = rules::client_name(self.take("name").unwrap_or_default());
        let name = errors.check_parameter("name", name);
        if self.scopes.is_empty() {
            errors.add_parameter("scopes", "must have at least one scope");
        }
        let mut limit = |name| {
            let text = self.take(name);
            errors.check_optional(name, text, |text| integer(&text, CLIENT_LIMITS))
        };
        let mints_per_hour = limit("mintsPerHour");
        let requests_per_second = limit("requestsPerSecond");
        let networks = errors.check_optional("allowFrom", self.take("allowFrom"), |text| {
            let texts = text
                .split([' ', ',', '\r', '\n'])
                .filter(|text| !text.is_empty());
            let networks = texts.map(rules::network).collect::<Result<Vec<_>, _>>()?;
            match networks.len() {
                1..=MAX_NETWORKS => Ok(networks),
                _ => Err(format!("must have at most {MAX_NETWORKS} CIDRs").into()),
            }
        });
        let days = self.take("expiresInDays");
        let expires_in = errors.check_optional("expiresInDays", days, |text| match &*text {
            "none" => Ok(None),
            days => integer(days, 1..=MAX_DAYS).map(|days| Some(seconds(days * 86_400))),
        });
        let subject = self.take("oidcSubject");
        let subject =
            errors.check_optional("oidcSubject", subject, |text| rules::oidc_subject(&text));
        let change = name.map(|name| ClientChange {
            name: Some(name),
            scopes: Some(self.scopes.into_iter().collect()),
            mints_per_hour: Some(mints_per_hour),
            requests_per_second: Some(requests_per_second),
            allow_from: Some(networks),
            expires_in,
            oidc_subject: Some(subject),
        });
        errors.into_result(change)
    }
}

fn integer(text: &str, range: RangeInclusive<i32>) -> Result<i32, Detail> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    let (start, end) = (range.start(), range.end());
    number.ok_or_else(|| format!("must be an integer from {start} to {end}").into())
}
