//! Reading the provider's answers.

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Utc};
use reqwest::header::HeaderValue;
use serde::{Deserialize, Deserializer};

use crate::model::{Combination, TokenString, UpstreamAnswer};

/// The longest token that is taken, in characters.
pub(super) const MAX_TOKEN: usize = 512;

/// A token as the provider minted it, checked against what was asked.
#[derive(Debug)]
pub struct Minted {
    /// The secret.
    pub token_string: TokenString,
    /// When it ends by the provider's word.
    pub expiration: DateTime<Utc>,
    /// How long it lives from the provider's answer on: its `expiration` less its own `Date`, so
    /// that the error of its clock cancels. Without a `Date`, `None`.
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

/// Tells a member that is null from one that is absent.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Reads a 201; the error says in what it is not the contract's.
pub(super) fn read_minted(
    body: &[u8],
    date: Option<&HeaderValue>,
    asked: &Combination,
    lifetime: i32,
    received_at: DateTime<Utc>,
) -> Result<Minted, &'static str> {
    let token: BankToken =
        serde_json::from_slice(body).map_err(|_| "the upstream's answer is not of its contract")?;
    let length = token.token_string.chars().count();
    if length == 0 || length > MAX_TOKEN {
        return Err("the upstream's token is empty or over 512 characters");
    }
    if !token.is_valid {
        return Err("the upstream's token is not valid");
    }
    let country = asked.country.map(|country| country.code());
    if token
        .country
        .is_some_and(|given| given.as_deref() != country)
    {
        return Err("the upstream's token is for another country");
    }
    if token
        .bank
        .is_some_and(|given| given.as_deref() != asked.bank.as_deref())
    {
        return Err("the upstream's token is for another bank");
    }
    if let Some(given) = token.access {
        let differs = |given: Option<bool>, asked: bool| given.is_some_and(|given| given != asked);
        if differs(given.accounts, asked.access.accounts)
            || differs(given.balances, asked.access.balances)
            || differs(given.transactions, asked.access.transactions)
        {
            return Err("the upstream's token is for another access");
        }
    }
    let expiration = DateTime::parse_from_rfc3339(&token.expiration)
        .ok()
        .map(|expiration| expiration.to_utc())
        // RFC 3339 cannot express other years, but an offset can lead to one.
        .filter(|expiration| (0..=9999).contains(&expiration.year()))
        .ok_or("the upstream's expiration is no time")?
        // As it is stored: the record must not say another time than the first answer.
        .trunc_subsecs(6);
    let life = date
        .and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok())
        .map(|date| expiration - date.to_utc());
    let is_over = match life {
        Some(life) => life <= TimeDelta::zero(),
        None => expiration <= received_at - CLOCK_DOUBT,
    };
    if is_over && lifetime != 0 {
        return Err("the upstream's token has already expired");
    }
    Ok(Minted {
        token_string: TokenString::new(token.token_string),
        expiration,
        life,
    })
}

/// How far two clocks may be apart before an `expiration` without a `Date` is believed to be past.
const CLOCK_DOUBT: TimeDelta = TimeDelta::seconds(5);

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    identifier: Option<String>,
    message: Option<String>,
}

/// Reads an error as far as it is one; what else stands there is dropped. Its message is whole.
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

    fn asked() -> Combination {
        Combination {
            user_id: "u".into(),
            country: "LT".parse().ok(),
            bank: None,
            access: Access::from_bits(1),
        }
    }

    fn read(body: &str, date: Option<&str>) -> Result<Minted, &'static str> {
        let date = date.map(|date| HeaderValue::from_str(date).unwrap());
        read_minted(body.as_bytes(), date.as_ref(), &asked(), 3600, Utc::now())
    }

    const DATE: &str = "Sun, 22 Nov 2026 09:00:00 GMT";

    #[test]
    fn life_is_by_the_providers_own_clock() {
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
    fn whatever_is_not_as_asked_is_refused() {
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
    fn an_error_is_read_as_far_as_it_is_one() {
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
