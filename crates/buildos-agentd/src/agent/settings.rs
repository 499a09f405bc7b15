//! Holds the settings of one agent, with the defaults of its kind.

use std::num::NonZeroU32;

use buildos_dbus_api::agent1::Kind;
use serde::Deserialize;

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
    /// Limit of concurrent tasks; bbot only.
    pub instance_max: Option<NonZeroU32>,
    /// Hardware threads: of each task of a bbot, or of a whole bslave.
    pub cpu: Option<NonZeroU32>,
    /// RAM, MiB: of each task of a bbot, or of a whole bslave.
    pub ram_mib: Option<NonZeroU32>,
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
            instance_max: None,
            cpu: None,
            ram_mib: None,
            user: None,
            credentials: Vec::new(),
            auth_key: None,
            drain,
        }
    }
}
