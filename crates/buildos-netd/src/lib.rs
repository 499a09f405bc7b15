//! buildos-netd: finds the uplink of a build host and creates its two bridges.
//!
//! ```text
//!   kernel --> observed --> uplink --> desired --> plan --> kernel
//!                 |           |
//!                 +-----+-----+
//!                       v
//!                    status --> dbus, exports, state_file, STATUS=
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`daemon`] | event loop, published files |
//! | [`reconcile`] | rounds of observe, plan, apply; refusals and retries |
//! | [`uplink`] | election of the NIC that becomes the port of br0, by DHCP (`buildos-dhcp`) |
//! | [`desired`], [`observed`], [`plan`] | the two states and their difference |
//! | [`kernel`] | rtnetlink, sysctl; a fake kernel |
//! | [`lldp`] | which switch and port each NIC is connected to |
//! | [`sockets`] | packet and UDP sockets of the DHCP clients |
//! | [`status`] | the state that D-Bus ([`dbus`]), files ([`exports`], [`state_file`]) and `STATUS=` show |
//! | [`static_address`] | address of br0 without a DHCP server |
//! | [`runtime_files`] | writes those files, and retries |
//! | [`change_budget`] | limit of readings of the kernel |
//! | [`history`] | decisions of the election |
//! | [`other_manager`] | other programs that configure the network |

use std::process::ExitCode;

pub mod change_budget;
pub mod clock;
pub mod daemon;
pub mod dbus;
pub mod desired;
pub mod exports;
pub mod history;
pub mod hostname;
pub mod kernel;
pub mod lldp;
pub mod messages;
pub mod observed;
mod original_mtus;
pub mod other_manager;
pub mod pattern;
pub mod plan;
pub mod private_network;
pub mod reconcile;
pub mod runtime_files;
pub mod settings;
pub mod sockets;
pub mod state_file;
pub mod static_address;
pub mod status;
pub mod uplink;
pub mod wait_online;

/// Runs the daemon.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), settings::schema(), daemon::run)
}
