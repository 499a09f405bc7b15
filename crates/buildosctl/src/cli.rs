//! Defines the command line as a table of commands and flags, and derives from it:
//!
//! ```text
//! commands ─┬─> args      parses the arguments
//!           ├─> synopsis ─> help, buildosctl(1)
//!           └─> complete  completions of bash and zsh
//! ```

pub(crate) mod args;
pub(crate) mod commands;
#[cfg(test)]
mod complete;
pub(crate) mod help;
mod synopsis;

#[cfg(test)]
mod tests;
