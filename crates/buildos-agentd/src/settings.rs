//! Defines the configuration keys and defaults (buildos-agentd.conf(5)).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use buildos_dbus_api::agent1::Kind;
use buildos_service::config::Schema;
use serde::Deserialize;

use crate::agent::bbot_option::{OptionName, OptionNames, Setting};
use crate::agent::controller::Controllers;
use crate::agent::drain::{Budgets, Suspended};
use crate::agent::exec::Program;
use crate::agent::id::{Id, Name};
use crate::agent::settings::AgentSettings;

/// Settings of buildos-agentd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Agents that at least one key names, including disabled ones.
    pub agents: BTreeMap<Id, AgentSettings>,
    /// Options of bbot-agent.
    pub options: OptionNames,
    /// Time that tasks have to end in a drain.
    pub budgets: Budgets,
    /// What a drain does with suspended machines.
    pub suspended: Suspended,
    /// Time without CPU time after which a machine is suspended.
    pub suspended_after: Duration,
    /// Time that agents wait for a synchronised clock once the host is online.
    pub clock_deadline: Duration,
    /// Programs that each bbot calls.
    pub bbot_tools: Vec<Program>,
    /// Programs that each bslave calls.
    pub bslave_tools: Vec<Program>,
    /// RAM that agents leave to the operating system, MiB; default: see
    /// [`Hardware::reserve`](crate::resources::hardware::Hardware::reserve).
    pub memory_reserve: Option<u64>,
    /// Share of each disk of builds that must be free, percent. Agents are drained otherwise.
    pub disk_reserve: u8,
}

/// A percentage that leaves room for builds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u8")]
struct Reserve(u8);

impl TryFrom<u8> for Reserve {
    type Error = String;

    fn try_from(percent: u8) -> Result<Self, String> {
        const MOST: u8 = 90;
        match percent {
            0..=MOST => Ok(Self(percent)),
            _ => Err(format!("{percent} is not from 0 to {MOST}")),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            agents: BTreeMap::new(),
            options: OptionNames::default(),
            budgets: Budgets::default(),
            suspended: Suspended::Leave,
            suspended_after: Duration::from_secs(60),
            // systemd-timesyncd waits 5 s for a server, and tries four of them.
            clock_deadline: Duration::from_secs(30),
            bbot_tools: Program::bbot_tools(),
            bslave_tools: Vec::new(),
            memory_reserve: None,
            disk_reserve: 5,
        }
    }
}

impl Settings {
    /// Returns the programs that agents of a kind call.
    #[must_use]
    pub fn tools(&self, kind: Kind) -> &[Program] {
        match kind {
            Kind::Bbot => &self.bbot_tools,
            Kind::Bslave => &self.bslave_tools,
        }
    }

    fn agent(&mut self, kind: Kind, name: Name) -> &mut AgentSettings {
        self.agents
            .entry(Id { kind, name })
            .or_insert_with(|| AgentSettings::new(kind))
    }
}

/// Adds keys of one kind. The setter gets the settings of the agent that the key names,
/// and the value.
macro_rules! agent_keys {
    ($schema:expr, $table:literal, $kind:expr, { $($key:literal: $doc:literal, $set:expr;)* }) => {
        $schema$(.named(
            concat!($table, ".*.", $key),
            $doc,
            |settings: &mut Settings, name: Name, value| {
                let set: fn(&mut AgentSettings, _) = $set;
                set(settings.agent($kind, name), value);
            },
        ))*
    };
}

/// Adds the table, which creates an agent, and the keys that both kinds have.
macro_rules! common_keys {
    ($schema:expr, $table:literal, $kind:expr) => {{
        let schema = $schema.table(
            concat!($table, ".*"),
            |settings: &mut Settings, name: Name| {
                settings.agent($kind, name);
            },
        );
        agent_keys!(schema, $table, $kind, {
            "enabled": "false: treat the agent as if it were not configured.", |agent, enabled| agent.enabled = enabled;
            "program": "Absolute path of the program.", |agent, program| agent.program = program;
            "arguments": "List of further arguments.", |agent, arguments| agent.arguments = arguments;
            "environment": "List of variables, NAME=VALUE.", |agent, variables| agent.environment = variables;
            "bridge": "Bridge of its machines; with br1 it waits for NAT.", |agent, bridge| agent.bridge = bridge;
            "kvm": "\"required\": wait for /dev/kvm; \"waived\": start without.", |agent, kvm| agent.kvm = kvm;
            "user": "User that it runs as.", |agent, user| agent.user = Some(user);
            "credentials": "List of secrets, [encrypted:]NAME[:/PATH] (LoadCredential=).", |agent, list| agent.credentials = list;
            "drain": "\"idle\": wait until no task runs; SIGNAL: send it and wait for the end.", |agent, method| agent.drain = method;
        })
    }};
}

