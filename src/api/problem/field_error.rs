//! Field errors. One response names every invalid field of a request.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_encode_byte;
use serde::Serialize;

/// The characters that RFC 3986 §3.5 allows in a fragment, besides letters and digits.
const FRAGMENT: &[u8] = b"-._~!$&'()*+,;=:@/?";

/// The maximum number of errors in a response. More would make it many times larger than its request.
const MAX_LISTED: usize = 20;

/// The maximum length of a name that the caller chose, in characters. The response has no more of it.
const MAX_NAME: usize = 128;

/// A rule that the field breaks, such as "must be a UUID". It reads as a sentence after the field's name.
pub type Detail = Cow<'static, str>;

/// One invalid field, parameter or header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FieldError {
    detail: Detail,
    #[serde(flatten)]
    location: Location,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Location {
    /// A JSON pointer into the body, as a URI fragment (RFC 6901 §6).
    Pointer(String),
    /// The name of a query parameter.
    Parameter(String),
    /// The name of a header field.
    Header(&'static str),
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let location = match &self.location {
            Location::Pointer(name) | Location::Parameter(name) => name,
            Location::Header(name) => *name,
        };
        write!(f, "{location} {}", self.detail)
    }
}

/// The field errors of a request that were found so far. The first 20 are kept, the others are counted.
#[derive(Default, Debug)]
pub struct FieldErrors {
    listed: Vec<FieldError>,
    unlisted: usize,
}

impl FieldErrors {
    /// Adds an error in the body.
    pub fn add_member(&mut self, pointer: impl Into<String>, detail: impl Into<Detail>) {
        self.add(Location::Pointer(pointer.into()), detail.into());
    }

    /// Adds an error in a query parameter.
    pub fn add_parameter(&mut self, name: impl Into<String>, detail: impl Into<Detail>) {
        let name = shorten(&name.into()).into_owned();
        self.add(Location::Parameter(name), detail.into());
    }

    /// Adds an error in a header field.
    pub fn add_header(&mut self, name: &'static str, detail: impl Into<Detail>) {
        self.add(Location::Header(name), detail.into());
    }

    /// Returns the value of a body member, or adds its error.
    pub fn check_member<T>(&mut self, pointer: &str, value: Result<T, Detail>) -> Option<T> {
        value
            .map_err(|detail| self.add_member(pointer, detail))
            .ok()
    }

    /// Returns the value of a query parameter, or adds its error.
    pub fn check_parameter<T>(&mut self, name: &str, value: Result<T, Detail>) -> Option<T> {
        value
            .map_err(|detail| self.add_parameter(name, detail))
            .ok()
    }

    /// Applies the rule to a query parameter if it is present. Returns `None` if it is absent or invalid.
    pub fn check_optional<T>(
        &mut self,
        name: &str,
        text: Option<String>,
        rule: impl FnOnce(String) -> Result<T, Detail>,
    ) -> Option<T> {
        text.and_then(|text| self.check_parameter(name, rule(text)))
    }

    fn add(&mut self, location: Location, detail: Detail) {
        match self.listed.len() {
            MAX_LISTED => self.unlisted += 1,
            _ => self.listed.push(FieldError { detail, location }),
        }
    }

    /// Returns the value if there are no errors. A `value` of `None` requires at least one error.
    pub fn into_result<T>(self, value: Option<T>) -> Result<T, FieldErrors> {
        match value {
            Some(value) if self.listed.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// Returns the number of errors after the first 20.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// Returns the first 20 errors in the order in which they were added.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.listed
    }
}

/// Returns the pointer to a member of the object at `parent`, escaped as in RFC 6901 §3 and §6.
pub fn member_pointer(parent: &str, name: &str) -> String {
    let mut pointer = format!("{parent}/");
    for byte in shorten(name).replace('~', "~0").replace('/', "~1").bytes() {
        if byte.is_ascii_alphanumeric() || FRAGMENT.contains(&byte) {
            pointer.push(char::from(byte));
        } else {
            pointer.push_str(percent_encode_byte(byte));
        }
    }
    pointer
}

/// Cuts a name after 128 characters.
fn shorten(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(MAX_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        for (name, pointer) in [
            ("country", "#/access/country"),
            ("na/me", "#/access/na~1me"),
            ("a~b", "#/access/a~0b"),
            ("a b%", "#/access/a%20b%25"),
            ("ž\"#", "#/access/%C5%BE%22%23"),
            ("-._!$&'()*+,;=:@?", "#/access/-._!$&'()*+,;=:@?"),
            ("", "#/access/"),
        ] {
            assert_eq!(member_pointer("#/access", name), pointer);
        }
    }
}
