//! What may be configured (buildos-agentd.conf(5)): tables `[bbot.NAME]` and
//! `[bslave.NAME]`, one per agent.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use buildos_dbus_api::agent1::Kind;
use buildos_service::config::Schema;

use crate::agent::bbot_option::{OptionName, OptionNames, Setting};
use crate::agent::controller::Controller;
use crate::agent::credential::Credential;
use crate::agent::drain::{Budgets, Way};
use crate::agent::id::{Id, Name};
use crate::agent::settings::{self as kind, Bridge, Kvm};
use crate::agent::user::User;
use crate::unit::command::{Argument, Program, Variable};

/// Settings of buildos-agentd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Every agent that some key names.
    pub agents: BTreeMap<Id, AgentSettings>,
    /// Names of bbot-agent's options.
    pub options: OptionNames,
    /// How long tasks may take to end.
    pub budgets: Budgets,
    /// How long a synchronised clock is waited for, once there is a network.
    pub clock_deadline: Duration,
    /// RAM that agents leave to the operating system, MiB, when it is configured.
    pub memory_reserve: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            agents: BTreeMap::new(),
            options: OptionNames::default(),
            budgets: Budgets::default(),
            // systemd-timesyncd gives a server 5 s and tries four at once.
            clock_deadline: Duration::from_secs(30),
            memory_reserve: None,
        }
    }
}

/// Settings of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSettings {
    /// False: as if it were not configured.
    pub enabled: bool,
    /// What is executed.
    pub program: Program,
    /// Arguments beyond those that follow from other settings.
    pub arguments: Vec<Argument>,
    /// Environment variables.
    pub environment: Vec<Variable>,
    /// Bridge of its machines.
    pub bridge: Bridge,
    /// Whether it waits for `/dev/kvm`.
    pub kvm: Kvm,
    /// Controllers, in the order of the configuration; bbot only.
    pub controllers: Vec<Controller>,
    /// Toolchain that it serves, when not the one of its own name; bbot only.
    pub toolchain_name: Option<Argument>,
    /// How many tasks may run at the same time; bbot only.
    pub instance_max: Option<NonZeroU32>,
    /// Hardware threads of each task of a bbot; what a bslave may take of them.
    pub cpu: Option<NonZeroU32>,
    /// RAM of each task of a bbot; what a bslave may take, MiB.
    pub ram_mib: Option<NonZeroU32>,
    /// Whom it runs as, when not as its template says.
    pub user: Option<User>,
    /// Secrets that it gets.
    pub credentials: Vec<Credential>,
    /// The secret that signs its answers to controllers; bbot only.
    pub auth_key: Option<Credential>,
    /// How it is drained.
    pub drain: Way,
}

impl AgentSettings {
    /// What an agent of that kind has when nothing is configured but its name.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let defaults = kind::defaults(kind);
        Self {
            enabled: true,
            program: defaults.program,
            arguments: Vec::new(),
            environment: Vec::new(),
            bridge: defaults.bridge,
            kvm: defaults.kvm,
            controllers: Vec::new(),
            toolchain_name: None,
            instance_max: None,
            cpu: None,
            ram_mib: None,
            user: None,
            credentials: Vec::new(),
            auth_key: None,
            drain: defaults.drain,
        }
    }
}

impl Settings {
    fn agent(&mut self, kind: Kind, name: Name) -> &mut AgentSettings {
        self.agents
            .entry(Id { kind, name })
            .or_insert_with(|| AgentSettings::new(kind))
    }
}

/// Adds keys of one kind: the setter gets the settings of the agent that the
/// key names, and the value.
macro_rules! agent_keys {
    ($schema:expr, $word:literal, $kind:expr, { $($key:literal: $doc:literal, $set:expr;)* }) => {
        $schema$(.named(
            concat!($word, ".*.", $key),
            $doc,
            |settings: &mut Settings, name: Name, value| {
                let set: fn(&mut AgentSettings, _) = $set;
                set(settings.agent($kind, name), value);
            },
        ))*
    };
}

