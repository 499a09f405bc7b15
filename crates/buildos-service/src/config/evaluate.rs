//! Applies the fragments of the configuration to the default settings.

use toml::de::{DeTable, DeValue};

use super::origin::Origin;
use super::problem::Problem;
use super::schema::{Schema, SetError, Text};
use super::sources::Fragment;
use crate::cmdline;
use crate::text::Escaped;

/// Result of [`evaluate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    #[allow(missing_docs)]
    pub settings: T,
    /// Problems, in order of the sources.
    pub problems: Vec<Problem>,
}

/// Applies the fragments in order to the default settings.
#[must_use]
pub fn evaluate<T: Default>(schema: &Schema<T>, fragments: &[Fragment]) -> Loaded<T> {
    let mut loaded = Loaded {
        settings: T::default(),
        problems: Vec::new(),
    };
    for fragment in fragments {
        match fragment.origin {
            Origin::File(_) => toml(schema, fragment, &mut loaded),
            Origin::KernelCommandLine => kernel_command_line(schema, fragment, &mut loaded),
        }
    }
    loaded
}

fn toml<T>(schema: &Schema<T>, fragment: &Fragment, loaded: &mut Loaded<T>) {
    match DeTable::parse(&fragment.text) {
        Ok(table) => {
            let before = loaded.problems.len();
            walk(
                schema,
                fragment,
                table.into_inner(),
                &mut Vec::new(),
                loaded,
            );
            // The parser returns keys in alphabetical order.
            loaded.problems[before..].sort_by_key(|problem| problem.line);
        }
        Err(error) => loaded.problems.push(Problem {
            origin: fragment.origin.clone(),
            line: error.span().map(|span| line_of(&fragment.text, span.start)),
            message: format!(
                "not TOML, the whole file is ignored: {}",
                Escaped::received(error.message())
            ),
            nearest: None,
        }),
    }
}

fn walk<T>(
    schema: &Schema<T>,
    fragment: &Fragment,
    table: DeTable<'_>,
    path: &mut Vec<String>,
    loaded: &mut Loaded<T>,
) {
    for (key, value) in table {
        let line = line_of(&fragment.text, key.span().start);
        path.push(key.into_inner().into_owned());
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        if schema.has_below(&parts) && matches!(value.get_ref(), DeValue::Table(_)) {
            let declared = schema.declare(&mut loaded.settings, &parts);
            match (declared, value.into_inner()) {
                (Ok(()), DeValue::Table(section)) => {
                    walk(schema, fragment, section, path, loaded);
                }
                (result, _) => loaded.problems.extend(problem(
                    &fragment.origin,
                    Some(line),
                    &parts.join("."),
                    result,
                )),
            }
        } else {
            let result = schema.set(&mut loaded.settings, &parts, Text::Toml(value));
            loaded.problems.extend(problem(
                &fragment.origin,
                Some(line),
                &parts.join("."),
                result,
            ));
        }
        path.pop();
    }
}

fn kernel_command_line<T>(schema: &Schema<T>, fragment: &Fragment, loaded: &mut Loaded<T>) {
    let prefix = format!("buildos.{}.", schema.name());
    for parameter in cmdline::parse(&fragment.text) {
        let alias = schema
            .keys()
            .iter()
            .find(|key| key.alias == Some(parameter.key.as_str()));
        let Some(path) = alias
            .map(|key| key.path)
            .or_else(|| parameter.key.strip_prefix(&prefix))
        else {
            continue;
        };
        let parts: Vec<&str> = path.split('.').collect();
        let result = match &parameter.value {
            Some(value) => schema.set(&mut loaded.settings, &parts, Text::Bare(value)),
            // A bare key means true, as for systemd's switches.
            None => schema.set(&mut loaded.settings, &parts, Text::Bare("true")),
        };
        loaded
            .problems
            .extend(
                problem(&fragment.origin, None, &parameter.key, result).map(|mut p| {
                    p.nearest = p.nearest.map(|key| format!("{prefix}{key}"));
                    p
                }),
            );
    }
}

fn problem(
    origin: &Origin,
    line: Option<usize>,
    key: &str,
    result: Result<(), SetError>,
) -> Option<Problem> {
    let key = Escaped::new(key);
    let (message, nearest) = match result {
        Ok(()) => return None,
        Err(SetError::Unknown { nearest }) => (format!("unknown key \"{key}\""), nearest),
        Err(SetError::Value(reason)) => (format!("{key}: {reason}"), None),
    };
    Some(Problem {
        origin: origin.clone(),
        line,
        message,
        nearest,
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}
