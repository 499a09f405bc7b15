//! Runs the agents of a build host: decides which agents run, with which command
//! line, when they start, and when they start again.
//!
//! ```text
//!  settings --> resources --> unit/command --> unit/dropin     systemd/supervisor
//!      |            |                                           |            ^
//!      v            v                                    events v            | commands
//!  agent/*     requirements/check <-- requirements/host --> lifecycle/instance
//!                                                               |
//!                                 dbus, messages, summary, state_file <---+
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`settings`], [`agent`] | configuration: buildos-agentd.conf(5) |
//! | [`resources`] | share of CPU and RAM of each agent |
//! | [`unit`](mod@unit) | unit of an agent: drop-in, command line, observed phase, exit status |
//! | [`requirements`] | what an agent waits for before its start |
//! | [`lifecycle`] | state machine of an agent, as one table |
//! | [`machine`] | virtual machines of agents: use of resources, suspension |
//! | [`systemd`] | D-Bus calls to systemd, one supervisor task per agent |
//! | [`daemon`] | event loop |
//! | [`ready_delay`] | delay of READY=1 on the first start after boot |
//! | [`state_file`] | state that survives a restart of agentd |
//! | [`dbus`], [`summary`] | `org.build2.buildos.agent1`, `STATUS=` |
//! | [`cleanup`] | removal of taps, rules and namespaces that an agent left |
//! | [`inspection`] | `--check` and `--print` |

use std::process::ExitCode;

pub mod agent;
pub mod cleanup;
pub mod daemon;
pub mod dbus;
pub mod inspection;
pub mod lifecycle;
pub mod machine;
mod messages;
pub mod ready_delay;
pub mod requirements;
pub mod resources;
pub mod settings;
pub mod state_file;
pub mod summary;
pub mod systemd;
pub mod unit;

/// Runs buildos-agentd.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main_with_print(
        env!("CARGO_PKG_VERSION"),
        settings::schema(),
        inspection::inspect,
        daemon::run,
    )
}
