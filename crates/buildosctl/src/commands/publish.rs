//! `buildosctl publish`: writes channels and machines for a static HTTP server.
//!
//! ```text
//! TREE/channel/NAME                signed; served
//! TREE/objects/SHA256              served
//! TREE/desk/NAME.toml              the draft: what the next promotion signs
//! TREE/desk/NAME.published.toml    the text that was signed last
//! TREE/desk/machines/NAME/REVISION the files of a revision, see `buildos_channel::contents`
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `place` | paths of a channel |
//! | `tree` | drafts and published channels on the disk |
//! | `objects` | objects on the disk |
//! | `machine` | a revision of a machine: snapshot, contents, streams in pieces |
//! | `agent` | an agent as a system extension |
//! | `os` | the two files of an operating system |
//! | `packages` | packages of a machine |
//! | `promote` | the next publication, and its signature |
//! | `show` | a channel as text, and the changes of a draft |
//!
//! # Limits
//!
//! No command adds a toolchain. An operator writes `[[toolchain]]` into the draft. No host fetches
//! toolchains yet, and units of agents do not use placed agents yet.

mod agent;
mod changes;
mod machine;
pub(crate) mod objects;
mod os;
mod packages;
mod place;
mod promote;
mod show;
mod size;
mod tree;

pub(crate) use agent::Source as AgentSource;
pub(crate) use machine::Source;
pub(crate) use os::Source as OsSource;
pub(crate) use place::{DEFAULT_CHANNEL, Place};
pub(crate) use promote::Options;

/// A command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Makes a tree, or a channel in it.
    Init(Place),
    /// Publishes a revision of a machine into the draft.
    Machine(Place, Source),
    /// Publishes an operating system into the draft.
    Os(Place, OsSource),
    /// Publishes an agent into the draft.
    Agent(Place, AgentSource),
    /// Shows what is published, and what the draft changes.
    Show(Place),
    /// Signs the draft.
    Promote(Place, Options),
}

/// Runs the command and returns its output.
pub(crate) fn publish(request: &Request) -> Result<String, String> {
    match request {
        Request::Init(place) => tree::init(place),
        Request::Machine(place, source) => machine::publish(place, source),
        Request::Os(place, source) => os::publish(place, source),
        Request::Agent(place, source) => agent::publish(place, source),
        Request::Show(place) => show::show(place),
        Request::Promote(place, options) => promote::promote(place, options),
    }
}
