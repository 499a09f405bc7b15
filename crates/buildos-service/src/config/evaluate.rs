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
    /// Problems, in order of the sources; contradictions between keys come last.
    pub problems: Vec<Problem>,
}

/// The place of a key.
struct Place {
    key: String,
    origin: Origin,
    line: Option<usize>,
}

/// An evaluation of the fragments.
struct Evaluation<'a, T> {
    schema: &'a Schema<T>,
    loaded: Loaded<T>,
    /// Places of the keys that were set, in order, if the schema has a check.
    places: Vec<Place>,
}

/// Applies the fragments in order to the default settings.
#[must_use]
pub fn evaluate<T: Default>(schema: &Schema<T>, fragments: &[Fragment]) -> Loaded<T> {
    let mut evaluation = Evaluation {
        schema,
        loaded: Loaded {
            settings: T::default(),
            problems: Vec::new(),
        },
        places: Vec::new(),
    };
    for fragment in fragments {
        match fragment.origin {
            Origin::File(_) => evaluation.toml(fragment),
            Origin::KernelCommandLine => evaluation.kernel_command_line(fragment),
        }
    }
    evaluation.check();
    evaluation.loaded
}

impl<T> Evaluation<'_, T> {
    fn toml(&mut self, fragment: &Fragment) {
        match DeTable::parse(&fragment.text) {
            Ok(table) => {
                let before = self.loaded.problems.len();
                self.walk(fragment, table.into_inner(), &mut Vec::new());
                // The parser returns keys in alphabetical order.
                self.loaded.problems[before..].sort_by_key(|problem| problem.line);
            }
            Err(error) => self.loaded.problems.push(Problem {
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

    fn walk(&mut self, fragment: &Fragment, table: DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table {
            let line = line_of(&fragment.text, key.span().start);
            path.push(key.into_inner().into_owned());
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            let settings = &mut self.loaded.settings;
            let is_table = matches!(value.get_ref(), DeValue::Table(_));
            if self.schema.has_below(&parts) && is_table {
                let declared = self.schema.declare(settings, &parts);
                let is_declared = declared.is_ok();
                self.add(fragment, Some(line), &parts.join("."), declared);
                if let (true, DeValue::Table(section)) = (is_declared, value.into_inner()) {
                    self.walk(fragment, section, path);
                }
            } else {
                let result = self.schema.set(settings, &parts, Text::Toml(value));
                self.add(fragment, Some(line), &parts.join("."), result);
            }
            path.pop();
        }
    }

    fn kernel_command_line(&mut self, fragment: &Fragment) {
        let prefix = format!("buildos.{}.", self.schema.name());
        for parameter in cmdline::parse(&fragment.text) {
            let keys = self.schema.keys();
            let alias = keys
                .iter()
                .find(|key| key.alias == Some(parameter.key.as_str()));
            let Some(path) = alias
                .map(|key| key.path)
                .or_else(|| parameter.key.strip_prefix(&prefix))
            else {
                continue;
            };
            let parts: Vec<&str> = path.split('.').collect();
            // A bare key means true, as for systemd's switches.
            let value = Text::Bare(parameter.value.as_deref().unwrap_or("true"));
            let result = self.schema.set(&mut self.loaded.settings, &parts, value);
            let before = self.loaded.problems.len();
            self.add(fragment, None, &parameter.key, result);
            for problem in &mut self.loaded.problems[before..] {
                problem.nearest = problem.nearest.take().map(|key| format!("{prefix}{key}"));
            }
        }
    }

    /// Adds the result of a key.
    fn add(
        &mut self,
        fragment: &Fragment,
        line: Option<usize>,
        key: &str,
        result: Result<(), SetError>,
    ) {
        if result.is_ok() && self.schema.has_check() {
            self.places.push(Place {
                key: key.to_owned(),
                origin: fragment.origin.clone(),
                line,
            });
        }
        let problem = problem(&fragment.origin, line, key, result);
        self.loaded.problems.extend(problem);
    }

    /// Adds the contradictions between keys, with the place that the key, or one below it, was
    /// last set at.
    fn check(&mut self) {
        let prefix = format!("buildos.{}.", self.schema.name());
        for (key, message) in self.schema.contradictions(&mut self.loaded.settings) {
            let is_at = |place: &&Place| {
                let path = place.key.strip_prefix(&prefix).unwrap_or(&place.key);
                let below = path.strip_prefix(key.as_str());
                below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
            };
            if let Some(place) = self.places.iter().rev().find(is_at) {
                self.loaded.problems.push(Problem {
                    origin: place.origin.clone(),
                    line: place.line,
                    message: format!("{}: {message}", Escaped::new(&key)),
                    nearest: None,
                });
            }
        }
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
