//! Defines enums that are strings on D-Bus.

/// The text is not a value of the enum. The peer might have a different version.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a valid {set}")]
pub struct UnknownString {
    /// Name of the enum, for example `network1 state`.
    pub set: &'static str,
    #[allow(missing_docs)]
    pub text: String,
}

/// Defines an enum whose variants travel as fixed strings.
macro_rules! string_enum {
    ($(#[$meta:meta])* $name:ident ($set:literal) { $($(#[$vmeta:meta])* $variant:ident = $string:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $string)] $variant),+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the string on the bus, in JSON and in messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $string),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::UnknownString;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|variant| variant.as_str() == text).ok_or_else(|| {
                    $crate::UnknownString { set: $set, text: text.to_owned() }
                })
            }
        }
    };
}
pub(crate) use string_enum;
