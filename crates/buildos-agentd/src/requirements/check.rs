//! Checks the requirements of an agent before its start.
//!
//! A requirement that fails later does not end an agent. A build survives a short loss of
//! carrier, and the agent itself retries when a controller does not answer. The exception is
//! room on disks: builds would fail, so the agent is drained.

use std::fmt;

use buildos_dbus_api::agent1::Need;

use super::clock::Clock;
use super::host::{Host, Presence};
use crate::agent::bridge::Bridge;
use crate::agent::credential::Credential;
use crate::agent::exec::Program;
use crate::agent::settings::{AgentSettings, Kvm};
use crate::resources::Resources;
use crate::unit::command::{Command, CommandError};

/// Requirements of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Reason why its settings yield no command; [`None`] if they yield one.
    pub configuration: Option<CommandError>,
    /// Program that must be executable.
    pub program: Program,
    /// Programs that it calls.
    pub tools: Vec<Program>,
    /// Credentials that must exist.
    pub credentials: Vec<Credential>,
    /// True if it requires `/dev/kvm`.
    pub kvm: bool,
    /// RAM of its tasks, MiB.
    pub memory: u64,
    /// True if its machines are on br1 and so need NAT.
    pub private_network: bool,
}

impl Requirements {
    /// Derives the requirements from the settings and the resulting command.
    #[must_use]
    pub fn new(
        settings: &AgentSettings,
        tools: &[Program],
        command: &Result<Command, CommandError>,
        resources: Resources,
    ) -> Self {
        let credentials = command.as_ref().map(|command| command.credentials.clone());
        Self {
            configuration: command.as_ref().err().cloned(),
            program: settings.program.clone(),
            tools: tools.to_vec(),
            credentials: credentials.unwrap_or_default(),
            kvm: settings.kvm == Kvm::Required,
            memory: resources.ram_total(),
            private_network: settings.bridge == Bridge::Private,
        }
    }
}

/// Requirement that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The requirement.
    pub need: Need,
    /// The reason, for operators.
    pub reason: String,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Returns the requirements that are not met.
#[must_use]
pub fn unmet(agent: &Requirements, host: &Host) -> Vec<Unmet> {
    Need::ALL
        .iter()
        .filter_map(|&need| {
            let reason = missing(need, agent, host)?;
            Some(Unmet { need, reason })
        })
        .collect()
}

/// Returns why a requirement is not met; [`None`] if it is met or the agent does not have
/// it.
fn missing(need: Need, agent: &Requirements, host: &Host) -> Option<String> {
    match need {
        Need::Configuration => agent.configuration.as_ref().map(ToString::to_string),
        Need::Program => match host.programs.get(&agent.program) {
            Some(Presence::Executable) => None,
            Some(Presence::NotExecutable) => {
                Some(format!("program {} is not executable", agent.program))
            }
            Some(Presence::Missing) | None => {
                Some(format!("program {} is not installed", agent.program))
            }
        },
        Need::Tools => missing_tools(&agent.tools, host),
        Need::Credentials => {
            let absent = |c: &&Credential| !host.credentials.get(c).is_some_and(|there| *there);
            let names: Vec<_> = agent
                .credentials
                .iter()
                .filter(absent)
                .map(ToString::to_string)
                .collect();
            (!names.is_empty()).then(|| format!("credential {} is missing", names.join(", ")))
        }
        Need::Kvm => (agent.kvm && !host.kvm).then(|| {
            "KVM is missing (switch on virtualization in the firmware, or set kvm = \"waived\")"
                .to_owned()
        }),
        Need::Memory => (agent.memory > host.memory).then(|| {
            format!(
                "RAM: its tasks need {} MiB, the host has {} MiB for agents",
                agent.memory, host.memory
            )
        }),
        Need::Disk => host.disks.reason(),
        Need::Network => match &host.network {
            None => Some("buildos-netd is not running".to_owned()),
            Some(network) => (!network.online).then(|| format!("network: {}", network.reason)),
        },
        Need::Hostname => match &host.naming {
            None => Some("buildos-hostnamed is not running".to_owned()),
            Some(naming) => (!naming.is_done()).then(|| format!("host name: {}", naming.reason)),
        },
        Need::PrivateNetwork if !agent.private_network => None,
        Need::PrivateNetwork => match &host.nat {
            None => Some("buildos-natd is not running".to_owned()),
            Some(nat) => (!nat.ready).then(|| format!("NAT: {}", nat.reason)),
        },
        Need::Clock => {
            (host.clock == Clock::Awaited).then(|| "the clock is not synchronised yet".to_owned())
        }
    }
}