/// Returns the schema of all keys.
#[must_use]
pub fn schema() -> Schema<Settings> {
    let schema = common_keys!(Schema::new("agentd"), "bbot", Kind::Bbot);
    let schema = agent_keys!(schema, "bbot", Kind::Bbot, {
        "controllers": "List of controllers, [PRIORITY=]URL; at least one.", |agent, Controllers(urls)| agent.controllers = urls;
        "toolchain_name": "Toolchain to request tasks for, if not NAME.", |agent, name| agent.toolchain_name = Some(name);
        "toolchain_version": "Version of this toolchain.", |agent, version| agent.toolchain_version = Some(version);
        "toolchain_id": "Identifier of this toolchain.", |agent, id| agent.toolchain_id = Some(id);
        "toolchain_num": "Number of this toolchain on the host, 1 to 9.", |agent, number| agent.toolchain_num = Some(number);
        "instance_max": "Limit of concurrent tasks.", |agent, n| agent.instance_max = Some(n);
        "cpu": "Hardware threads of a task.", |agent, n| agent.cpu = Some(n);
        "ram_mib": "MiB of RAM of a task.", |agent, n| agent.ram_mib = Some(n);
        "auxiliary_ram_mib": "MiB of RAM of the auxiliary machines of a task; 0: none.", |agent, mib| agent.auxiliary_ram_mib = mib;
        "nice": "Scheduling priority of its machines, -20 to 19.", |agent, nice| agent.nice = Some(nice);
        "interactive": "Builds that it accepts: without a login (\"false\"), with one (\"true\"), \"both\".", |agent, mode| agent.interactive = Some(mode);
        "trust": "List of fingerprints of trusted package repositories.", |agent, list| agent.trust = list;
        "machines": "Directory of its machines.", |agent, directory| agent.machines = Some(directory);
        "tftp": "Directory of its TFTP server.", |agent, directory| agent.tftp = Some(directory);
        "tftp_port": "Port of its TFTP server.", |agent, port| agent.tftp_port = Some(port);
        "auth_key": "Secret that signs answers to controllers, [encrypted:]NAME[:/PATH].", |agent, key| agent.auth_key = Some(key);
    });
    let schema = common_keys!(schema, "bslave", Kind::Bslave);
    let schema = agent_keys!(schema, "bslave", Kind::Bslave, {
        "cpu": "Limit of hardware threads.", |agent, n| agent.cpu = Some(n);
        "ram_mib": "Limit of RAM, MiB.", |agent, n| agent.ram_mib = Some(n);
    });
    schema
        .named(
            "bbot_option.*",
            "Name of a bbot-agent option (cpu = \"--threads\"), or \"\" if it has none.",
            |settings: &mut Settings, setting: Setting, name: OptionName| {
                settings.options.set(setting, name);
            },
        )
        .key(
            "drain_budget_s",
            "Seconds that tasks have to end in a drain.",
            |s: &mut Settings, seconds: u32| s.budgets.drain = Duration::from_secs(seconds.into()),
        )
        .key(
            "shutdown_budget_s",
            "Seconds that tasks have to end when the host shuts down.",
            |s: &mut Settings, seconds: u32| {
                s.budgets.shutdown = Duration::from_secs(seconds.into());
            },
        )
        .key(
            "suspended",
            "\"wait\": a drain waits for suspended machines; \"leave\": it does not.",
            |s: &mut Settings, suspended| s.suspended = suspended,
        )
        .key(
            "suspended_after_s",
            "Seconds without CPU time after which a machine is suspended.",
            |s: &mut Settings, seconds: NonZeroU32| {
                s.suspended_after = Duration::from_secs(seconds.get().into());
            },
        )
        .key(
            "clock_deadline_s",
            "Seconds that agents wait for a synchronised clock once the host is online.",
            |s: &mut Settings, seconds: u32| s.clock_deadline = Duration::from_secs(seconds.into()),
        )
        .key(
            "bbot_tools",
            "List of programs that bbots call, for which they wait.",
            |s: &mut Settings, tools| s.bbot_tools = tools,
        )
        .key(
            "bslave_tools",
            "List of programs that bslaves call, for which they wait.",
            |s: &mut Settings, tools| s.bslave_tools = tools,
        )
        .key(
            "memory_reserve_mib",
            "MiB of RAM that agents leave to the operating system.",
            |s: &mut Settings, mib: u32| s.memory_reserve = Some(mib.into()),
        )
        .key(
            "disk_reserve_percent",
            "Percentage of a disk below which agents are drained; 0: never.",
            |s: &mut Settings, Reserve(percent)| s.disk_reserve = percent,
        )
}
