//! Defines the keys of a daemon, and converts and sets their values.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use crate::text::Escaped;

/// Keys of a daemon: their paths, descriptions and setters.
///
/// A key is a dotted path. In a path such as `bbot.*.controllers`, `*` matches a name
/// that the configuration chooses, and the setter receives that name. A name is valid if
/// it parses (`FromStr`), a value if it deserializes (`Deserialize`).
pub struct Schema<T> {
    name: &'static str,
    keys: Vec<Key<T>>,
    tables: Vec<Table<T>>,
    check: Option<Box<Check<T>>>,
}

/// One key of a [`Schema`].
pub struct Key<T> {
    /// Dotted path, `*` for a chosen name.
    pub path: &'static str,
    /// One line for `--help` and the manual.
    pub doc: &'static str,
    /// Short name on the kernel command line, besides `buildos.NAME.path`.
    pub alias: Option<&'static str>,
    set: Box<Setter<T>>,
}

/// A table that has a meaning even without keys.
struct Table<T> {
    path: &'static str,
    declare: Box<Declare<T>>,
}

type Check<T> = dyn Fn(&mut T) -> Vec<(String, String)>;
type Declare<T> = dyn Fn(&mut T, &str) -> Result<(), String>;
type Setter<T> = dyn Fn(&mut T, &str, Text<'_>) -> Result<(), String>;

/// A value in the notation of its source.
pub(super) enum Text<'a> {
    /// In a TOML file.
    Toml(Spanned<DeValue<'a>>),
    /// On the kernel command line.
    Bare(&'a str),
}

impl<T> Schema<T> {
    /// Returns the schema of daemon `buildos-NAME`, without keys.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            keys: Vec::new(),
            tables: Vec::new(),
            check: None,
        }
    }

    /// Adds a key.
    #[must_use]
    pub fn key<V: DeserializeOwned>(
        self,
        path: &'static str,
        doc: &'static str,
        set: impl Fn(&mut T, V) + 'static,
    ) -> Self {
        self.named(path, doc, move |config, _: String, value| {
            set(config, value)
        })
    }

    /// Adds a key whose path has one `*`. The setter receives the chosen name.
    #[must_use]
    pub fn named<N: FromStr<Err: Display>, V: DeserializeOwned>(
        mut self,
        path: &'static str,
        doc: &'static str,
        set: impl Fn(&mut T, N, V) + 'static,
    ) -> Self {
        let set = Box::new(move |config: &mut T, name: &str, text: Text<'_>| {
            set(config, parse_name(name)?, text.value()?);
            Ok(())
        });
        self.keys.push(Key {
            path,
            doc,
            alias: None,
            set,
        });
        self
    }

    /// Adds a table `[bbot.NAME]` (path `bbot.*`) that has a meaning even without keys.
    /// `declare` receives the name before any key below it is set.
    #[must_use]
    pub fn table<N: FromStr<Err: Display>>(
        mut self,
        path: &'static str,
        declare: impl Fn(&mut T, N) + 'static,
    ) -> Self {
        let declare = Box::new(move |config: &mut T, name: &str| {
            declare(config, parse_name(name)?);
            Ok(())
        });
        self.tables.push(Table { path, declare });
        self
    }

    /// Adds the check for contradictions between keys. It runs after all sources are read,
    /// removes what has no effect, and returns the key and the error of each.
    #[must_use]
    pub fn check(mut self, check: impl Fn(&mut T) -> Vec<(String, String)> + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// Adds a short name on the kernel command line to the last key.
    #[must_use]
    pub fn alias(mut self, name: &'static str) -> Self {
        if let Some(key) = self.keys.last_mut() {
            key.alias = Some(name);
        }
        self
    }

    /// Returns the name of the daemon without `buildos-`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns all keys.
    #[must_use]
    pub fn keys(&self) -> &[Key<T>] {
        &self.keys
    }

    /// Returns true if the schema has a check for contradictions.
    pub(super) fn has_check(&self) -> bool {
        self.check.is_some()
    }

    /// Removes contradictions, and returns their keys and errors.
    pub(super) fn contradictions(&self, config: &mut T) -> Vec<(String, String)> {
        let check = self.check.as_ref();
        check.map(|check| check(config)).unwrap_or_default()
    }

    pub(super) fn set(
        &self,
        config: &mut T,
        path: &[&str],
        text: Text<'_>,
    ) -> Result<(), SetError> {
        let (key, name) = self
            .keys
            .iter()
            .find_map(|key| matches(key.path, path).map(|name| (key, name)))
            .ok_or_else(|| SetError::Unknown {
                nearest: self.nearest(path),
            })?;
        (key.set)(config, name, text).map_err(SetError::Value)
    }

    /// Passes a table to its `declare` function.
    pub(super) fn declare(&self, config: &mut T, path: &[&str]) -> Result<(), SetError> {
        self.tables
            .iter()
            .find_map(|table| matches(table.path, path).map(|name| (table, name)))
            .map_or(Ok(()), |(table, name)| (table.declare)(config, name))
            .map_err(SetError::Value)
    }

    /// Returns true if longer keys begin with this path.
    pub(super) fn has_below(&self, path: &[&str]) -> bool {
        self.keys.iter().any(|key| {
            let segments: Vec<_> = key.path.split('.').collect();
            segments.len() > path.len()
                && segments.iter().zip(path).all(|(s, p)| *s == "*" || s == p)
        })
    }

    /// Returns the valid key with the smallest edit distance, with the chosen name for
    /// `*`; [`None`] if no key is similar.
    pub(super) fn nearest(&self, path: &[&str]) -> Option<String> {
        let given = path.join(".");
        self.keys
            .iter()
            .map(|key| key.filled(path))
            .map(|key| (strsim::osa_distance(&key, &given), key))
            .filter(|(distance, key)| *distance <= key.len().max(3) / 2)
            .min()
            .map(|(_, key)| key)
    }
}

