//! Divides CPU and RAM of the machine among the agents.
//!
//! | resource | default |
//! |---|---|
//! | hardware threads of a task | all, divided by the concurrent tasks of its agent |
//! | RAM of a task | RAM less a reserve, the RAM of auxiliary machines and of a machine volume, divided by the tasks of all agents |
//! | number of a toolchain | 1 to 9 in the order of names, without configured ones; none for a single agent |
//!
//! Agents together may get more threads than there are: their builds take longer. RAM is
//! never divided twice: the kernel would kill builds.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use buildos_dbus_api::agent1::Kind;

use crate::agent::bbot_value::ToolchainNumber;
use crate::agent::id::Id;
use crate::agent::settings::AgentSettings;
use crate::settings::Settings;
use hardware::Hardware;

pub mod hardware;

/// Lower limit of the RAM of a task, MiB; with less, no build succeeds.
const LEAST_RAM: u64 = 256;

/// CPU and RAM of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Hardware threads of each task.
    pub cpu: NonZeroU32,
    /// RAM of each task, MiB.
    pub ram_mib: u64,
    /// RAM of the auxiliary machines of each task, MiB.
    pub auxiliary_mib: u64,
    /// Number of the toolchain; [`None`] for a single agent, or if all are taken.
    pub number: Option<ToolchainNumber>,
    /// Limit of concurrent tasks.
    pub tasks: NonZeroU32,
}

impl Resources {
    /// Returns the RAM of each task in KiB, the unit of bbot-agent's `--build-ram`.
    #[must_use]
    pub fn ram_kib(self) -> u64 {
        self.ram_mib.saturating_mul(1024)
    }

    /// Returns the RAM of the auxiliary machines of each task in KiB.
    #[must_use]
    pub fn auxiliary_kib(self) -> u64 {
        self.auxiliary_mib.saturating_mul(1024)
    }

    /// Returns the RAM of all tasks with their auxiliary machines, MiB.
    #[must_use]
    pub fn ram_total(self) -> u64 {
        self.ram_mib
            .saturating_add(self.auxiliary_mib)
            .saturating_mul(self.tasks.get().into())
    }
}

/// Returns the RAM of all agents together, MiB.
#[must_use]
pub fn usable_memory(settings: &Settings, hardware: Hardware) -> u64 {
    let reserve = settings.memory_reserve.unwrap_or(hardware.reserve());
    hardware
        .memory
        .saturating_sub(reserve)
        .saturating_sub(hardware.volume)
}

/// Returns the resources of an agent in `settings`.
#[must_use]
pub fn resources(id: &Id, settings: &Settings, hardware: Hardware) -> Resources {
    let defaults = AgentSettings::new(id.kind);
    let agent = settings.agents.get(id).unwrap_or(&defaults);
    let tasks = tasks(agent);
    let ram_mib = match (agent.ram_mib, id.kind) {
        (Some(ram), _) => ram.get().into(),
        (None, Kind::Bbot) => share(settings, hardware).max(LEAST_RAM),
        // agentd does not know the RAM that a slave needs: RAM is not a requirement.
        (None, Kind::Bslave) => 0,
    };
    let threads = NonZeroU32::new(hardware.threads.get() / tasks).unwrap_or(NonZeroU32::MIN);
    Resources {
        cpu: agent.cpu.unwrap_or(threads),
        ram_mib,
        auxiliary_mib: agent.auxiliary_ram_mib.into(),
        number: number(id, settings),
        tasks,
    }
}

/// Returns the number of an agent's toolchain: the configured one, or with several agents
/// the next that is not configured.
fn number(id: &Id, settings: &Settings) -> Option<ToolchainNumber> {
    let bbots = || {
        let enabled = settings.agents.iter().filter(|(_, agent)| agent.enabled);
        enabled.filter(|(id, _)| id.kind == Kind::Bbot)
    };
    if let Some(agent) = settings.agents.get(id) {
        if agent.toolchain_num.is_some() {
            return agent.toolchain_num;
        }
    }
    if bbots().count() < 2 {
        return None;
    }
    let taken: BTreeSet<_> = bbots()
        .filter_map(|(_, agent)| agent.toolchain_num)
        .collect();
    let without = bbots().filter(|(_, agent)| agent.toolchain_num.is_none());
    without
        .zip(ToolchainNumber::all().filter(|number| !taken.contains(number)))
        .find_map(|((other, _), number)| (other == id).then_some(number))
}

/// Returns the RAM of a task without `ram_mib`: the RAM that agents with `ram_mib` and
/// auxiliary machines leave, divided by the tasks of the others.
fn share(settings: &Settings, hardware: Hardware) -> u64 {
    let enabled = || settings.agents.iter().filter(|(_, agent)| agent.enabled);
    let configured: u64 = enabled()
        .map(|(_, agent)| {
            let ram = u64::from(agent.ram_mib.map_or(0, NonZeroU32::get));
            let auxiliary = u64::from(agent.auxiliary_ram_mib);
            ram.saturating_add(auxiliary)
                .saturating_mul(tasks(agent).get().into())
        })
        .sum();
    let others: u64 = enabled()
        .filter(|(id, agent)| id.kind == Kind::Bbot && agent.ram_mib.is_none())
        .map(|(_, agent)| u64::from(tasks(agent).get()))
        .sum();
    usable_memory(settings, hardware).saturating_sub(configured) / others.max(1)
}

