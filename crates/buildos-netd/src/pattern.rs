//! Matches link names against patterns, in which `*` stands for any text.

use serde::Deserialize;

/// A pattern such as `eth*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Pattern {
    /// Returns true if the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty(); // The pattern has no star.
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_star_matches_any_text() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth01", true),
            ("eth*", "neth0", false),
            ("*", "", true),
            ("en*s*f0", "enp3s0f0", true),
            ("en*s*f0", "enp3s0f1", false),
            ("a*a", "a", false),
            ("", "x", false),
        ] {
            assert_eq!(
                Pattern(pattern.into()).matches(name),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
