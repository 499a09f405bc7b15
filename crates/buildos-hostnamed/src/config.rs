//! What an operator may set, in `hostnamed.conf.d`, as `buildos.hostnamed.*`
//! and as `buildos.hostname=`.

use buildos_service::config::Schema;

use buildos_types::Hostname;

/// Settings in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `hostname`.
    pub hostname: Option<Hostname>,
}

/// Every key, with where its value goes.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("hostnamed")
        .key(
            "hostname",
            "The host's name, whatever DHCP says.",
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
    fn a_name_on_the_kernel_command_line() {
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
    fn a_name_that_is_none_is_a_problem() {
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
