//! Configuration: one schema, four sources.
//!
//! In rising order of preference: `/usr/lib/buildos/NAME.conf.d/*.toml`,
//! `/run/buildos/NAME.conf.d/*.toml`, `/etc/buildos/NAME.conf.d/*.toml`, and
//! the kernel command line as `buildos.NAME.key=value`. Within a directory
//! files are read in the order of their names. A file hides the file of the
//! same name in a directory of lower preference; a link to `/dev/null` or an
//! empty file thus masks it.
//!
//! Every key is set by itself. One that is unknown or has a bad value becomes
//! a [`Problem`] and leaves the value that it would otherwise have: a typing
//! error must not take a host off the network. Reading is split in two:
//! [`sources::read`] looks at the file system, [`evaluate`] is pure.

mod evaluate;
mod problem;
mod schema;
pub mod sources;

pub use evaluate::{Loaded, evaluate};
pub use problem::Problem;
pub use schema::{Key, Schema};
pub use sources::{Fragment, Origin};
