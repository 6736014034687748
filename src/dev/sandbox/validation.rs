//! The provider's validation of a request, from its published OpenAPI document.
//!
//! Cases that the document does not cover follow Django REST framework, which the provider's error identifiers
//! suggest. The framework accepts `"3600"` as an integer and `"yes"` as a boolean. The sandbox is strict there, so
//! that tests notice a client that relies on this leniency.

use serde_json::{Map, Value};

use super::Answer;
use crate::model::{Access, Country};

/// A valid request with defaults filled in.
pub(super) struct TokenRequest {
    /// Seconds, 0…2592000.
    pub lifetime: u32,
    pub country: Option<Country>,
    /// The bank, at most 32 characters. Trimmed like every text in the framework, so the answer may differ from the
    /// request.
    pub bank: Option<String>,
    pub access: Access,
}

/// Parses a request. Ignores unknown members, and uses the last of duplicate members.
///
/// # Errors
/// Returns a 400 or 415 for an invalid request.
pub(super) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<TokenRequest, Answer> {
    let media_type = content_type.and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim();
    // The framework treats an empty body as an empty object, whatever its media type.
    let members = if body.is_empty() {
        Map::new()
    } else if media_type.eq_ignore_ascii_case("application/json") {
        parse_object(body)?
    } else {
        let message = format!("Unsupported media type \"{media_type}\" in request.");
        return Err(Answer::error(415, "BAD_VALUE", message));
    };
    let country = text(&members, "country")?.map(|code| {
        let unknown = |_| bad_value(format!("country: \"{code}\" is not a valid choice."));
        code.parse().map_err(unknown)
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
        Ok(_) => Err(wrong_type("Invalid data. Expected an object.")),
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
        Some(_) => Err(bad_value("lifetime: Must be from 0 to 2592000.")),
        None => Err(wrong_type("lifetime: A valid integer is required.")),
    }
}

fn bank(members: &Map<String, Value>) -> Result<Option<String>, Answer> {
    let Some(bank) = text(members, "bank")?.map(str::trim) else {
        return Ok(None);
    };
    match bank.chars().count() {
        0 => Err(bad_value("bank: This field may not be blank.")),
        33.. => Err(bad_value(
            "bank: Ensure this field has no more than 32 characters.",
        )),
        _ if bank.contains('\0') => Err(bad_value("bank: Null characters are not allowed.")),
        _ => Ok(Some(bank.to_owned())),
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Answer> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type(format!("{name}: Not a valid string."))),
    }
}

fn access(members: &Map<String, Value>) -> Result<Access, Answer> {
    match members.get("access") {
        None => Ok(Access::default()),
        Some(value @ Value::Object(_)) => serde_json::from_value(value.clone())
            .map_err(|_| wrong_type("access: Must be a valid boolean.")),
        Some(_) => Err(wrong_type("access: Invalid data. Expected an object.")),
    }
}

/// Returns the 400 for a value of the wrong type.
fn wrong_type(message: impl Into<String>) -> Answer {
    Answer::error(400, "VALIDATION_ERROR", message)
}

/// Returns the 400 for a value that has the right type and is not allowed.
fn bad_value(message: impl Into<String>) -> Answer {
    Answer::error(400, "BAD_VALUE", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn follows_the_published_schema() {
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
            let rejection = parse(Some(json), body.as_bytes()).err();
            assert!(
                matches!(rejection, Some(Answer::Status(400, actual, _)) if actual == identifier),
                "{body}"
            );
        }
        let rejection = parse(Some(json), b"{\"bank\":\"\xff\"}").err();
        assert!(matches!(
            rejection,
            Some(Answer::Status(400, "ENCODING_ERROR", _))
        ));
        let rejection = parse(Some("application/x-www-form-urlencoded"), b"lifetime=1").err();
        assert!(matches!(
            rejection,
            Some(Answer::Status(415, "BAD_VALUE", _))
        ));
    }
}
