//! Strict JSON: a tree that keeps duplicate members, so that they can be named.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::api::problem::field_error::{FieldErrors, member_pointer};
use crate::api::problem::{Problem, ProblemKind};

/// A JSON value (RFC 8259).
///
/// What an array holds is checked for its grammar and dropped: no request has an array.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number, as the nearest double: exact for every integer up to 2^53.
    Number(f64),
    /// A string.
    String(String),
    /// An array of anything.
    Array,
    /// An object's members in their order, duplicates included.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one document of at most 127 levels.
    pub fn parse(bytes: &[u8]) -> Result<Json, Problem> {
        let malformed = |error| format!("the body is not JSON in UTF-8: {error}");
        serde_json::from_slice(bytes).map_err(|error| {
            let error = error.to_string();
            // JSON all the same (RFC 8259, section 6), and a value that no field takes.
            if error.starts_with("number out of range") {
                let mut errors = FieldErrors::default();
                errors.pointer("#", error);
                return errors.into();
            }
            Problem::new(ProblemKind::Malformed, malformed(error))
        })
    }

    /// The message that it is not what it must be.
    pub fn instead_of(&self, expected: &str) -> String {
        let name = match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array => "an array",
            Json::Object(_) => "an object",
        };
        format!("must be {expected}, not {name}")
    }
}

/// The values of the named members of the object at `pointer`, in the order of `names`.
///
/// Notes every other member and every member that is there twice; `None`, noted too, where the
/// value is no object.
pub fn members<const N: usize>(
    value: Json,
    pointer: &str,
    names: [&str; N],
    errors: &mut FieldErrors,
) -> Option<[Option<Json>; N]> {
    let Json::Object(members) = value else {
        errors.pointer(pointer, value.instead_of("an object"));
        return None;
    };
    let mut found = [const { None }; N];
    let mut duplicates = Vec::new();
    for (name, value) in members {
        match names.iter().position(|known| *known == name) {
            None => errors.pointer(
                member_pointer(pointer, &name),
                "is not a member of this object",
            ),
            Some(index) if found[index].is_none() => found[index] = Some(value),
            Some(_) if duplicates.contains(&name) => {}
            Some(_) => {
                errors.pointer(member_pointer(pointer, &name), "must be there only once");
                duplicates.push(name);
            }
        }
    }
    Some(found)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        while items.next_element::<Json>()?.is_some() {}
        Ok(Json::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = entries.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_name_all_that_does_not_belong() {
        let text = br#" {"a": [1, {"b": null}], "x": 1, "a": 2, "a": 3, "n": 1e3, "y/z": 1} "#;
        let mut errors = FieldErrors::default();
        let names = ["a", "b", "n"];
        let found = members(Json::parse(text).unwrap(), "#", names, &mut errors);
        let expected = [Some(Json::Array), None, Some(Json::Number(1000.0))];
        assert_eq!(found, Some(expected));

        let mut expected = FieldErrors::default();
        expected.pointer("#/x", "is not a member of this object");
        expected.pointer("#/a", "must be there only once");
        expected.pointer("#/y~1z", "is not a member of this object");
        assert_eq!(errors.into_vec(), expected.into_vec());
    }
}
