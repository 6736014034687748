//! Parses and checks the provider's answers.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::HeaderValue;
use secrecy::zeroize::Zeroizing;
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
    #[serde(deserialize_with = "wiped")]
    token_string: Zeroizing<String>,
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

/// Reads a text that is wiped when it is dropped.
fn wiped<'de, D: Deserializer<'de>>(value: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(value).map(Zeroizing::new)
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
        token_string: TokenString::new(&token.token_string),
        expiration,
        life,
    })
}

/// The clock difference that is tolerated before an `expiration` without a `Date` counts as past.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ErrorBody {
    identifier: Option<String>,
    message: Option<String>,
    token_string: Option<String>,
}

/// Parses the body of an error answer. Returns no texts if the body has another format.
///
/// Omits texts that may contain a token string: an identifier that is not like those of the provider, a message with a
/// random string, and both if they contain the `tokenString` of the body. Does not shorten the message, so that
/// [`UpstreamAnswer::redact`] can check all of it.
pub(super) fn read_error(status: u16, body: &[u8]) -> UpstreamAnswer {
    let body: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    let mut message = body.message.unwrap_or_default();
    message.retain(|character| !character.is_control());
    let mut answer = UpstreamAnswer {
        status,
        identifier: body.identifier.filter(|text| is_identifier(text)),
        message: (!message.is_empty() && !has_random_part(&message)).then_some(message),
    };
    if let Some(token) = body.token_string.map(Zeroizing::new)
        && !token.is_empty()
    {
        answer.redact(|text| text.contains(&**token));
    }
    answer
}

/// Returns true for an upper-case name such as `BAD_VALUE`. All identifiers that the provider documents are such names.
fn is_identifier(text: &str) -> bool {
    let is_word = |word: &str| {
        let max = if has_digit(word) { 8 } else { 16 };
        word.len() <= max
            && word
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    (2..=64).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.split('_').all(is_word)
}

/// Returns true if the text may contain a token string: over 16 letters and digits with a digit, or over 32 letters.
///
/// The parts of a UUID have at most 12 characters.
fn has_random_part(text: &str) -> bool {
    text.split(|character: char| !character.is_ascii_alphanumeric())
        .any(|part| part.len() > if has_digit(part) { 16 } else { 32 })
}

fn has_digit(text: &str) -> bool {
    text.contains(|character: char| character.is_ascii_digit())
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

    /// A token string of the provider's documentation.
    const TOKEN: &str = "22URPv4x0DDV8twlQB7C0DDV8twlQB7CqM5n0aZk";

    #[test]
    fn an_identifier_is_an_upper_case_name_without_a_random_part() {
        let read = |text: &str| {
            let body = serde_json::json!({ "identifier": text }).to_string();
            read_error(400, body.as_bytes()).identifier
        };
        let documented = [
            "INTERNAL_ERROR",
            "BAD_VALUE",
            "MISSING_VALUE",
            "UNAUTHORIZED",
            "ENCODING_ERROR",
            "JSON_ERROR",
            "TOKEN_NOT_VALID",
            "PARTNER_CONTRACT_ERROR",
            "METHOD_NOT_ALLOWED",
            "PERMISSIONS_ERROR",
            "TOO_MANY_REQUESTS",
            "VALIDATION_ERROR",
        ];
        for good in documented.into_iter().chain(["OAUTH2_ERROR", "E_42"]) {
            assert_eq!(read(good).as_deref(), Some(good));
        }
        let upper = TOKEN.to_uppercase();
        for bad in [
            "",
            "E",
            "bad_value",
            "BadValue",
            "BAD VALUE",
            "BAD-VALUE",
            "_BAD",
            "4XX",
            "ŽALA",
            TOKEN,
            &upper,
            &format!("TOKEN_{}", &upper[..9]),
            "TOKEN_ABCDEFGHIJKLMNOPQ",
            &"A_".repeat(33),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_message_with_a_random_string_or_the_token_string_is_omitted() {
        let read = |message: &str, token: &str| {
            let body = serde_json::json!({
                "identifier": "BAD_VALUE", "message": message, "tokenString": token,
            });
            read_error(400, body.to_string().as_bytes()).message
        };
        for good in [
            "Bank \"Swedbank\" is not supported in country LT.",
            "Request 01a204ea-985b-7711-8188-6bde09e642c2 failed at 2026-11-22T09:39:08.092153Z.",
            "Ensure this value is less than or equal to 2592000.",
            "Donaudampfschifffahrtskapitän",
        ] {
            assert_eq!(read(good, "").as_deref(), Some(good));
        }
        for bad in [
            format!("Token {TOKEN} is not valid."),
            format!("/?token={TOKEN}"),
            format!("{}\u{0}{}", &TOKEN[..9], &TOKEN[9..]),
            hex::encode([0x1f; 16]),
            "x".repeat(33),
            String::new(),
        ] {
            assert_eq!(read(&bad, ""), None, "{bad}");
        }
        assert_eq!(read("Token tiny-7 is not valid.", "tiny-7"), None);
    }
}
