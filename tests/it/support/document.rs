//! Reads the committed OpenAPI document and validates responses against it.

use boon::{Compiler, Schemas};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{Answer, Api};

/// The text of the committed document.
pub const COMMITTED: &str = include_str!("../../../docs/openapi.json");

/// Parses the committed document.
pub fn document() -> Value {
    serde_json::from_str(COMMITTED).unwrap()
}

/// Follows the `$ref` of an object. Returns the object itself if it has none.
fn resolve<'a>(document: &'a Value, object: &'a Value) -> &'a Value {
    match object["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => object,
    }
}

/// Iterates over the operations: path, method, object.
pub fn operations(document: &Value) -> impl Iterator<Item = (&str, Method, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(|(method, object)| {
            let method = method.to_uppercase().parse().unwrap();
            (path.as_str(), method, object)
        })
    })
}

/// Returns the validation error of a value, or `None` if it matches the schema. Members that the schema does not list
/// are errors.
pub fn mistakes(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let mut document = document.clone();
    document["schemaUnderTest"] = schema.clone();
    forbid_unlisted_members(&mut document);
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.enable_format_assertions();
    compiler.add_resource("test:/document", document).unwrap();
    let schema = compiler.compile("test:/document#/schemaUnderTest", &mut schemas);
    let error = schemas.validate(value, schema.unwrap()).err();
    error.map(|error| error.to_string())
}

/// Sets `additionalProperties` to false in each schema that does not set it.
fn forbid_unlisted_members(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("properties") {
                members
                    .entry("additionalProperties")
                    .or_insert(json!(false));
            }
            members.values_mut().for_each(forbid_unlisted_members);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unlisted_members),
        _ => {}
    }
}

/// Asserts that the document describes the status, the headers and the body of the response.
#[track_caller]
pub fn check(document: &Value, operation: &Value, answer: &Answer) {
    let listed = &operation["responses"][answer.status.to_string()];
    assert!(
        listed.is_object(),
        "{} does not list {answer:?}",
        operation["operationId"]
    );
    let listed = resolve(document, listed);
    for (name, header) in listed["headers"].as_object().unwrap() {
        let header = resolve(document, header);
        let (value, schema) = (answer.header(name), &header["schema"]);
        if value.is_empty() && header["required"] == false {
            continue;
        }
        let value = match schema["type"] == "integer" {
            true => json!(value.parse::<u64>().unwrap()),
            false => json!(value),
        };
        assert_ne!(value, "", "{name} is missing: {answer:?}");
        assert_eq!(mistakes(document, schema, &value), None, "{name}");
    }
    let media_type = answer.header("content-type");
    let schema = &listed["content"][media_type]["schema"];
    assert!(schema.is_object(), "{media_type} is not listed: {answer:?}");
    if media_type.ends_with("json") && !media_type.contains("ndjson") {
        assert_eq!(mistakes(document, schema, &answer.body), None, "{answer:?}");
    }
}

/// Builds a request for the operation from the examples in the document. `id` replaces the id in the path.
pub fn example(
    document: &Value,
    api: &Api,
    path: &str,
    method: Method,
    operation: &Value,
    id: &str,
) -> RequestBuilder {
    let mut path = path.replace("{id}", id).replace("{key}", id);
    path = path.replace("{tile}", "0/000.p/1");
    let mut headers = Vec::new();
    for parameter in operation["parameters"].as_array().unwrap() {
        let parameter = resolve(document, parameter);
        let name = parameter["name"].as_str().unwrap();
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // An array stands for a parameter that is repeated.
        let values = match &parameter["example"] {
            Value::Array(values) => values.iter().map(text).collect(),
            value => vec![text(value)],
        };
        match parameter["in"].as_str().unwrap() {
            "header" => headers.push((name, values.concat())),
            // A cursor has no example.
            "query" if name != "cursor" => {
                for value in values {
                    let separator = if path.contains('?') { '&' } else { '?' };
                    let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
                    path = format!("{path}{separator}{name}={value}");
                }
            }
            _ => {}
        }
    }
    let request = api.request(method, &path);
    let request = headers.into_iter().fold(request, |request, (name, value)| {
        request.header(name, value)
    });
    match &operation["requestBody"]["content"]["application/json"]["schema"] {
        Value::Null => request,
        schema => {
            let schema = resolve(document, schema);
            let schema = schema["oneOf"]
                .get(0)
                .map_or(schema, |one| resolve(document, one));
            request
                .header("content-type", "application/json")
                .body(schema["examples"][0].to_string())
        }
    }
}
