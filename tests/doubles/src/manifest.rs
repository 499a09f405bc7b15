//! Parses and writes the manifest format of the build2 project.
//!
//! A body is a list of manifests with these lines:
//!
//! | line | meaning |
//! |---|---|
//! | `: 1` | start of the first manifest, with the version of the format |
//! | `:` | start of each further manifest |
//! | `name: value` | a value |
//! | `name:\` | start of a value with several lines, such as a build log |
//! | `\` | end of a value with several lines |
//! | `# …`, empty | ignored |

use std::fmt::Write;

/// A manifest: pairs of name and value in order, with unique names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest(Vec<(String, String)>);

/// The reason why a text is not a list of manifests. Lines count from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// The body does not start with `: 1`.
    #[error("line {line}: expected \": 1\", the start of a manifest of version 1")]
    Version {
        #[allow(missing_docs)]
        line: usize,
    },
    /// A line is neither the start of a manifest nor `name: value`.
    #[error("line {line}: expected \"name: value\"")]
    Pair {
        #[allow(missing_docs)]
        line: usize,
    },
    /// A value with several lines has no end.
    #[error("line {line}: the value of {name} has no end")]
    Unterminated {
        /// First line of the value.
        line: usize,
        #[allow(missing_docs)]
        name: String,
    },
    /// A name occurs twice in one manifest.
    #[error("line {line}: {name} occurs twice")]
    Duplicate {
        #[allow(missing_docs)]
        line: usize,
        #[allow(missing_docs)]
        name: String,
    },
}

impl Manifest {
    /// Adds a pair, with control characters of the value replaced by spaces.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let value: String = value
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        self.0.push((name.to_owned(), value.trim().to_owned()));
        self
    }

    /// Adds a pair whose value may have several lines.
    ///
    /// Other control characters become spaces. A line that would end the value becomes
    /// empty.
    #[must_use]
    pub fn with_lines(mut self, name: &str, value: &str) -> Self {
        let lines = value.lines().map(|line| {
            let line: String = line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            if line.trim() == "\\" {
                String::new()
            } else {
                line
            }
        });
        let lines: Vec<String> = lines.collect();
        if let [line] = lines.as_slice() {
            return self.with(name, line);
        }
        self.0.push((name.to_owned(), lines.join("\n")));
        self
    }

    /// Returns all pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// Writes a body.
#[must_use]
pub fn write(manifests: &[Manifest]) -> String {
    let mut body = String::new();
    for (index, Manifest(pairs)) in manifests.iter().enumerate() {
        body.push_str(if index == 0 { ": 1\n" } else { ":\n" });
        for (name, value) in pairs {
            // Writing to a String cannot fail.
            let _ = match value.as_str() {
                "" => writeln!(body, "{name}:"),
                // A lone backslash would start a value with several lines.
                value if value.contains('\n') || value == "\\" => {
                    writeln!(body, "{name}:\\\n{value}\n\\")
                }
                value => writeln!(body, "{name}: {value}"),
            };
        }
    }
    body
}

