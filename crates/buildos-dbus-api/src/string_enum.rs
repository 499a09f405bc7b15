//! Closed sets of words that travel as D-Bus strings.

/// A peer sent a word that is not in the set: it is newer or older than we are.
#[derive(Debug, thiserror::Error)]
#[error("{word:?} is no {set}")]
pub struct UnknownString {
    /// Name of the set, for example `network1 state`.
    pub set: &'static str,
    /// What was received.
    pub word: String,
}

/// Defines an enum whose variants travel as fixed strings.
macro_rules! string_enum {
    ($(#[$meta:meta])* $name:ident ($set:literal) { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every member of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the bus, in JSON and in messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::UnknownString;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|w| w.as_str() == word).ok_or_else(|| {
                    $crate::UnknownString { set: $set, word: word.to_owned() }
                })
            }
        }
    };
}
pub(crate) use string_enum;
