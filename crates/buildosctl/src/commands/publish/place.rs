//! Names the files of a channel in a tree.

use std::path::PathBuf;

use buildos_channel::Name;

/// The channel of commands that name none.
pub(crate) const DEFAULT_CHANNEL: &str = "stable";

/// A channel in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    #[allow(missing_docs)]
    pub(crate) tree: PathBuf,
    #[allow(missing_docs)]
    pub(crate) channel: Name,
}

impl Place {
    /// Returns the path of the signed file.
    pub(super) fn signed(&self) -> PathBuf {
        self.tree.join("channel").join(self.channel.as_str())
    }

    /// Returns the path of the draft.
    pub(super) fn draft(&self) -> PathBuf {
        self.tree
            .join("desk")
            .join(format!("{}.toml", self.channel))
    }

    /// Returns the path of the text that was signed last.
    pub(super) fn published(&self) -> PathBuf {
        let name = format!("{}.published.toml", self.channel);
        self.tree.join("desk").join(name)
    }
}
