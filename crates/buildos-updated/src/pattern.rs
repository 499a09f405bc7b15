//! Defines patterns of names: `*` is any text, `?` any character.

use std::str::FromStr;

use buildos_channel::Name;

/// A pattern of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// A text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a pattern: it has letters, digits, '.', '_', '+', '-', '*' and '?', and at most {} characters",
    Name::LONGEST
)]
pub struct InvalidPattern;

impl Pattern {
    /// Returns the pattern that matches every name.
    #[must_use]
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Returns true if the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        // Place after the last `*`, and the text that this `*` ends before.
        let mut star: Option<(usize, usize)> = None;
        let (mut p, mut n) = (0, 0);
        while let Some(byte) = name.get(n) {
            match pattern.get(p) {
                Some(b'*') => {
                    p += 1;
                    star = Some((p, n));
                }
                Some(expected) if *expected == b'?' || expected == byte => {
                    p += 1;
                    n += 1;
                }
                Some(_) | None => {
                    // The last `*` takes one byte more.
                    let Some((after, end)) = star else {
                        return false;
                    };
                    (p, n) = (after, end + 1);
                    star = Some((after, n));
                }
            }
        }
        pattern.iter().skip(p).all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-*?".contains(&byte);
        let fits = (1..=Name::LONGEST).contains(&text.len());
        match fits && text.bytes().all(valid) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidPattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_name_matches() {
        for (pattern, name, expected) in [
            ("*", "x86_64-linux_debian_13-gcc", true),
            ("x86_64-*", "x86_64-linux_debian_13-gcc", true),
            ("x86_64-*-gcc", "x86_64-linux_debian_13-gcc", true),
            ("x86_64-*-gcc", "x86_64-linux_debian_13-gcc-2", false),
            ("*-gcc", "x86_64-gcc-gcc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("abc", "ab", false),
            ("ab", "abc", false),
            ("ab**", "ab", true),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn text_with_a_part_replaced_by_a_star_matches(
            a in "[a-c]{0,5}", b in "[a-c]{0,5}", c in "[a-c]{0,5}"
        ) {
            let pattern: Pattern = format!("{a}*{c}").parse().unwrap();
            let name = format!("{}{}{}", a, b, c);
            prop_assert!(pattern.matches(&name));
        }
    }
}
