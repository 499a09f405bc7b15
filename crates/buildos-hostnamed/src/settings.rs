//! Defines the settings: `hostnamed.conf.d`, `buildos.hostnamed.*` and
//! `buildos.hostname=`.

use buildos_service::config::Schema;

use buildos_types::Hostname;

/// Settings of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Overrides every other source of a name.
    pub hostname: Option<Hostname>,
}

/// Returns the keys of the configuration.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("hostnamed")
        .key(
            "hostname",
            "Name of the host; overrides DHCP.",
            |settings: &mut Settings, name| settings.hostname = Some(name),
        )
        .alias("buildos.hostname")
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::config::{Fragment, Origin, evaluate};

    fn load(cmdline: &str) -> (Option<String>, Vec<String>) {
        let fragment = Fragment {
            origin: Origin::KernelCommandLine,
            text: cmdline.to_owned(),
        };
        let loaded = evaluate(&schema(), &[fragment]);
        let name = loaded.settings.hostname.map(|name| name.to_string());
        (
            name,
            loaded.problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn name_on_kernel_command_line_is_a_setting() {
        assert_eq!(
            load("buildos.hostname=b1.example.com"),
            (Some("b1.example.com".into()), vec![])
        );
        assert_eq!(
            load("buildos.hostnamed.hostname=b2").0.as_deref(),
            Some("b2")
        );
    }

    #[test]
    fn invalid_name_is_a_problem() {
        let (name, problems) = load("buildos.hostname=under_score");
        assert_eq!(name, None);
        assert_eq!(
            problems,
            [
                "kernel command line: buildos.hostname: '_' at position 6 is not a letter, a digit, a hyphen or a dot"
            ]
        );
    }
}
