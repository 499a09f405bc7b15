//! The kernel command line, `/proc/cmdline`.
//!
//! Words are separated by white space; double quotes keep white space inside a
//! word and are dropped, as the kernel's own parser (`lib/cmdline.c`,
//! `next_arg`) and systemd do it.

/// One parameter: `key=value`, or a bare `key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// What stands before the first `=`.
    pub key: String,
    /// What stands after it, if there is one.
    pub value: Option<String>,
}

/// Splits a command line into parameters, in order.
#[must_use]
pub fn parse(line: &str) -> Vec<Parameter> {
    words(line).into_iter().map(parameter).collect()
}

/// The value of the last parameter of that name.
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
    fn words_values_and_quotes() {
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
    fn the_last_one_counts() {
        let parameters = parse("a=1 a=2 b");
        assert_eq!(last(&parameters, "a"), Some("2"));
        assert_eq!(last(&parameters, "b"), None);
    }
}
