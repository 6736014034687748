//! The provider's rules for a request, from the OpenAPI document that it publishes.
//!
//! Where that is silent the sandbox does as Django REST framework, which the provider's error
//! vocabulary points to. Where the framework is laxer than the document (it takes `"3600"` for an
//! integer, `"yes"` for a boolean), the document wins: leaning on leniency should show in a test.

use serde_json::{Map, Value};

use super::Answer;
use crate::model::{Access, Country};

/// What was asked for, defaults filled in.
pub(super) struct TokenRequest {
    /// Seconds, 0…2592000.
    pub lifetime: u32,
    pub country: Option<Country>,
    /// At most 32 characters. White space at its ends is gone, as the framework does with every
    /// text: the answer then names another bank than the request, to the letter.
    pub bank: Option<String>,
    pub access: Access,
}

/// Reads a request, or gives the 400 or 415 that it earns. Unknown members are ignored; of
/// duplicate ones the last counts.
pub(super) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<TokenRequest, Answer> {
    let media_type = content_type.and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim();
    // The framework takes an empty body for an empty object, whatever its type.
    let members = if body.is_empty() {
        Map::new()
    } else if media_type.eq_ignore_ascii_case("application/json") {
        parse_object(body)?
    } else {
        let message = format!("Unsupported media type \"{media_type}\" in request.");
        return Err(Answer::error(415, "BAD_VALUE", message));
    };
    let country = text(&members, "country")?.map(|code| {
        let refused = |_| bad(format!("country: \"{code}\" is not a valid choice."));
        code.parse().map_err(refused)
    });
    Ok(TokenRequest {
        lifetime: lifetime(&members)?,
        country: country.transpose()?,
        bank: bank(&members)?,
        access: access(&members)?,
    })
}

fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Answer> {
    let text = std::str::from_utf8(body)
        .map_err(|_| Answer::error(400, "ENCODING_ERROR", "The body is not UTF-8."))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(invalid("Invalid data. Expected an object.")),
        Err(error) => {
            let message = format!("JSON parse error - {error}");
            Err(Answer::error(400, "JSON_ERROR", message))
        }
    }
}

fn lifetime(members: &Map<String, Value>) -> Result<u32, Answer> {
    let Some(value) = members.get("lifetime") else {
        return Ok(3600);
    };
    match value.as_f64().filter(|seconds| seconds.fract() == 0.0) {
        Some(seconds) if (0.0..=2_592_000.0).contains(&seconds) => Ok(seconds as u32),
        Some(_) => Err(bad("lifetime: Must be from 0 to 2592000.")),
        None => Err(invalid("lifetime: A valid integer is required.")),
    }
}

fn bank(members: &Map<String, Value>) -> Result<Option<String>, Answer> {
    let Some(bank) = text(members, "bank")?.map(str::trim) else {
        return Ok(None);
    };
    match bank.chars().count() {
        0 => Err(bad("bank: This field may not be blank.")),
        33.. => Err(bad(
            "bank: Ensure this field has no more than 32 characters.",
        )),
        _ if bank.contains('\0') => Err(bad("bank: Null characters are not allowed.")),
        _ => Ok(Some(bank.to_owned())),
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Answer> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("{name}: Not a valid string."))),
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
        let json = "application/json; charset=utf-8";
        let (longest, too_long) = ("ą".repeat(32), json!({"bank": "ą".repeat(33)}).to_string());
        for good in [
            json!({"country": null, "bank": null, "access": {}, "userId": 7}),
            json!({"lifetime": 0}),
            json!({"lifetime": 2_592_000}),
            json!({"lifetime": 3600.0}),
            json!({"bank": format!("{longest} ")}),
        ] {
            assert!(
                parse(Some(json), good.to_string().as_bytes()).is_ok(),
                "{good}"
            );
        }
        assert!(parse(None, b"").is_ok());
        let deep = "[".repeat(100_000);
        for (body, identifier) in [
            (r#"{"lifetime":-1}"#, "BAD_VALUE"),
            (r#"{"lifetime":2592001}"#, "BAD_VALUE"),
            (r#"{"lifetime":3600.5}"#, "VALIDATION_ERROR"),
            (r#"{"lifetime":"3600"}"#, "VALIDATION_ERROR"),
            (r#"{"lifetime":null}"#, "VALIDATION_ERROR"),
            (r#"{"country":"lt"}"#, "BAD_VALUE"),
            (r#"{"country":""}"#, "BAD_VALUE"),
            (r#"{"country":1}"#, "VALIDATION_ERROR"),
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
            let refused = parse(Some(json), body.as_bytes()).err();
            assert!(
                matches!(refused, Some(Answer::Status(400, it, _)) if it == identifier),
                "{body}"
            );
        }
        let not_utf_8 = parse(Some(json), b"{\"bank\":\"\xff\"}").err();
        assert!(matches!(
            not_utf_8,
            Some(Answer::Status(400, "ENCODING_ERROR", _))
        ));
        let form = parse(Some("application/x-www-form-urlencoded"), b"lifetime=1").err();
        assert!(matches!(form, Some(Answer::Status(415, "BAD_VALUE", _))));
    }
}
