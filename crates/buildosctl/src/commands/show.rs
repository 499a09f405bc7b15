//! What is shown of a host, to people and as JSON.

use serde_json::{Value, json};

use super::{lists, metrics, status, why};
use crate::snapshot::model::{Host, SCHEMA};
use crate::term::Style;

/// A way to look at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Everything, on one screen.
    Status,
    /// The first broken link.
    Why,
    /// Links.
    Links,
    /// Leases.
    Leases,
    /// Agents.
    Agents,
    /// Prometheus' text format.
    Metrics,
}

/// Text, and the exit code that goes with it.
pub(crate) struct Shown {
    /// Lines, each with its end.
    pub(crate) text: String,
    /// See buildosctl(1).
    pub(crate) code: u8,
}

impl View {
    /// For people.
    pub(crate) fn text(self, host: &Host, style: Style) -> Shown {
        let text = match self {
            Self::Status => status::render(host, style),
            Self::Why => {
                let verdict = why::judge(host);
                return Shown {
                    text: verdict.render(style),
                    code: verdict.exit_code(),
                };
            }
            Self::Links => lists::links(host),
            Self::Leases => lists::leases(host),
            Self::Agents => lists::agents(&host.agents),
            Self::Metrics => metrics::render(host),
        };
        let code = self.code(host);
        Shown { text, code }
    }

    /// For programs: one object on one line, see `docs/buildosctl.schema.json`.
    pub(crate) fn json(self, host: &Host) -> Result<Shown, serde_json::Error> {
        let mut code = self.code(host);
        let value: Value = match self {
            Self::Status | Self::Metrics => serde_json::to_value(host)?,
            Self::Why => {
                let verdict = why::judge(host);
                code = verdict.exit_code();
                serde_json::to_value(verdict)?
            }
            Self::Links => json!({"schema": SCHEMA, "links": host.links}),
            Self::Leases => json!({
                "schema": SCHEMA,
                "lease": host.network.as_ref().map(|network| &network.lease),
                "machines": host.usage.machines,
            }),
            Self::Agents => json!({"schema": SCHEMA, "agents": host.agents}),
        };
        let text = format!("{value}\n");
        Ok(Shown { text, code })
    }

    /// 1 when a daemon whose word is shown does not answer.
    fn code(self, host: &Host) -> u8 {
        let known = match self {
            Self::Status => host.silent.is_empty(),
            Self::Links => host.network.is_some(),
            Self::Leases => host.network.is_some() && host.nat.is_some(),
            Self::Agents => host.manager.is_some(),
            // A daemon that does not answer is a metric, too.
            Self::Why | Self::Metrics => true,
        };
        u8::from(!known)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::snapshot::model::samples::ready;

    const VIEWS: [(View, &str); 5] = [
        (View::Status, "status"),
        (View::Why, "why"),
        (View::Links, "links"),
        (View::Leases, "leases"),
        (View::Agents, "agents"),
    ];

    /// The keys that the schema (JSON Schema, `properties` and `items`) and a value
    /// do not share.
    pub(crate) fn differences(schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                // A map from words to values.
                if let Some(each) = schema.get("additionalProperties") {
                    for (key, value) in object {
                        differences(each, value, &format!("{place}.{key}"), found);
                    }
                    return;
                }
                let Some(properties) = schema["properties"].as_object() else {
                    found.push(format!("{place} is no object in the schema"));
                    return;
                };
                for (key, value) in object {
                    match properties.get(key) {
                        Some(schema) => {
                            differences(schema, value, &format!("{place}.{key}"), found)
                        }
                        None => found.push(format!("{place}.{key} is not in the schema")),
                    }
                }
                for key in properties.keys().filter(|key| !object.contains_key(*key)) {
                    found.push(format!("{place}.{key} is in the schema only"));
                }
            }
            Value::Array(items) => {
                for value in items {
                    differences(&schema["items"], value, &format!("{place}[]"), found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                let type_of = match value {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(_) => "integer",
                    Value::String(_) | Value::Array(_) | Value::Object(_) => "string",
                };
                let named = &schema["type"];
                let has = named == type_of
                    || named.as_array().is_some_and(|all| all.iter().any(|t| t == type_of))
                    // Tuples, which say their types in words.
                    || schema.is_null();
                if !has {
                    found.push(format!("{place} is {type_of}, the schema says {named}"));
                }
            }
        }
    }

    #[test]
    fn json_is_as_documented() {
        let schema: Value =
            serde_json::from_str(include_str!("../../../../docs/buildosctl.schema.json")).unwrap();
        for (view, name) in VIEWS {
            let shown = view.json(&ready()).unwrap();
            let value: Value = serde_json::from_str(&shown.text).unwrap();
            let mut found = Vec::new();
            differences(&schema["$defs"][name], &value, name, &mut found);
            assert_eq!(found, [""; 0], "{name}");
        }
    }

    #[test]
    fn silence_has_its_exit_code() {
        let mut host = ready();
        assert_eq!(View::Agents.text(&host, Style::PLAIN).code, 0);
        host.manager = None;
        assert_eq!(View::Agents.text(&host, Style::PLAIN).code, 1);
        assert_eq!(View::Links.text(&host, Style::PLAIN).code, 0);
    }
}
