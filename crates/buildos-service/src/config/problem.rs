use std::fmt;

use super::sources::Origin;

/// Something in the configuration that has no effect, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// Line in the file, from 1, where the parser knows it.
    pub line: Option<usize>,
    /// What is wrong, on one line.
    pub message: String,
    /// The known key that is nearest to an unknown one.
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
