//! What is wrong with a request, gathered so that one answer names all of it.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_encode_byte;
use serde::Serialize;

/// What RFC 3986 §3.5 allows in a fragment, beside letters and digits.
const FRAGMENT: &[u8] = b"-._~!$&'()*+,;=:@/?";

/// What is wrong, in a few words for the caller.
pub type Detail = Cow<'static, str>;

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FieldError {
    detail: Detail,
    #[serde(flatten)]
    place: Place,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    /// A JSON pointer into the body, as a URI fragment (RFC 6901 §6).
    Pointer(String),
    /// The name of a query parameter.
    Parameter(String),
    /// The name of a header field.
    Header(&'static str),
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Pointer(name) | Place::Parameter(name) => name,
            Place::Header(name) => *name,
        };
        write!(f, "{place} {}", self.detail)
    }
}

/// All that is wrong with a request so far.
#[derive(Default, Debug)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// Notes a fault in the body.
    pub fn pointer(&mut self, pointer: impl Into<String>, detail: impl Into<Detail>) {
        self.note(Place::Pointer(pointer.into()), detail.into());
    }

    /// Notes a fault in a query parameter.
    pub fn parameter(&mut self, name: impl Into<String>, detail: impl Into<Detail>) {
        self.note(Place::Parameter(name.into()), detail.into());
    }

    /// Notes a fault in a header field.
    pub fn header(&mut self, name: &'static str, detail: impl Into<Detail>) {
        self.note(Place::Header(name), detail.into());
    }

    /// The value of a field, its fault noted where it has one.
    pub fn field<T>(&mut self, pointer: &str, value: Result<T, Detail>) -> Option<T> {
        value.map_err(|detail| self.pointer(pointer, detail)).ok()
    }

    /// The value of a query parameter, its fault noted where it has one.
    pub fn query<T>(&mut self, name: &str, value: Result<T, Detail>) -> Option<T> {
        value.map_err(|detail| self.parameter(name, detail)).ok()
    }

    fn note(&mut self, place: Place, detail: Detail) {
        self.0.push(FieldError { detail, place });
    }

    /// The value, unless something is wrong; a value of `None` comes with a fault.
    pub fn check<T>(self, value: Option<T>) -> Result<T, FieldErrors> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// The faults, in the order in which they were noted.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// The pointer to a member of the object at `parent`, escaped by RFC 6901 §3 and §6.
pub fn member_pointer(parent: &str, name: &str) -> String {
    let mut pointer = format!("{parent}/");
    for byte in name.replace('~', "~0").replace('/', "~1").bytes() {
        if byte.is_ascii_alphanumeric() || FRAGMENT.contains(&byte) {
            pointer.push(char::from(byte));
        } else {
            pointer.push_str(percent_encode_byte(byte));
        }
    }
    pointer
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
