//! Describes a part of the configuration that has no effect.

use std::fmt;

use super::origin::Origin;

/// A part of the configuration without effect, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    #[allow(missing_docs)]
    pub origin: Origin,
    /// Line in the file, from 1; [`None`] if the parser does not know it.
    pub line: Option<usize>,
    /// Reason, on one line, escaped.
    pub message: String,
    /// Valid key that is most similar to an unknown one.
    pub nearest: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; the nearest valid key is {nearest:?}")?;
        }
        Ok(())
    }
}
