//! Parses the kernel command line, `/proc/cmdline`.
//!
//! White space separates parameters. Double quotes keep white space inside a parameter
//! and are removed, as by the kernel (`lib/cmdline.c`, `next_arg`) and by systemd.

/// One parameter: `key=value`, or a bare `key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Text before the first `=`.
    pub key: String,
    /// Text after it; [`None`] without `=`.
    pub value: Option<String>,
}

/// Splits a command line into parameters, in order.
#[must_use]
pub fn parse(line: &str) -> Vec<Parameter> {
    words(line).into_iter().map(parameter).collect()
}

/// Returns the value of the last parameter with this key.
#[must_use]
pub fn last<'a>(parameters: &'a [Parameter], key: &str) -> Option<&'a str> {
    parameters
        .iter()
        .rev()
        .find(|p| p.key == key)
        .and_then(|p| p.value.as_deref())
}

fn parameter(word: String) -> Parameter {
    match word.split_once('=') {
        Some((key, value)) => Parameter {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        },
        None => Parameter {
            key: word,
            value: None,
        },
    }
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None;
    let mut quoted = false;
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
            word.get_or_insert_with(String::new);
        } else if c.is_ascii_whitespace() && !quoted {
            words.extend(word.take());
        } else {
            word.get_or_insert_with(String::new).push(c);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(key: &str, value: Option<&str>) -> Parameter {
        Parameter {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        }
    }

    #[test]
    fn line_splits_at_white_space_outside_quotes() {
        assert_eq!(
            parse("quiet root=/dev/ram0  a.b=\"c d\" \"e.f=g h\" x==y\n"),
            [
                parameter("quiet", None),
                parameter("root", Some("/dev/ram0")),
                parameter("a.b", Some("c d")),
                parameter("e.f", Some("g h")),
                parameter("x", Some("=y")),
            ]
        );
    }

    #[test]
    fn last_parameter_of_a_key_wins() {
        let parameters = parse("a=1 a=2 b");
        assert_eq!(last(&parameters, "a"), Some("2"));
        assert_eq!(last(&parameters, "b"), None);
    }
}