fn tasks(agent: &AgentSettings) -> NonZeroU32 {
    agent.instance_max.unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: Hardware = Hardware {
        threads: NonZeroU32::new(16).unwrap(),
        memory: 65_536,
        volume: 0,
    };

    /// Makes agents with `instance_max` and `ram_mib`, 0 if not configured.
    fn settings(agents: &[(&str, u32, u32)]) -> Settings {
        let agents = agents.iter().map(|(id, instance_max, ram)| {
            let id: Id = id.parse().unwrap();
            let agent = AgentSettings {
                instance_max: NonZeroU32::new(*instance_max),
                ram_mib: NonZeroU32::new(*ram),
                ..AgentSettings::new(id.kind)
            };
            (id, agent)
        });
        Settings {
            agents: agents.collect(),
            ..Settings::default()
        }
    }

    fn of(id: &str, settings: &Settings, hardware: Hardware) -> (u32, u64, u64) {
        let resources = resources(&id.parse().unwrap(), settings, hardware);
        (
            resources.cpu.get(),
            resources.ram_mib,
            resources.ram_total(),
        )
    }

    #[test]
    fn one_agent_gets_all_resources() {
        let settings = settings(&[("bbot@a", 0, 0)]);
        assert_eq!(of("bbot@a", &settings, HARDWARE), (16, 61_440, 61_440));
    }

    #[test]
    fn machine_volume_in_ram_takes_its_ram_from_the_tasks() {
        let settings = settings(&[("bbot@a", 2, 0)]);
        let hardware = Hardware {
            volume: 20_480,
            ..HARDWARE
        };
        assert_eq!(usable_memory(&settings, hardware), 40_960);
        assert_eq!(of("bbot@a", &settings, hardware), (8, 20_480, 40_960));
    }

    #[test]
    fn tasks_without_configuration_share_the_rest() {
        let settings = settings(&[
            ("bbot@a", 3, 0),
            ("bbot@b", 1, 0),
            ("bbot@c", 2, 4096),
            ("bslave@d", 0, 8192),
            ("bslave@e", 0, 0),
        ]);
        // (61,440 - 2 × 4096 - 8192) / 4.
        assert_eq!(of("bbot@a", &settings, HARDWARE), (5, 11_264, 33_792));
        assert_eq!(of("bbot@b", &settings, HARDWARE), (16, 11_264, 11_264));
        assert_eq!(of("bbot@c", &settings, HARDWARE), (8, 4096, 8192));
        assert_eq!(of("bslave@d", &settings, HARDWARE), (16, 8192, 8192));
        assert_eq!(of("bslave@e", &settings, HARDWARE), (16, 0, 0));
    }

    #[test]
    fn auxiliary_machines_take_their_ram_from_the_tasks() {
        let mut settings = settings(&[("bbot@a", 2, 0), ("bbot@b", 1, 4096)]);
        for agent in settings.agents.values_mut() {
            agent.auxiliary_ram_mib = 2048;
        }
        // (61,440 - 4096 - 3 × 2048) / 2.
        assert_eq!(of("bbot@a", &settings, HARDWARE), (8, 25_600, 55_296));
        assert_eq!(of("bbot@b", &settings, HARDWARE), (16, 4096, 6144));
    }

    #[test]
    fn agents_have_different_toolchain_numbers() {
        let number = |id: &str, settings: &Settings| {
            let number = resources(&id.parse().unwrap(), settings, HARDWARE).number;
            number.map(|number| number.to_string())
        };
        let one = settings(&[("bbot@a", 0, 0), ("bslave@b", 0, 0)]);
        assert_eq!(number("bbot@a", &one), None);
        let mut three = settings(&[("bbot@a", 0, 0), ("bbot@b", 0, 0), ("bbot@c", 0, 0)]);
        let b = three.agents.get_mut(&"bbot@b".parse().unwrap()).unwrap();
        b.toolchain_num = ToolchainNumber::all().next();
        let numbers = ["bbot@a", "bbot@b", "bbot@c"].map(|id| number(id, &three).unwrap());
        assert_eq!(numbers, ["2", "1", "3"]);
    }

    #[test]
    fn configured_reserve_is_used_and_disabled_agents_get_no_share() {
        let mut settings = settings(&[("bbot@a", 0, 0), ("bbot@b", 8, 0)]);
        settings.memory_reserve = Some(1536);
        settings
            .agents
            .get_mut(&"bbot@b".parse().unwrap())
            .unwrap()
            .enabled = false;
        assert_eq!(of("bbot@a", &settings, HARDWARE).1, 64_000);
    }

    #[test]
    fn smallest_machine_has_ram_for_one_task() {
        // RAM that the kernel manages of 768 MiB.
        let floor = Hardware {
            threads: NonZeroU32::MIN,
            memory: 698,
            volume: 0,
        };
        let settings = settings(&[("bbot@a", 0, 0)]);
        let (_, ram, total) = of("bbot@a", &settings, floor);
        assert!(ram >= LEAST_RAM);
        assert!(total <= usable_memory(&settings, floor));
    }

    #[test]
    fn too_small_machine_gets_lower_limits() {
        let small = Hardware {
            threads: NonZeroU32::MIN,
            memory: 400,
            volume: 0,
        };
        let settings = settings(&[("bbot@a", 4, 0)]);
        assert_eq!(of("bbot@a", &settings, small), (1, LEAST_RAM, 1024));
        assert_eq!(usable_memory(&settings, small), 200);
    }
}