/// Parses a body with at least one manifest.
///
/// # Errors
///
/// The text violates the format.
pub fn parse(body: &str) -> Result<Vec<Manifest>, ParseError> {
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut line = 0;
    let mut lines = body.lines();
    while let Some(text) = lines.next() {
        line += 1;
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(version) = text.strip_prefix(':') {
            let expected = if manifests.is_empty() { "1" } else { "" };
            if version.trim() != expected {
                return Err(ParseError::Version { line });
            }
            manifests.push(Manifest::default());
            continue;
        }
        let Some(Manifest(pairs)) = manifests.last_mut() else {
            return Err(ParseError::Version { line });
        };
        let (name, value) = text.split_once(':').ok_or(ParseError::Pair { line })?;
        let (name, value) = (name.trim_end(), value.trim_start());
        if !is_name(name) {
            return Err(ParseError::Pair { line });
        }
        if pairs.iter().any(|(n, _)| n == name) {
            return Err(ParseError::Duplicate {
                line,
                name: name.to_owned(),
            });
        }
        let value = if value == "\\" {
            let begin = line;
            let mut value = Vec::new();
            loop {
                line += 1;
                match lines.next() {
                    Some(text) if text.trim() == "\\" => break value.join("\n"),
                    Some(text) => value.push(text.trim_end_matches('\r')),
                    None => {
                        return Err(ParseError::Unterminated {
                            line: begin,
                            name: name.to_owned(),
                        });
                    }
                }
            }
        } else {
            value.to_owned()
        };
        pairs.push((name.to_owned(), value));
    }
    if manifests.is_empty() {
        Err(ParseError::Version { line: line + 1 })
    } else {
        Ok(manifests)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &str = ": 1\nsession:\n";
    const REQUEST: &str = "\
: 1
agent: build-adbeefb8da
toolchain-name: default
toolchain-version: 0.17.0
:
id: linux_debian_13-gcc-1
name: linux_debian_13-gcc
summary: Debian 13, GCC
";

    #[test]
    fn body_is_parsed_and_written_back() {
        let manifests = parse(REQUEST).unwrap();
        assert_eq!(manifests.len(), 2);
        assert_eq!(manifests[0].get("agent"), Some("build-adbeefb8da"));
        assert_eq!(manifests[1].get("summary"), Some("Debian 13, GCC"));
        assert_eq!(manifests[1].get("agent"), None);
        assert_eq!(write(&manifests), REQUEST);
    }

    #[test]
    fn empty_value_is_kept() {
        let manifests = parse(ANSWER).unwrap();
        assert_eq!(manifests[0].get("session"), Some(""));
        assert_eq!(write(&manifests), ANSWER);
    }

    #[test]
    fn malformed_body_is_rejected_with_line_number() {
        let name = "a".to_owned();
        for (body, error) in [
            ("", ParseError::Version { line: 1 }),
            ("# nothing\n", ParseError::Version { line: 2 }),
            ("agent: x\n", ParseError::Version { line: 1 }),
            (": 2\n", ParseError::Version { line: 1 }),
            (":\n", ParseError::Version { line: 1 }),
            (": 1\n: 1\n", ParseError::Version { line: 2 }),
            (": 1\na b\n", ParseError::Pair { line: 2 }),
            (": 1\nA: b\n", ParseError::Pair { line: 2 }),
            (
                ": 1\na: 1\n\na: 2\n",
                ParseError::Duplicate {
                    line: 4,
                    name: name.clone(),
                },
            ),
            (": 1\na:\\\nb\n", ParseError::Unterminated { line: 2, name }),
        ] {
            assert_eq!(parse(body), Err(error), "{body:?}");
        }
    }

    #[test]
    fn value_with_several_lines_is_parsed_and_written_back() {
        let manifests = parse(": 1\nlog:\\\none\n\n: 2\n\\\nb: 2\n").unwrap();
        assert_eq!(manifests[0].get("log"), Some("one\n\n: 2"));
        assert_eq!(manifests[0].get("b"), Some("2"));
        let log = Manifest::default().with_lines("log", "a\n\\\n:\nx: y\n");
        assert_eq!(log.get("log"), Some("a\n\n:\nx: y"));
        assert_eq!(parse(&write(std::slice::from_ref(&log))).unwrap(), [log]);
        let one = Manifest::default().with_lines("log", "a\n");
        assert_eq!(write(&[one]), ": 1\nlog: a\n");
    }

    #[test]
    fn newline_in_value_does_not_start_a_pair() {
        let manifest = Manifest::default().with("summary", "x\n:\nid: y");
        assert_eq!(parse(&write(&[manifest])).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn accepted_body_is_written_back_unchanged(body in "(: 1\n)?\\PC{0,20}(\n[a-z:#\\\\ ]{0,8}){0,6}") {
            if let Ok(manifests) = parse(&body) {
                prop_assert_eq!(parse(&write(&manifests)).unwrap(), manifests);
            }
        }

        #[test]
        fn damaged_body_is_parsed_or_rejected(at in 0..REQUEST.len(), bytes in proptest::collection::vec(any::<u8>(), 0..8), cut in 0..REQUEST.len()) {
            let mut body = REQUEST.as_bytes().to_vec();
            body.splice(at..(at + cut).min(REQUEST.len()), bytes);
            let _ = parse(&String::from_utf8_lossy(&body));
        }
    }
}
