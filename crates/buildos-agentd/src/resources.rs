//! What each agent may take of the machine.
//!
//! An operator who says nothing gets what the machine has: every task may use
//! all hardware threads, divided by the tasks that its agent runs at the same
//! time, and RAM less a reserve is divided among the tasks of all agents. Threads
//! of several agents may add up to more than there are, which costs time; RAM may
//! not, which would cost builds.

use std::num::NonZeroU32;

use buildos_dbus_api::agent1::Kind;

use crate::agent::id::Id;
use crate::settings::{AgentSettings, Settings};
use hardware::Hardware;

pub mod hardware;

/// A task with less RAM than this builds nothing, MiB.
const LEAST_RAM: u64 = 256;

/// What one agent may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    /// Hardware threads of each task.
    pub cpu: NonZeroU32,
    /// RAM of each task, MiB.
    pub ram_mib: u64,
    /// Tasks at the same time.
    pub tasks: NonZeroU32,
}

impl Allotment {
    /// RAM of each task in the unit of bbot-agent's options.
    #[must_use]
    pub fn ram_kib(self) -> u64 {
        self.ram_mib.saturating_mul(1024)
    }

    /// RAM of all tasks, MiB.
    #[must_use]
    pub fn ram_total(self) -> u64 {
        self.ram_mib.saturating_mul(self.tasks.get().into())
    }
}

/// RAM for all agents together, MiB.
#[must_use]
pub fn usable_memory(settings: &Settings, hardware: Hardware) -> u64 {
    let reserve = settings.memory_reserve.unwrap_or(hardware.reserve());
    hardware.memory.saturating_sub(reserve)
}

/// What this agent, one of those in `settings`, may take.
#[must_use]
pub fn allotment(id: &Id, settings: &Settings, hardware: Hardware) -> Allotment {
    let defaults = AgentSettings::new(id.kind);
    let agent = settings.agents.get(id).unwrap_or(&defaults);
    let tasks = tasks(agent);
    let ram_mib = match (agent.ram_mib, id.kind) {
        (Some(ram), _) => ram.get().into(),
        (None, Kind::Bbot) => share(settings, hardware).max(LEAST_RAM),
        // What it takes is not known: it waits for nothing.
        (None, Kind::Bslave) => 0,
    };
    let threads = NonZeroU32::new(hardware.threads.get() / tasks).unwrap_or(NonZeroU32::MIN);
    Allotment {
        cpu: agent.cpu.unwrap_or(threads),
        ram_mib,
        tasks,
    }
}

/// RAM of one task for which none is configured: what those leave for which
/// some is, by the number of the others.
fn share(settings: &Settings, hardware: Hardware) -> u64 {
    let enabled = || settings.agents.iter().filter(|(_, agent)| agent.enabled);
    let taken: u64 = enabled()
        .filter_map(|(_, agent)| {
            let ram = u64::from(agent.ram_mib?.get());
            Some(ram.saturating_mul(tasks(agent).get().into()))
        })
        .sum();
    let others: u64 = enabled()
        .filter(|(id, agent)| id.kind == Kind::Bbot && agent.ram_mib.is_none())
        .map(|(_, agent)| u64::from(tasks(agent).get()))
        .sum();
    usable_memory(settings, hardware).saturating_sub(taken) / others.max(1)
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
    };

    /// Agents by name, with `instance_max` and `ram_mib`, 0 where not configured.
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
        let allotment = allotment(&id.parse().unwrap(), settings, hardware);
        (
            allotment.cpu.get(),
            allotment.ram_mib,
            allotment.ram_total(),
        )
    }

    #[test]
    fn one_agent_has_the_machine() {
        let settings = settings(&[("bbot@a", 0, 0)]);
        assert_eq!(of("bbot@a", &settings, HARDWARE), (16, 61_440, 61_440));
    }

    #[test]
    fn tasks_share_it() {
        let settings = settings(&[
            ("bbot@a", 3, 0),
            ("bbot@b", 1, 0),
            ("bbot@c", 2, 4096),
            ("bslave@d", 0, 8192),
            ("bslave@e", 0, 0),
        ]);
        // 61,440 less 2 × 4096 and 8192, by 4.
        assert_eq!(of("bbot@a", &settings, HARDWARE), (5, 11_264, 33_792));
        assert_eq!(of("bbot@b", &settings, HARDWARE), (16, 11_264, 11_264));
        assert_eq!(of("bbot@c", &settings, HARDWARE), (8, 4096, 8192));
        assert_eq!(of("bslave@d", &settings, HARDWARE), (16, 8192, 8192));
        assert_eq!(of("bslave@e", &settings, HARDWARE), (16, 0, 0));
    }

    #[test]
    fn the_reserve_is_configuration_and_disabled_agents_take_nothing() {
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
    fn the_smallest_machine_builds_something() {
        // What the kernel manages of 768 MiB.
        let floor = Hardware {
            threads: NonZeroU32::MIN,
            memory: 698,
        };
        let settings = settings(&[("bbot@a", 0, 0)]);
        let (_, ram, total) = of("bbot@a", &settings, floor);
        assert!(ram >= LEAST_RAM);
        assert!(total <= usable_memory(&settings, floor));
    }

    #[test]
    fn a_small_machine_does_not_make_nonsense() {
        let small = Hardware {
            threads: NonZeroU32::MIN,
            memory: 400,
        };
        let settings = settings(&[("bbot@a", 4, 0)]);
        assert_eq!(of("bbot@a", &settings, small), (1, LEAST_RAM, 1024));
        assert_eq!(usable_memory(&settings, small), 200);
    }
}
