//! The provider's rules for a request, from the OpenAPI document that it publishes.
//!
//! Where that is silent the sandbox does as Django REST framework, which the provider's error
//! vocabulary points to. Where the framework is laxer than the document (it takes `"3600"` for an
//! integer, `"yes"` for a boolean), the document wins: leaning on leniency should show in a test.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Answer;
use crate::model::{Access, Country};

const LIFETIME_MAX: f64 = 2_592_000.0;

/// What was asked for, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TokenRequest {
    /// Seconds, 0…2592000.
    pub lifetime: u32,
    /// The country of the bank, or any.
    pub country: Option<Country>,
    /// At most 32 characters, or any. White space at its ends is gone, as the framework does with
    /// every text: the answer then names another bank than the request, to the letter.
    pub bank: Option<String>,
    /// What the token's holder may read.
    pub access: Access,
}

impl Default for TokenRequest {
    fn default() -> Self {
        TokenRequest {
            lifetime: 3600,
            country: None,
            bank: None,
            access: Access::default(),
        }
    }
}

/// Reads a request, or gives the 400 or 415 that it earns. Unknown members are ignored; of
/// duplicate ones the last counts.
pub(super) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<TokenRequest, Answer> {
    // The framework takes an empty body for an empty object, whatever its type.
    if body.is_empty() {
        return Ok(TokenRequest::default());
    }
    let media_type = content_type
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("application/json") {
        let message = format!("Unsupported media type \"{media_type}\" in request.");
        return Err(Answer::error(415, "BAD_VALUE", message));
    }
    let text = std::str::from_utf8(body)
        .map_err(|_| Answer::error(400, "ENCODING_ERROR", "The body is not UTF-8."))?;
    let json: Value = serde_json::from_str(text)
        .map_err(|error| Answer::error(400, "JSON_ERROR", format!("JSON parse error - {error}")))?;
    let Value::Object(members) = json else {
        return Err(invalid("Invalid data. Expected an object."));
    };
    Ok(TokenRequest {
        lifetime: lifetime(&members)?,
        country: country(&members)?,
        bank: bank(&members)?,
        access: access(&members)?,
    })
}

fn lifetime(members: &Map<String, Value>) -> Result<u32, Answer> {
    let Some(value) = members.get("lifetime") else {
        return Ok(TokenRequest::default().lifetime);
    };
    match value.as_f64() {
        Some(seconds) if seconds.fract() != 0.0 => {
            Err(invalid("lifetime: A valid integer is required."))
        }
        Some(seconds) if (0.0..=LIFETIME_MAX).contains(&seconds) => Ok(seconds as u32),
        Some(_) => Err(bad("lifetime: Must be from 0 to 2592000.")),
        None => Err(invalid("lifetime: A valid integer is required.")),
    }
}

fn country(members: &Map<String, Value>) -> Result<Option<Country>, Answer> {
    match members.get("country") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(code)) => match code.parse() {
            Ok(country) => Ok(Some(country)),
            Err(_) => Err(bad(format!("country: \"{code}\" is not a valid choice."))),
        },
        Some(_) => Err(invalid("country: Not a valid string.")),
    }
}

fn bank(members: &Map<String, Value>) -> Result<Option<String>, Answer> {
    let bank = match members.get("bank") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(bank)) => bank.trim(),
        Some(_) => return Err(invalid("bank: Not a valid string.")),
    };
    if bank.is_empty() {
        Err(bad("bank: This field may not be blank."))
    } else if bank.contains('\0') {
        Err(bad("bank: Null characters are not allowed."))
    } else if bank.chars().count() > 32 {
        Err(bad(
            "bank: Ensure this field has no more than 32 characters.",
        ))
    } else {
        Ok(Some(bank.to_owned()))
    }
}

fn access(members: &Map<String, Value>) -> Result<Access, Answer> {
    match members.get("access") {
        None => Ok(Access::default()),
        Some(value @ Value::Object(_)) => serde_json::from_value(value.clone())
            .map_err(|_| invalid("access: Must be a valid boolean.")),
        Some(_) => Err(invalid("access: Invalid data. Expected an object.")),
    }
}

/// The wrong type.
fn invalid(message: impl Into<String>) -> Answer {
    Answer::error(400, "VALIDATION_ERROR", message)
}

/// The right type, but a value that is not allowed.
fn bad(message: impl Into<String>) -> Answer {
    Answer::error(400, "BAD_VALUE", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn validates_as_the_published_schema_says() {
        let parse =
            |body: &str| super::parse(Some("application/json; charset=utf-8"), body.as_bytes());
        let default = TokenRequest::default();
        for body in [
            "",
            "{}",
            r#"{"country":null,"bank":null,"access":{},"userId":7}"#,
        ] {
            assert_eq!(parse(body), Ok(default.clone()), "{body}");
        }
        let longest = "ą".repeat(32);
        for body in [
            json!({"lifetime": 0}),
            json!({"lifetime": 2_592_000}),
            json!({"lifetime": 3600.0}),
            json!({"bank": longest}),
            json!({"bank": format!("{longest} ")}),
        ] {
            assert!(parse(&body.to_string()).is_ok(), "{body}");
        }
        let too_long = json!({"bank": "ą".repeat(33)}).to_string();
        let deep = "[".repeat(100_000);
        for (body, identifier) in [
            (r#"{"lifetime":-1}"#, "BAD_VALUE"),
            (r#"{"lifetime":2592001}"#, "BAD_VALUE"),
            (r#"{"lifetime":3600.5}"#, "VALIDATION_ERROR"),
            (r#"{"lifetime":"3600"}"#, "VALIDATION_ERROR"),
            (r#"{"lifetime":true}"#, "VALIDATION_ERROR"),
            (r#"{"lifetime":null}"#, "VALIDATION_ERROR"),
            (r#"{"country":"lt"}"#, "BAD_VALUE"),
            (r#"{"country":""}"#, "BAD_VALUE"),
            (r#"{"country":1}"#, "VALIDATION_ERROR"),
            (r#"{"bank":""}"#, "BAD_VALUE"),
            (r#"{"bank":"  "}"#, "BAD_VALUE"),
            (r#"{"bank":"a\u0000b"}"#, "BAD_VALUE"),
            (&too_long, "BAD_VALUE"),
            (r#"{"bank":5}"#, "VALIDATION_ERROR"),
            (r#"{"access":null}"#, "VALIDATION_ERROR"),
            (r#"{"access":[true,true,true]}"#, "VALIDATION_ERROR"),
            (r#"{"access":{"accounts":1}}"#, "VALIDATION_ERROR"),
            (r#"{"access":{"accounts":null}}"#, "VALIDATION_ERROR"),
            ("[]", "VALIDATION_ERROR"),
            ("{", "JSON_ERROR"),
            (&deep, "JSON_ERROR"),
        ] {
            let Err(Answer::Status {
                status: 400,
                identifier: found,
                ..
            }) = parse(body)
            else {
                panic!("{body}: {:?}", parse(body));
            };
            assert_eq!(found, identifier, "{body}");
        }
        let bad_utf8 = super::parse(Some("application/json"), b"{\"bank\":\"\xff\"}");
        assert_eq!(bad_utf8.unwrap_err().http_status(), Some(400));
        let form = super::parse(Some("application/x-www-form-urlencoded"), b"lifetime=1");
        assert_eq!(form.unwrap_err().http_status(), Some(415));
    }
}
