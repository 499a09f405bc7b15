//! Holds the settings of one agent, with the defaults of its kind.

use std::num::{NonZeroU16, NonZeroU32};

use buildos_dbus_api::agent1::Kind;
use serde::Deserialize;

use super::bbot_value::{Directory, Fingerprint, Interactive, Nice, ToolchainNumber, Word};
use super::bridge::Bridge;
use super::controller::Controller;
use super::credential::Credential;
use super::drain::{DrainMethod, Signal};
use super::exec::{Argument, Program, Variable};
use super::user::User;

/// Settings of one agent: tables `[bbot.NAME]` and `[bslave.NAME]` of
/// buildos-agentd.conf(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSettings {
    /// False: the agent is treated as if it were not configured.
    pub enabled: bool,
    /// Program to execute.
    pub program: Program,
    /// Arguments in addition to those that follow from other settings.
    pub arguments: Vec<Argument>,
    /// Environment variables in addition to systemd's.
    pub environment: Vec<Variable>,
    /// Bridge of its machines.
    pub bridge: Bridge,
    /// Requirement of `/dev/kvm`.
    pub kvm: Kvm,
    /// Controllers, in the order of the configuration; bbot only.
    pub controllers: Vec<Controller>,
    /// Toolchain to request tasks for; default: the name of the agent; bbot only.
    pub toolchain_name: Option<Argument>,
    /// Version of that toolchain; bbot only.
    pub toolchain_version: Option<Word>,
    /// Identifier of that toolchain; bbot only.
    pub toolchain_id: Option<Word>,
    /// Number that separates its ports and links from those of other agents; bbot only.
    pub toolchain_num: Option<ToolchainNumber>,
    /// Limit of concurrent tasks; bbot only.
    pub instance_max: Option<NonZeroU32>,
    /// Hardware threads: of each task of a bbot, or of a whole bslave.
    pub cpu: Option<NonZeroU32>,
    /// RAM, MiB: of each task of a bbot, or of a whole bslave.
    pub ram_mib: Option<NonZeroU32>,
    /// RAM of the auxiliary machines of each task, MiB; bbot only.
    pub auxiliary_ram_mib: u32,
    /// Scheduling priority of its machines; bbot only.
    pub nice: Option<Nice>,
    /// Builds with or without a login; bbot only.
    pub interactive: Option<Interactive>,
    /// Trusted package repositories; bbot only.
    pub trust: Vec<Fingerprint>,
    /// Directory of its machines; bbot only.
    pub machines: Option<Directory>,
    /// Directory of its TFTP server; bbot only.
    pub tftp: Option<Directory>,
    /// Port of its TFTP server; bbot only.
    pub tftp_port: Option<NonZeroU16>,
    /// User that it runs as; default: the user of the template unit.
    pub user: Option<User>,
    /// Secrets that systemd passes to it.
    pub credentials: Vec<Credential>,
    /// Secret that signs its answers to controllers; bbot only.
    pub auth_key: Option<Credential>,
    /// Method to drain it.
    pub drain: DrainMethod,
}

/// Requirement of `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kvm {
    /// The agent waits for `/dev/kvm`.
    Required,
    /// The agent starts without it.
    Waived,
}

impl AgentSettings {
    /// Returns the defaults of a kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let (program, bridge, kvm, drain) = match kind {
            // Machines of bbot-agent only open connections: NAT is enough for them.
            Kind::Bbot => (
                Program::bbot_agent(),
                Bridge::Private,
                Kvm::Required,
                DrainMethod::Idle,
            ),
            // Containers of bslave accept connections from outside. They run as long as
            // it does, so its unit never becomes idle.
            Kind::Bslave => (
                Program::bslave(),
                Bridge::Uplink,
                Kvm::Waived,
                DrainMethod::Signal(Signal::TERM),
            ),
        };
        Self {
            enabled: true,
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            bridge,
            kvm,
            controllers: Vec::new(),
            toolchain_name: None,
            toolchain_version: None,
            toolchain_id: None,
            toolchain_num: None,
            instance_max: None,
            cpu: None,
            ram_mib: None,
            auxiliary_ram_mib: 0,
            nice: None,
            interactive: None,
            trust: Vec::new(),
            machines: None,
            tftp: None,
            tftp_port: None,
            user: None,
            credentials: Vec::new(),
            auth_key: None,
            drain,
        }
    }
}
