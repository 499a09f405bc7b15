//! Reads settings from four sources according to one schema.
//!
//! | precedence | source |
//! |---|---|
//! | lowest | `/usr/lib/buildos/NAME.conf.d/*.toml` |
//! | | `/run/buildos/NAME.conf.d/*.toml` |
//! | | `/etc/buildos/NAME.conf.d/*.toml` |
//! | highest | kernel command line, `buildos.NAME.key=value` |
//!
//! The files of a directory are read in order of their names. A file replaces the file of
//! the same name in a directory of lower precedence; an empty file or a link to
//! `/dev/null` masks it.
//!
//! A key that is unknown or has an invalid value becomes a [`Problem`], and the setting
//! keeps the value of the other sources. A typing error must not take a host off the
//! network. [`sources::read`] reads files; [`evaluate`] is pure.

mod evaluate;
mod origin;
mod problem;
mod schema;
pub mod sources;

pub use evaluate::{Loaded, evaluate};
pub use origin::Origin;
pub use problem::Problem;
pub use schema::{Key, Schema};
pub use sources::Fragment;
