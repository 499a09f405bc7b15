//! Defines what the loop orders of the writer, and what it gets back.

use super::fault::Fault;

/// What the writer does next; each contains those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Nothing.
    Nothing,
    /// Saves changed files.
    Changes,
    /// Saves also what changes all the time.
    All,
    /// Restores the state of the former boot, and saves.
    Restore,
    /// Saves everything for the last time in this boot.
    Last,
}

/// What an order led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was restored, in words.
    pub restored: Vec<String>,
    /// Keys of the SSH server were replaced: it has to read them again.
    pub host_keys_replaced: bool,
    /// What an operator should know, one sentence each.
    pub notes: Vec<String>,
    /// The first failure.
    pub fault: Option<Fault>,
    /// Size of the file system in bytes, or 0.
    pub size: u64,
    /// Free bytes.
    pub free: u64,
}