impl<T> Key<T> {
    fn filled(&self, path: &[&str]) -> String {
        let segments = self.path.split('.').enumerate();
        let filled: Vec<_> = segments
            .map(|(i, segment)| match path.get(i) {
                Some(part) if segment == "*" => part,
                _ => segment,
            })
            .collect();
        filled.join(".")
    }
}

/// Returns the name at `*`, or an empty one, if the path matches the pattern.
fn matches<'a>(pattern: &str, path: &[&'a str]) -> Option<&'a str> {
    let mut name = "";
    let mut segments = pattern.split('.');
    for part in path {
        match segments.next()? {
            "*" => name = part,
            segment if segment == *part => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(name)
}

fn parse_name<N: FromStr<Err: Display>>(name: &str) -> Result<N, String> {
    name.parse().map_err(|error: N::Err| error.to_string())
}

/// Reason why a key is not set.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SetError {
    Unknown { nearest: Option<String> },
    Value(String),
}

impl Text<'_> {
    fn value<V: DeserializeOwned>(self) -> Result<V, String> {
        match self {
            Self::Toml(value) => {
                V::deserialize(ValueDeserializer::from(value)).map_err(|e| first_line(&e))
            }
            Self::Bare(text) => bare(text),
        }
    }
}

/// Reads a value of the kernel command line, where TOML's quotes are inconvenient. Tries
/// TOML, a string, and a list of strings separated by commas, in this order.
fn bare<V: DeserializeOwned>(text: &str) -> Result<V, String> {
    let read = |value| V::deserialize(ValueDeserializer::from(spanned(value)));
    let list = || {
        text.split(',')
            .map(|part| spanned(DeValue::String(part.into())))
            .collect()
    };
    // Text that is not TOML is a string.
    let toml = ValueDeserializer::parse(text).ok().map(V::deserialize);
    let string = read(DeValue::String(text.into()));
    let mut errors = Vec::new();
    for reading in toml
        .into_iter()
        .chain([string, read(DeValue::Array(list()))])
    {
        match reading {
            Ok(value) => return Ok(value),
            Err(error) => errors.push(first_line(&error)),
        }
    }
    // An error about the value helps more than an error about its type.
    let has_right_type = |error: &String| !error.starts_with("invalid type");
    let best = errors.iter().position(has_right_type).unwrap_or(0);
    Err(errors.swap_remove(best))
}

fn spanned(value: DeValue<'_>) -> Spanned<DeValue<'_>> {
    Spanned::new(0..0, value)
}

/// Returns the message without the excerpt of the file. [`super::Problem`] has the line.
fn first_line(error: &toml::de::Error) -> String {
    Escaped::received(error.message().lines().next().unwrap_or("bad value")).into()
}
