//! Names the source of a setting or a problem.

use std::fmt;
use std::path::PathBuf;

/// Source of a setting or a problem.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Origin {
    File(PathBuf),
    KernelCommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::KernelCommandLine => f.write_str("kernel command line"),
        }
    }
}
