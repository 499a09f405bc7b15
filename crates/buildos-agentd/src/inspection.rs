//! Shows the units that a configuration leads to: `--check` and `--print`.

use std::path::Path;

use buildos_service::Inspection;

use crate::resources::hardware::Hardware;
use crate::resources::resources;
use crate::settings::Settings;
use crate::unit::command::Command;
use crate::unit::directory as unit_directory;
use crate::unit::dropin;

/// Returns the drop-ins for a machine whose file system is at `root`.
#[must_use]
pub fn inspect(settings: &Settings, root: &Path) -> Inspection {
    inspect_for(settings, Hardware::read(root))
}

fn inspect_for(settings: &Settings, hardware: Hardware) -> Inspection {
    let mut inspection = Inspection::default();
    let text = &mut inspection.text;
    if settings.agents.is_empty() {
        text.push_str("# no agents configured\n");
    }
    for (id, agent) in &settings.agents {
        if !agent.enabled {
            text.push_str(&format!("# {id} is disabled\n\n"));
            continue;
        }
        let resources = resources(id, settings, hardware);
        match Command::new(id, agent, &settings.options, resources) {
            Ok(command) => {
                let directory = dropin::directory(id);
                let (runtime, file) = (unit_directory::RUNTIME, dropin::FILE);
                text.push_str(&format!("# {runtime}/{directory}/{file}\n"));
                text.push_str(&dropin::text(&command));
                text.push('\n');
            }
            Err(error) => inspection.problems.push(error.to_string()),
        }
    }
    inspection
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::settings::AgentSettings;
    use std::num::NonZeroU32;

    #[test]
    fn inspection_shows_dropins_and_problems() {
        let mut settings = Settings::default();
        let agents = ["bbot@a", "bslave@b", "bslave@c"].map(|id| {
            let id: crate::agent::id::Id = id.parse().unwrap();
            (id.clone(), AgentSettings::new(id.kind))
        });
        settings.agents.extend(agents);
        settings
            .agents
            .get_mut(&"bslave@c".parse().unwrap())
            .unwrap()
            .enabled = false;
        let hardware = Hardware {
            threads: NonZeroU32::MIN,
            memory: 4096,
            volume: 0,
        };
        let Inspection { text, problems } = inspect_for(&settings, hardware);
        assert_eq!(
            problems,
            ["no controller is configured (controllers of bbot@a)"]
        );
        let path = "/run/systemd/system/buildos-bslave@b.service.d/50-buildos.conf";
        assert!(
            text.starts_with(&format!("# {path}\n# Written by")),
            "{text}"
        );
        assert!(text.ends_with("ExecStart=/usr/bin/bslave\n\n# bslave@c is disabled\n\n"));
    }
}