fn missing_tools(tools: &[Program], host: &Host) -> Option<String> {
    let missing = |tool: &&Program| host.programs.get(tool) != Some(&Presence::Executable);
    let missing: Vec<_> = tools
        .iter()
        .filter(missing)
        .map(ToString::to_string)
        .collect();
    match missing.as_slice() {
        [] => None,
        [tool] => Some(format!("{tool}, which it calls, is not installed")),
        tools => Some(format!(
            "{}, which it calls, are not installed",
            tools.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Room, Shortage};
    use super::*;
    use crate::agent::bbot_option::OptionNames;
    use crate::agent::id::Id;
    use buildos_dbus_api::agent1::Kind;
    use buildos_dbus_api::hostname1::Naming;
    use buildos_dbus_api::nat1::Nat;
    use buildos_dbus_api::network1::Network;
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;

    fn requirements(id: &str, change: impl FnOnce(&mut AgentSettings)) -> Requirements {
        let id: Id = id.parse().unwrap();
        let mut settings = AgentSettings::new(id.kind);
        settings.controllers = vec!["https://ci.example.org".parse().unwrap()];
        change(&mut settings);
        let resources = Resources {
            cpu: NonZeroU32::MIN,
            ram_mib: settings.ram_mib.map_or(0, |ram| ram.get().into()),
            auxiliary_mib: 0,
            number: None,
            tasks: NonZeroU32::MIN,
        };
        let command = Command::new(&id, &settings, &OptionNames::default(), resources);
        let tools = ["/usr/bin/curl", "/usr/bin/lz4"].map(|path| path.parse().unwrap());
        let tools = if id.kind == Kind::Bbot {
            &tools[..]
        } else {
            &[]
        };
        Requirements::new(&settings, tools, &command, resources)
    }

    fn complete_host() -> Host {
        let programs = [
            "/usr/bin/bbot-agent",
            "/usr/bin/bslave",
            "/usr/bin/curl",
            "/usr/bin/lz4",
        ]
        .map(|path| (path.parse().unwrap(), Presence::Executable));
        Host {
            network: Some(Network {
                online: true,
                ..Network::default()
            }),
            naming: Some(Naming {
                hostname: "build-adbeefb8da".into(),
                source: "mac".into(),
                ..Naming::default()
            }),
            nat: Some(Nat {
                ready: true,
                ..Nat::default()
            }),
            kvm: true,
            memory: 4096,
            disks: Shortage::default(),
            clock: Clock::Synchronised,
            programs: programs.into(),
            credentials: BTreeMap::from([("auth-key".parse().unwrap(), true)]),
        }
    }

    fn missing(agent: &Requirements, host: &Host) -> Vec<String> {
        unmet(agent, host).iter().map(ToString::to_string).collect()
    }

    /// Gives an agent every requirement.
    fn demanding(settings: &mut AgentSettings) {
        settings.ram_mib = NonZeroU32::new(4096);
        settings.auth_key = Some("auth-key".parse().unwrap());
    }

    #[test]
    fn no_requirement_is_unmet_on_complete_host() {
        assert_eq!(
            unmet(&requirements("bbot@a", demanding), &complete_host()),
            []
        );
        assert_eq!(
            unmet(&requirements("bslave@a", |_| {}), &complete_host()),
            []
        );
    }

    #[test]
    fn each_requirement_is_reported_alone() {
        let without = |change: fn(&mut Host)| {
            let mut host = complete_host();
            change(&mut host);
            host
        };
        let bbot: Program = "/usr/bin/bbot-agent".parse().unwrap();
        for (need, host, reason) in [
            (
                Need::Program,
                without(|h| {
                    h.programs.remove(&"/usr/bin/bbot-agent".parse().unwrap());
                }),
                "program /usr/bin/bbot-agent is not installed",
            ),
            (
                Need::Program,
                {
                    let mut host = complete_host();
                    host.programs.insert(bbot, Presence::NotExecutable);
                    host
                },
                "program /usr/bin/bbot-agent is not executable",
            ),
            (
                Need::Tools,
                without(|h| {
                    h.programs.remove(&"/usr/bin/lz4".parse().unwrap());
                }),
                "/usr/bin/lz4, which it calls, is not installed",
            ),
            (
                Need::Kvm,
                without(|h| h.kvm = false),
                "KVM is missing (switch on virtualization in the firmware, or set kvm = \"waived\")",
            ),
            (
                Need::Credentials,
                without(|h| {
                    h.credentials.insert("auth-key".parse().unwrap(), false);
                }),
                "credential auth-key is missing",
            ),
            (
                Need::Disk,
                without(|h| {
                    let full = Room {
                        path: "/build".into(),
                        free: 1 << 30,
                        size: 100 << 30,
                    };
                    h.disks.update(vec![full], 5);
                }),
                "disk: /build has 1.00 GiB of 100 GiB free",
            ),
            (
                Need::Memory,
                without(|h| h.memory = 2048),
                "RAM: its tasks need 4096 MiB, the host has 2048 MiB for agents",
            ),
            (
                Need::Clock,
                without(|h| h.clock = Clock::Awaited),
                "the clock is not synchronised yet",
            ),
            (
                Need::Network,
                without(|h| h.network = None),
                "buildos-netd is not running",
            ),
            (
                Need::Network,
                without(|h| {
                    h.network = Some(Network {
                        reason: "no carrier on eth0".into(),
                        ..Network::default()
                    });
                }),
                "network: no carrier on eth0",
            ),
            (
                Need::Hostname,
                without(|h| h.naming = None),
                "buildos-hostnamed is not running",
            ),
            (
                Need::Hostname,
                without(|h| {
                    h.naming = Some(Naming {
                        hostname: "localhost".into(),
                        source: "none".into(),
                        reason: "no uplink yet".into(),
                    });
                }),
                "host name: no uplink yet",
            ),
            (
                Need::PrivateNetwork,
                without(|h| h.nat = None),
                "buildos-natd is not running",
            ),
            (
                Need::PrivateNetwork,
                without(|h| {
                    h.nat = Some(Nat {
                        reason: "dnsmasq does not run".into(),
                        ..Nat::default()
                    });
                }),
                "NAT: dnsmasq does not run",
            ),
        ] {
            let unmet = unmet(&requirements("bbot@a", demanding), &host);
            let reason = reason.to_owned();
            assert_eq!(unmet, [Unmet { need, reason }]);
        }
        let agent = requirements("bbot@a", |s| s.controllers.clear());
        assert_eq!(
            unmet(&agent, &complete_host()),
            [Unmet {
                need: Need::Configuration,
                reason: "no controller is configured (controllers of bbot@a)".into()
            }]
        );
    }

    #[test]
    fn missing_resource_is_ignored_unless_required() {
        let empty_host = Host {
            clock: Clock::GivenUp,
            ..Host::default()
        };
        assert_eq!(
            missing(&requirements("bslave@a", |_| {}), &empty_host),
            [
                "program /usr/bin/bslave is not installed",
                "buildos-netd is not running",
                "buildos-hostnamed is not running"
            ]
        );
        let waived = requirements("bbot@a", |s| {
            s.kvm = Kvm::Waived;
            s.bridge = "br0".parse().unwrap();
        });
        assert_eq!(
            missing(&waived, &empty_host),
            [
                "program /usr/bin/bbot-agent is not installed",
                "/usr/bin/curl, /usr/bin/lz4, which it calls, are not installed",
                "buildos-netd is not running",
                "buildos-hostnamed is not running"
            ]
        );
        let on_br1 = requirements("bslave@a", |s| s.bridge = "br1".parse().unwrap());
        assert_eq!(missing(&on_br1, &empty_host).len(), 4);
    }
}
