//! Reads the keys of a TOML table, and collects problems with their lines.

use std::fmt;
use std::str::FromStr;

use buildos_types::Escaped;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::model::Limits;
use crate::time::Timestamp;

/// A mistake in a channel file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the text, from 1; [`None`] if the mistake has no place.
    pub line: Option<usize>,
    /// Reason, on one line, escaped.
    pub message: String,
    /// Valid key that is most similar to an unknown one.
    pub nearest: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; the nearest valid key is {nearest:?}")?;
        }
        Ok(())
    }
}

/// Problems found so far.
#[derive(Debug)]
pub(crate) struct Report<'t> {
    text: &'t str,
    /// Mistakes that make the file useless.
    pub(crate) errors: Vec<Problem>,
    /// Keys without meaning for this version.
    pub(crate) unknown: Vec<Problem>,
}

/// Problems kept: no file needs more, and their number is bounded.
const MOST_PROBLEMS: usize = 50;

impl<'t> Report<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            errors: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Adds an error at a byte of the text.
    pub(crate) fn error(&mut self, at: Option<usize>, message: String) {
        if self.errors.len() < MOST_PROBLEMS {
            let line = at.map(|at| line_of(self.text, at));
            self.errors.push(Problem {
                line,
                message,
                nearest: None,
            });
        }
    }

    fn unknown(&mut self, at: usize, key: &str, nearest: Option<String>) {
        if self.unknown.len() < MOST_PROBLEMS {
            self.unknown.push(Problem {
                line: Some(line_of(self.text, at)),
                message: format!("unknown key \"{}\"", Escaped::new(key)),
                nearest,
            });
        }
    }

    /// Sorts the problems by line, as the parser returns keys in alphabetical order.
    pub(crate) fn sort(&mut self) {
        self.errors.sort_by_key(|problem| problem.line);
        self.unknown.sort_by_key(|problem| problem.line);
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    before.filter(|byte| *byte == b'\n').count() + 1
}

/// Returns the known key with the smallest edit distance, if one is similar.
fn nearest<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    // The distance of a long key costs its length.
    if given.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|key| (strsim::osa_distance(key, given), key))
        .filter(|(distance, key)| *distance <= key.len().max(3) / 2)
        .min()
        .map(|(_, key)| *key)
}

/// A value with its place.
pub(crate) type Value<'t> = Spanned<DeValue<'t>>;

/// A table whose keys are read one after another.
pub(crate) struct Table<'t> {
    table: DeTable<'t>,
    /// Byte of the header; [`None`] for the whole document.
    at: Option<usize>,
    /// Place for messages: empty, or `machine` and `.`.
    prefix: String,
    known: Vec<&'static str>,
}

impl<'t> Table<'t> {
    pub(crate) fn document(table: DeTable<'t>) -> Self {
        Self {
            table,
            at: None,
            prefix: String::new(),
            known: Vec::new(),
        }
    }

    /// Returns the byte of the header.
    pub(crate) fn at(&self) -> Option<usize> {
        self.at
    }

    /// Takes the value of a key, which is known from now on.
    fn take(&mut self, key: &'static str) -> Option<Value<'t>> {
        self.known.push(key);
        let spanned = Spanned::new(0..0, DeString::Borrowed(key));
        self.table.remove(&spanned)
    }

    /// Takes a value that must exist.
    fn need(&mut self, key: &'static str, report: &mut Report<'_>) -> Option<Value<'t>> {
        let value = self.take(key);
        if value.is_none() {
            report.error(self.at, format!("{}{key} is missing", self.prefix));
        }
        value
    }

    fn wrong(&self, key: &str, value: &Value<'_>, reason: &str, report: &mut Report<'_>) {
        let at = Some(value.span().start);
        report.error(at, format!("{}{key}: {reason}", self.prefix));
    }

