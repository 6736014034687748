//! What is wrong with a request, gathered so that one answer names all of it.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

/// What RFC 3986 §3.5 does not allow in a fragment.
const FRAGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/')
    .remove(b'?');

/// What is wrong, in a few words for the caller.
pub type Detail = Cow<'static, str>;

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fault {
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

/// All that is wrong with a request so far.
#[derive(Default, Debug)]
pub struct Faults(Vec<Fault>);

impl Faults {
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
        self.0.push(Fault { detail, place });
    }

    /// The value, unless something is wrong; a value of `None` comes with a fault.
    pub fn check<T>(self, value: Option<T>) -> Result<T, Faults> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// The faults, in the order in which they were noted.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}

/// The pointer to a member of the object at `parent`, escaped by RFC 6901 §3 and §6.
pub fn member_pointer(parent: &str, name: &str) -> String {
    let escaped = name.replace('~', "~0").replace('/', "~1");
    format!("{parent}/{}", utf8_percent_encode(&escaped, FRAGMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        for (name, pointer) in [
            ("country", "#/country"),
            ("na/me", "#/na~1me"),
            ("a~b", "#/a~0b"),
            ("a b%", "#/a%20b%25"),
            ("ž\"#", "#/%C5%BE%22%23"),
            ("", "#/"),
        ] {
            assert_eq!(member_pointer("#", name), pointer);
        }
        assert_eq!(member_pointer("#/access", "foo"), "#/access/foo");
    }

    #[test]
    fn a_value_passes_only_without_faults() {
        assert_eq!(Faults::default().check(Some(1)).unwrap(), 1);
        let mut faults = Faults::default();
        faults.pointer("#", "bad");
        assert_eq!(faults.check(Some(1)).unwrap_err().into_vec().len(), 1);
    }
}
