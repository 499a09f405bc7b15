//! Generates `docs/buildosctl.schema.json` from the types of the JSON output, and compares
//! real output with it.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::show::View;
use super::why::Verdict;
use super::{agents, leases, links, machines};
use crate::generated::compare;
use crate::simulate::Report;
use crate::snapshot::model::Host;
use crate::snapshot::samples::ready;

const PATH: &str = "docs/buildosctl.schema.json";

/// Returns the schema: a definition for each command, and for the parts of its output.
fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator = settings.into_generator();
    generator.subschema_for::<Host>();
    generator.subschema_for::<Verdict>();
    generator.subschema_for::<links::Json<'_>>();
    generator.subschema_for::<leases::Json<'_>>();
    generator.subschema_for::<agents::Json<'_>>();
    generator.subschema_for::<machines::Json<'_>>();
    generator.subschema_for::<Report>();
    let definitions = generator.take_definitions(true);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Output of buildosctl --json",
        "description": "One object on a line. With --watch, one more object at every change. \
            The definitions are named after the commands.",
        "$defs": definitions,
    });
    strip(&mut schema);
    schema
}

/// Removes default values, which concern deserialization, and the formats of numbers.
fn strip(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.contains_key("type") || object.contains_key("$ref") {
                object.remove("default");
                object.remove("format");
            }
            object.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Asserts that a value conforms to the schema of a command, with exactly its keys.
pub(crate) fn assert_documented(command: &str, value: &Value) {
    let schema: Value =
        serde_json::from_str(include_str!("../../../../docs/buildosctl.schema.json")).unwrap();
    let mut found = Vec::new();
    let definitions = &schema["$defs"];
    differences(
        definitions,
        &definitions[command],
        value,
        command,
        &mut found,
    );
    assert_eq!(found, [""; 0], "{command}");
}

/// Finds differences between a schema and a value.
fn differences(
    definitions: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    found: &mut Vec<String>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").unwrap();
        differences(definitions, &definitions[name], value, place, found);
        return;
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[choice].as_array() {
            let fits = |schema: &Value| {
                let mut found = Vec::new();
                differences(definitions, schema, value, place, &mut found);
                found.is_empty()
            };
            if !schemas.iter().any(fits) {
                found.push(format!("{place} fits none of {schemas:?}"));
            }
            return;
        }
    }
    if let Some(constant) = schema.get("const") {
        if constant != value {
            found.push(format!("{place} is not {constant}"));
        }
        return;
    }
    if let Some(values) = schema["enum"].as_array() {
        if !values.contains(value) {
            found.push(format!("{place} is not one of {values:?}"));
        }
        return;
    }
    let type_of = type_of(value);
    let types = &schema["type"];
    let listed = |types: &Vec<Value>| types.iter().any(|t| t == type_of);
    if !(types == type_of || types.as_array().is_some_and(listed)) {
        found.push(format!("{place} is {type_of}, the schema says {types}"));
        return;
    }
    if let Some(object) = value.as_object() {
        keys(definitions, schema, object, place, found);
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        let schema = match schema["prefixItems"].get(i) {
            Some(schema) => schema,
            None => &schema["items"],
        };
        differences(definitions, schema, item, &format!("{place}[{i}]"), found);
    }
}

/// Finds differences between the keys of an object and those of its schema.
fn keys(
    definitions: &Value,
    schema: &Value,
    object: &serde_json::Map<String, Value>,
    place: &str,
    found: &mut Vec<String>,
) {
    let known = schema["properties"].as_object();
    let others = schema.get("additionalProperties");
    for (key, value) in object {
        let place = format!("{place}.{key}");
        match known.and_then(|known| known.get(key)).or(others) {
            Some(schema) => differences(definitions, schema, value, &place, found),
            None => found.push(format!("{place} is not in the schema")),
        }
    }
    for key in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(key.as_str().unwrap()) {
            found.push(format!("{place}.{key} is in the schema only"));
        }
    }
}

/// Returns the name of a value's type in JSON Schema.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[test]
fn generated_schema_is_current() {
    let text = serde_json::to_string_pretty(&schema()).unwrap();
    compare(PATH, &format!("{text}\n"));
}

#[test]
fn schema_requires_every_key() {
    fn check(schema: &Value, place: &str) {
        if let Some(properties) = schema["properties"].as_object() {
            for (key, property) in properties {
                let required = schema["required"].as_array();
                let required = required.is_some_and(|all| all.iter().any(|k| k == key));
                assert!(required, "{place}.{key}");
                assert!(
                    property["description"].is_string() || property["$ref"].is_string(),
                    "{place}.{key} has no description"
                );
            }
        }
    }
    for (name, definition) in schema()["$defs"].as_object().unwrap() {
        check(definition, name);
    }
}

#[test]
fn json_output_of_views_follows_schema() {
    for (view, command) in [
        (View::Status, "status"),
        (View::Why, "why"),
        (View::Links, "links"),
        (View::Leases, "leases"),
        (View::Agents, "agents"),
        (View::Machines, "machines"),
    ] {
        let output = view.json(&ready()).unwrap();
        let value: Value = serde_json::from_str(&output.text).unwrap();
        assert_documented(command, &value);
    }
}
