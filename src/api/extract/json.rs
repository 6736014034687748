//! A JSON parser that keeps duplicate members, so that the response can name them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::api::problem::field_error::{FieldErrors, member_pointer};
use crate::api::problem::{Problem, ProblemKind};

/// A JSON value (RFC 8259).
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number as the nearest double, which is exact for integers up to 2^53.
    Number(f64),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object: its members in their order, including duplicates.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses one document with at most 127 nested levels.
    pub fn parse(bytes: &[u8]) -> Result<Json, Problem> {
        serde_json::from_slice(bytes).map_err(|error| {
            let error = error.to_string();
            // RFC 8259 §6 allows such a number, so this is a field error. No field accepts the value.
            if error.starts_with("number out of range") {
                let mut errors = FieldErrors::default();
                errors.add_member("#", format!("contains a {error}"));
                return errors.into();
            }
            let detail = format!("the body must be JSON in UTF-8: {error}");
            Problem::new(ProblemKind::Malformed, detail)
        })
    }

    /// Returns the field error of a value with the wrong type.
    pub fn type_error(&self, expected: &str) -> String {
        format!("must be {expected}, not {}", self.type_name())
    }

    /// Names the type of the value, for an error.
    pub fn type_name(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }
}

/// Returns the values of the named members of the object at `pointer`, in the order of `names`.
///
/// Unknown and duplicate members are field errors. Returns `None` and adds a field error if the value
/// is not an object.
pub fn read_members<const N: usize>(
    value: Json,
    pointer: &str,
    names: [&str; N],
    errors: &mut FieldErrors,
) -> Option<[Option<Json>; N]> {
    let Json::Object(members) = value else {
        errors.add_member(pointer, value.type_error("an object"));
        return None;
    };
    let mut found = [const { None }; N];
    let mut duplicates = Vec::new();
    for (name, value) in members {
        match names.iter().position(|known| *known == name) {
            None => errors.add_member(
                member_pointer(pointer, &name),
                "is not a known field; remove it",
            ),
            Some(index) if found[index].is_none() => found[index] = Some(value),
            Some(_) if duplicates.contains(&name) => {}
            Some(_) => {
                errors.add_member(member_pointer(pointer, &name), "must appear only once");
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
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
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
    fn every_unknown_and_duplicate_member_is_an_error() {
        let text = br#" {"a": [1, {"b": null}], "x": 1, "a": 2, "a": 3, "n": 1e3, "y/z": 1} "#;
        let mut errors = FieldErrors::default();
        let names = ["a", "b", "n"];
        let found = read_members(Json::parse(text).unwrap(), "#", names, &mut errors);
        let array = Json::Array(vec![
            Json::Number(1.0),
            Json::Object(vec![("b".into(), Json::Null)]),
        ]);
        let expected = [Some(array), None, Some(Json::Number(1000.0))];
        assert_eq!(found, Some(expected));

        let mut expected = FieldErrors::default();
        expected.add_member("#/x", "is not a known field; remove it");
        expected.add_member("#/a", "must appear only once");
        expected.add_member("#/y~1z", "is not a known field; remove it");
        assert_eq!(errors.into_vec(), expected.into_vec());
    }
}