/// Adds what both kinds have: the table itself, which makes an agent, and keys.
macro_rules! common_keys {
    ($schema:expr, $word:literal, $kind:expr) => {{
        let schema = $schema.table(
            concat!($word, ".*"),
            |settings: &mut Settings, name: Name| {
                settings.agent($kind, name);
            },
        );
        agent_keys!(schema, $word, $kind, {
            "enabled": "false: as if the agent were not configured.", |agent, enabled| agent.enabled = enabled;
            "program": "Absolute path of the program.", |agent, program| agent.program = program;
            "arguments": "List of further arguments.", |agent, arguments| agent.arguments = arguments;
            "environment": "List of variables, NAME=VALUE.", |agent, variables| agent.environment = variables;
            "bridge": "Bridge of its machines; on br1 it waits for NAT.", |agent, bridge| agent.bridge = bridge;
            "kvm": "\"required\": wait for /dev/kvm; \"waived\": start without.", |agent, kvm| agent.kvm = kvm;
            "user": "User that it runs as.", |agent, user| agent.user = Some(user);
            "credentials": "List of secrets, NAME or NAME:/PATH (LoadCredential=).", |agent, list| agent.credentials = list;
            "drain": "\"idle\": wait until no task runs; SIGNAL: send it, wait for the end.", |agent, way| agent.drain = way;
        })
    }};
}

/// The keys.
#[must_use]
pub fn schema() -> Schema<Settings> {
    let schema = common_keys!(Schema::new("agentd"), "bbot", Kind::Bbot);
    let schema = agent_keys!(schema, "bbot", Kind::Bbot, {
        "controllers": "List of controllers, [PRIORITY=]URL; at least one.", |agent, urls| agent.controllers = urls;
        "toolchain_name": "Toolchain to ask tasks for, if not NAME.", |agent, name| agent.toolchain_name = Some(name);
        "instance_max": "Tasks that may run at the same time.", |agent, n| agent.instance_max = Some(n);
        "cpu": "Hardware threads of a task.", |agent, n| agent.cpu = Some(n);
        "ram_mib": "MiB of RAM of a task.", |agent, n| agent.ram_mib = Some(n);
        "auth_key": "Secret that signs answers to controllers, NAME or NAME:/PATH.", |agent, key| agent.auth_key = Some(key);
    });
    let schema = common_keys!(schema, "bslave", Kind::Bslave);
    let schema = agent_keys!(schema, "bslave", Kind::Bslave, {
        "cpu": "Hardware threads that it may take.", |agent, n| agent.cpu = Some(n);
        "ram_mib": "MiB of RAM that it may take.", |agent, n| agent.ram_mib = Some(n);
    });
    schema
        .named(
            "bbot_option.*",
            "Another name of a bbot-agent option (cpu = \"--threads\"), or \"\" if it has none.",
            |settings: &mut Settings, setting: Setting, name: OptionName| {
                settings.options.set(setting, name);
            },
        )
        .key(
            "drain_budget_s",
            "Seconds that tasks have to end when agents are drained.",
            |s: &mut Settings, seconds: u32| s.budgets.drain = Duration::from_secs(seconds.into()),
        )
        .key(
            "shutdown_budget_s",
            "Seconds that tasks have to end when the host goes down.",
            |s: &mut Settings, seconds: u32| {
                s.budgets.shutdown = Duration::from_secs(seconds.into());
            },
        )
        .key(
            "clock_deadline_s",
            "Seconds that agents wait for a synchronised clock once there is a network.",
            |s: &mut Settings, seconds: u32| s.clock_deadline = Duration::from_secs(seconds.into()),
        )
        .key(
            "memory_reserve_mib",
            "MiB of RAM that agents leave to the operating system.",
            |s: &mut Settings, mebibytes: u32| s.memory_reserve = Some(mebibytes.into()),
        )
}