    /// Reads a whole number from `least` to `most`.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        (least, most): (u64, u64),
        report: &mut Report<'_>,
    ) -> Option<u64> {
        let value = self.need(key, report)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let reason = format!("not a whole number from {least} to {most}");
            self.wrong(key, &value, &reason, report);
        }
        number
    }

    /// Reads a text that parses as `T`.
    pub(crate) fn text<T: FromStr<Err: fmt::Display>>(
        &mut self,
        key: &'static str,
        report: &mut Report<'_>,
    ) -> Option<T> {
        let value = self.need(key, report)?;
        self.parsed(key, &value, report)
    }

    /// Reads a text that parses as `T`, or returns the default if it is missing.
    pub(crate) fn text_or_default<T: FromStr<Err: fmt::Display> + Default>(
        &mut self,
        key: &'static str,
        report: &mut Report<'_>,
    ) -> Option<T> {
        match self.take(key) {
            None => Some(T::default()),
            Some(value) => self.parsed(key, &value, report),
        }
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        value: &Value<'t>,
        report: &mut Report<'_>,
    ) -> Option<T> {
        let parsed = match value.get_ref() {
            DeValue::String(text) => text.parse().map_err(|error: T::Err| error.to_string()),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => Err("not a text in quotes".to_owned()),
        };
        parsed
            .map_err(|reason| self.wrong(key, value, &reason, report))
            .ok()
    }

    /// Reads a time.
    pub(crate) fn time(&mut self, key: &'static str, report: &mut Report<'_>) -> Option<Timestamp> {
        let value = self.need(key, report)?;
        let time = match value.get_ref() {
            DeValue::Datetime(time) => {
                Timestamp::from_toml(time).map_err(|error| error.to_string())
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => Err("not a time such as 2027-01-31T12:00:00Z".to_owned()),
        };
        time.map_err(|reason| self.wrong(key, &value, &reason, report))
            .ok()
    }

    /// Takes a table that can be missing.
    pub(crate) fn optional_table(
        &mut self,
        key: &'static str,
        report: &mut Report<'_>,
    ) -> Option<Self> {
        let value = self.take(key)?;
        self.to_table(key, value, report)
    }

    /// Takes a table that must exist.
    pub(crate) fn table(&mut self, key: &'static str, report: &mut Report<'_>) -> Option<Self> {
        let value = self.need(key, report)?;
        self.to_table(key, value, report)
    }

    fn to_table(&self, key: &str, value: Value<'t>, report: &mut Report<'_>) -> Option<Self> {
        let at = value.span().start;
        match value.into_inner() {
            DeValue::Table(table) => Some(Self {
                table,
                at: Some(at),
                prefix: format!("{}{key}.", self.prefix),
                known: Vec::new(),
            }),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => {
                report.error(Some(at), format!("{}{key}: not a table", self.prefix));
                None
            }
        }
    }

    /// Takes the tables of an array that can be missing, at most `most`.
    pub(crate) fn tables(
        &mut self,
        key: &'static str,
        most: usize,
        report: &mut Report<'_>,
    ) -> Vec<Self> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let at = value.span().start;
        let DeValue::Array(array) = value.into_inner() else {
            let message = format!("{}{key}: not an array of tables", self.prefix);
            report.error(Some(at), message);
            return Vec::new();
        };
        if array.len() > most {
            let message = format!(
                "{}{key}: {} tables, at most {most}",
                self.prefix,
                array.len()
            );
            report.error(array.get(most).map(|value| value.span().start), message);
        }
        let values = array.into_iter().take(most);
        values
            .filter_map(|value| self.to_table(key, value, report))
            .collect()
    }

    /// Ends the table: keys that were not read are unknown.
    pub(crate) fn end(self, report: &mut Report<'_>) {
        for (key, _) in self.table {
            let at = key.span().start;
            let nearest = nearest(key.get_ref(), &self.known);
            let nearest = nearest.map(|key| format!("{}{key}", self.prefix));
            let path = format!("{}{}", self.prefix, key.get_ref());
            report.unknown(at, &path, nearest);
        }
    }
}

/// The range of serials and revisions.
pub(crate) const NUMBERS: (u64, u64) = (1, Limits::NUMBER);
/// The range of sizes.
pub(crate) const SIZES: (u64, u64) = (0, Limits::SIZE);
