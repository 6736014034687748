//! The OpenAPI document, as the tests read it.

use boon::{Compiler, Schemas};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{Answer, Api};

/// The committed document.
pub const COMMITTED: &str = include_str!("../../../docs/openapi.json");

/// It, read.
pub fn document() -> Value {
    serde_json::from_str(COMMITTED).unwrap()
}

/// What is at that pointer, references followed.
fn at<'a>(document: &'a Value, place: &'a Value) -> &'a Value {
    match place["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => place,
    }
}

/// Every operation: path, method, object.
pub fn operations(document: &Value) -> impl Iterator<Item = (&str, Method, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(|(method, object)| {
            let method = method.to_uppercase().parse().unwrap();
            (path.as_str(), method, object)
        })
    })
}

/// What is wrong with the value by that schema, which takes no member that it does not list.
pub fn mistakes(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let mut document = document.clone();
    document["asked"] = schema.clone();
    close(&mut document);
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.enable_format_assertions();
    compiler.add_resource("test:/document", document).unwrap();
    let schema = compiler.compile("test:/document#/asked", &mut schemas);
    let mistakes = schemas.validate(value, schema.unwrap()).err();
    mistakes.map(|error| error.to_string())
}

/// Forbids further members wherever they are not spoken of.
fn close(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("properties") {
                members
                    .entry("additionalProperties")
                    .or_insert(json!(false));
            }
            members.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Checks that the operation lists the answer: its status, headers and body.
#[track_caller]
pub fn check(document: &Value, operation: &Value, answer: &Answer) {
    let listed = &operation["responses"][answer.status.to_string()];
    assert!(
        listed.is_object(),
        "{} does not list {answer:?}",
        operation["operationId"]
    );
    let listed = at(document, listed);
    for (name, header) in listed["headers"].as_object().unwrap() {
        let header = at(document, header);
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

/// The request of an operation made of the document's examples, for the token of that id.
pub fn example(
    document: &Value,
    api: &Api,
    path: &str,
    method: Method,
    operation: &Value,
    id: &str,
) -> RequestBuilder {
    let mut path = path.replace("{id}", id);
    let mut headers = Vec::new();
    for parameter in operation["parameters"].as_array().unwrap() {
        let parameter = at(document, parameter);
        let name = parameter["name"].as_str().unwrap();
        let value = match &parameter["example"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match parameter["in"].as_str().unwrap() {
            "header" => headers.push((name, value)),
            // Made up: no answer gave it.
            "query" if name != "cursor" => {
                let separator = if path.contains('?') { '&' } else { '?' };
                let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
                path = format!("{path}{separator}{name}={value}");
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
            let schema = at(document, schema);
            let schema = schema["oneOf"]
                .get(0)
                .map_or(schema, |one| at(document, one));
            request
                .header("content-type", "application/json")
                .body(schema["examples"][0].to_string())
        }
    }
}
