//! Parses and checks the provider's answers.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::HeaderValue;
use serde::{Deserialize, Deserializer};

use crate::model::time::parse_expiration;
use crate::model::{Combination, TokenString, UpstreamAnswer};

/// The maximum length of a token string, in characters.
pub(super) const MAX_TOKEN: usize = 512;

/// A minted token that matches its request.
#[derive(Debug)]
pub struct Minted {
    /// The token string.
    pub token_string: TokenString,
    /// The expiration that the provider returned.
    pub expiration: DateTime<Utc>,
    /// The remaining life at the time of the answer: `expiration` minus the `Date` header, so that the error of the
    /// provider's clock cancels out. `None` without a valid `Date`.
    pub life: Option<TimeDelta>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BankToken {
    token_string: String,
    expiration: String,
    is_valid: bool,
    #[serde(default, deserialize_with = "present")]
    country: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    bank: Option<Option<String>>,
    access: Option<BankAccess>,
}

#[derive(Deserialize)]
struct BankAccess {
    accounts: Option<bool>,
    balances: Option<bool>,
    transactions: Option<bool>,
}

/// Distinguishes a null member, `Some(None)`, from an absent one, `None`.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Parses the body of a 201 answer. The error says how the answer breaks the provider's contract.
pub(super) fn read_minted(
    body: &[u8],
    date: Option<&HeaderValue>,
    requested: &Combination,
    lifetime: i32,
    received_at: DateTime<Utc>,
) -> Result<Minted, &'static str> {
    let token: BankToken =
        serde_json::from_slice(body).map_err(|_| "the provider's answer breaks its contract")?;
    let length = token.token_string.chars().count();
    if length == 0 || length > MAX_TOKEN {
        return Err("the provider's token string is empty or over 512 characters");
    }
    if !token.is_valid {
        return Err("the provider's token is not valid");
    }
    let country = requested.country.map(|country| country.code());
    if token
        .country
        .is_some_and(|returned| returned.as_deref() != country)
    {
        return Err("the provider's token is for another country");
    }
    if token
        .bank
        .is_some_and(|returned| returned.as_deref() != requested.bank.as_deref())
    {
        return Err("the provider's token is for another bank");
    }
    if let Some(access) = token.access {
        let differs = |returned: Option<bool>, requested| {
            returned.is_some_and(|returned| returned != requested)
        };
        if differs(access.accounts, requested.access.accounts)
            || differs(access.balances, requested.access.balances)
            || differs(access.transactions, requested.access.transactions)
        {
            return Err("the provider's token is for another access");
        }
    }
    // The database stores the same value, so a later response contains the same value as the first one.
    let expiration = parse_expiration(&token.expiration)
        .map_err(|_| "the provider's expiration is not a time")?;
    let life = date
        .and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok())
        .map(|date| expiration - date.to_utc());
    let is_expired = match life {
        Some(life) => life <= TimeDelta::zero(),
        None => expiration <= received_at - CLOCK_TOLERANCE,
    };
    if is_expired && lifetime != 0 {
        return Err("the provider's token has already expired");
    }
    Ok(Minted {
        token_string: TokenString::new(token.token_string),
        expiration,
        life,
    })
}

/// The clock difference that is tolerated before an `expiration` without a `Date` counts as past.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    identifier: Option<String>,
    message: Option<String>,
}

/// Parses the body of an error answer. Returns no texts if the body has another format.
///
/// Does not shorten the message, so that [`UpstreamAnswer::redact`] can check all of it.
pub(super) fn read_error(status: u16, body: &[u8]) -> UpstreamAnswer {
    let body: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    let is_identifier = |text: &String| {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    UpstreamAnswer {
        status,
        identifier: body.identifier.filter(is_identifier),
        message: body.message.map(|mut message| {
            message.retain(|character| !character.is_control());
            message
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Access;

    fn requested() -> Combination {
        Combination {
            user_id: "u".into(),
            country: "LT".parse().ok(),
            bank: None,
            access: Access::from_bits(1),
        }
    }

    fn read(body: &str, date: Option<&str>) -> Result<Minted, &'static str> {
        let date = date.map(|date| HeaderValue::from_str(date).unwrap());
        read_minted(
            body.as_bytes(),
            date.as_ref(),
            &requested(),
            3600,
            Utc::now(),
        )
    }

    const DATE: &str = "Sun, 22 Nov 2026 09:00:00 GMT";

    #[test]
    fn life_is_measured_by_the_clock_of_the_provider() {
        let body =
            r#"{"tokenString":"t","expiration":"2026-11-22T12:00:00.5+02:00","isValid":true}"#;
        let minted = read(body, Some(DATE)).unwrap();
        assert_eq!(minted.life, Some(TimeDelta::milliseconds(3_600_500)));
        assert_eq!(
            minted.expiration.to_rfc3339(),
            "2026-11-22T10:00:00.500+00:00"
        );
    }

    #[test]
    fn a_token_that_differs_from_the_request_is_rejected() {
        let with = |members: &str| {
            format!(
                r#"{{"tokenString":"t","expiration":"2026-11-22T10:00:00Z","isValid":true{members}}}"#
            )
        };
        for good in [
            "",
            r#","country":"LT","bank":null,"access":{"accounts":true},"more":1"#,
        ] {
            assert!(read(&with(good), Some(DATE)).is_ok(), "{good}");
        }
        for bad in [
            r#","country":"LV""#,
            r#","country":null"#,
            r#","country":1"#,
            r#","bank":"Swedbank""#,
            r#","access":{"accounts":false}"#,
            r#","access":{"balances":true}"#,
        ] {
            assert!(read(&with(bad), Some(DATE)).is_err(), "{bad}");
        }
        let long = "t".repeat(513);
        for body in [
            String::new(),
            "[]".into(),
            with("").replace("true", "false"),
            with("").replace(r#""t""#, r#""""#),
            with("").replace(r#""t""#, &format!("{long:?}")),
            with("").replace("2026-11-22T10:00:00Z", "2026-11-22T10:00:00"),
            with("").replace("T10:", "T09:"),
        ] {
            assert!(read(&body, Some(DATE)).is_err(), "{body}");
        }
    }

    #[test]
    fn an_error_body_in_another_format_gives_no_texts() {
        let answer = read_error(
            400,
            br#"{"identifier":"BAD_VALUE","message":"no\u0000pe","documentation":""}"#,
        );
        assert_eq!(answer.identifier.as_deref(), Some("BAD_VALUE"));
        assert_eq!(answer.message.as_deref(), Some("nope"));
        let answer = read_error(502, b"<html>");
        assert_eq!((answer.identifier, answer.message), (None, None));
    }
}
