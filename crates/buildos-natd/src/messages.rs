//! Logs natd's journal messages, with the `MESSAGE_ID`s that `journalctl -x` explains.

use buildos_dbus_api::nat1::State;
use buildos_service::text;
use buildos_types::InterfaceName;

use crate::audit::Finding;
use crate::firewall::model::Family;
use crate::firewall::monitor::Writer;
use crate::firewall::policy::TABLE;
use crate::open_port::OpenPort;
use crate::open_ports::Closed;
use crate::shortage::Change;
use crate::status::Status;
use crate::uplink_network::UplinkNetwork;

/// Machines on br1 have network, addresses and names.
const READY: &str = "b1b497c590e84ed09579fbf32aac0198";
/// A requirement is missing.
const WAITING: &str = "8ea2d15d5dbd460dbc67bb6d36191570";
/// A part of NAT does not work.
const DEGRADED: &str = "3ed18fa596c94011b4ded1b963942596";
/// The table was installed.
const INSTALLED: &str = "8583a305106a49859c8cfe4c9c6d98c8";
/// A process changed the table; natd installed it again.
const RESTORED: &str = "e027bb31090a415fa94f4619ad223281";
/// Another table drops packets that machines need.
const FOREIGN_DROP: &str = "0be98759428341bd99b276342a1a834d";
/// No other table drops packets that machines need any more.
const FOREIGN_DROP_GONE: &str = "0eb980ec091c4585bff3e681a281e8c3";
/// natd switched on forwarding for a bridge.
const FORWARDING: &str = "6bb2baa6ab34463da4567d51df5e8580";
/// A bridge setting was changed.
const BRIDGE: &str = "69223262fc7d45f2a8940dd6d0c63076";
/// natd was stopped and switched forwarding off.
const STOPPED: &str = "33fc3cdc6a0a4c9b99ec37e8ad3bb3a5";
/// The table is not the desired one, and the bridges do not forward.
const CLOSED: &str = "29b2fbf214a64e1f98b6f35ad254d52e";
/// A limit of the kernel was changed.
const LIMIT: &str = "cd849401694b4768b3b671776c57519d";

/// A shared resource is nearly used up.
const SHORTAGE: &str = "8fda1a6e3dce499ca8a5c9b2bffe5cde";
/// A shortage ended.
const SHORTAGE_OVER: &str = "8138e073c57647cab7466fd24e2b5f95";

/// A port of a machine was opened on br0.
const PORT_OPENED: &str = "97909415079445d2a91bbd64fe65df73";
/// It was closed.
const PORT_CLOSED: &str = "fcad243fe546407fab514a20eb47ff3f";

pub(crate) fn port_opened(open: &OpenPort) {
    tracing::info!(
        message_id = PORT_OPENED,
        interface = open.link,
        buildos_port = open.outside,
        "opened port {} of br0 for port {} of {} ({})",
        open.outside,
        open.port,
        open.address,
        open.link,
    );
}

pub(crate) fn port_closed(open: &OpenPort, reason: Closed) {
    tracing::info!(
        message_id = PORT_CLOSED,
        interface = open.link,
        buildos_port = open.outside,
        "closed port {} of br0 for port {} of {} ({}): {}",
        open.outside,
        open.port,
        open.address,
        open.link,
        reason.as_str(),
    );
}

pub(crate) fn shortage(change: &Change) {
    let resource = change.resource.as_str();
    match &change.began {
        Some(line) => tracing::warn!(
            message_id = SHORTAGE,
            buildos_resource = resource,
            "short of {resource}: {line}"
        ),
        None => tracing::info!(
            message_id = SHORTAGE_OVER,
            buildos_resource = resource,
            "no longer short of {resource}"
        ),
    }
}

pub(crate) fn status(status: &Status) {
    let reason = &status.reason;
    match status.state {
        State::Active => tracing::info!(message_id = READY, "{reason}"),
        State::Waiting => tracing::info!(message_id = WAITING, "{reason}"),
        State::Degraded => tracing::warn!(message_id = DEGRADED, "{reason}"),
    }
}

pub(crate) fn table_installed(family: Family) {
    let family = family.as_str();
    tracing::info!(message_id = INSTALLED, "installed table {family} {TABLE}");
}

pub(crate) fn table_restored(family: Family, last_writer: Option<&Writer>, difference: &str) {
    let family = family.as_str();
    let writer = Process::from(last_writer);
    tracing::warn!(
        message_id = RESTORED,
        buildos_pid = writer.pid,
        buildos_command = writer.command,
        "installed table {family} {TABLE} again, which {} changed: {difference}",
        writer.name,
    );
}

pub(crate) fn foreign_drop(finding: &Finding, last_writer: Option<&Writer>) {
    let writer = Process::from(last_writer);
    tracing::warn!(
        message_id = FOREIGN_DROP,
        buildos_table = finding.table,
        buildos_chain = finding.chain,
        buildos_pid = writer.pid,
        buildos_command = writer.command,
        "{finding}; {} changed the ruleset last",
        writer.name,
    );
}

pub(crate) fn foreign_drop_gone() {
    tracing::info!(
        message_id = FOREIGN_DROP_GONE,
        "no other table drops traffic of machines any more"
    );
}

pub(crate) fn forwarding(bridge: &InterfaceName) {
    tracing::info!(
        message_id = FORWARDING,
        interface = bridge.as_str(),
        "{bridge} forwards IPv4 from now on"
    );
}

pub(crate) fn closed(network: &UplinkNetwork) {
    tracing::warn!(
        message_id = CLOSED,
        "{} and {} no longer forward, because their tables {TABLE} cannot be installed",
        network.private_bridge,
        network.public_bridge,
    );
}

pub(crate) fn limit_changed(change: &str) {
    tracing::info!(message_id = LIMIT, "{change}");
}

pub(crate) fn bridge_changed(change: &str) {
    tracing::info!(message_id = BRIDGE, "{change}");
}

pub(crate) fn stopped(network: &UplinkNetwork) {
    tracing::info!(
        message_id = STOPPED,
        "stopped: {} and {} no longer forward; the tables {TABLE} stay",
        network.private_bridge,
        network.public_bridge,
    );
}

/// The process that changed the ruleset last, as text and as journal fields.
struct Process {
    name: String,
    pid: u32,
    command: String,
}

impl From<Option<&Writer>> for Process {
    fn from(writer: Option<&Writer>) -> Self {
        let Some(writer) = writer else {
            return Self {
                name: "an unknown process".to_owned(),
                pid: 0,
                command: String::new(),
            };
        };
        let command = text::escape(&writer.command);
        Self {
            name: format!("{command} (process {})", writer.pid),
            pid: writer.pid,
            command,
        }
    }
}
