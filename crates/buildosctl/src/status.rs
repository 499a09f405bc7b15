//! One line per daemon: its state in a word, and its own reason for it.

use std::collections::HashMap;

use buildos_dbus_api::{agent1, hostname1, nat1, network1};
use buildos_service::text;
use zbus::zvariant::OwnedValue;
use zbus::{Connection, fdo};

/// What is asked of whom: heading, unit, bus name, path, and the property that
/// says the state in a word.
const SOURCES: [Source; 4] = [
    Source {
        heading: "network",
        name: network1::NAME,
        path: network1::PATH,
        word: "State",
    },
    Source {
        heading: "name",
        name: hostname1::NAME,
        path: hostname1::PATH,
        word: "Hostname",
    },
    Source {
        heading: "nat",
        name: nat1::NAME,
        path: nat1::PATH,
        word: "State",
    },
    Source {
        heading: "agents",
        name: agent1::NAME,
        path: agent1::PATH,
        word: "",
    },
];

struct Source {
    heading: &'static str,
    name: &'static str,
    path: &'static str,
    word: &'static str,
}

/// What one daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    heading: &'static str,
    word: String,
    reason: String,
    problems: Vec<String>,
    /// Whether it said anything.
    pub(crate) answered: bool,
}

/// Asks every daemon.
pub(crate) async fn read(connection: &Connection) -> Vec<Line> {
    let mut lines = Vec::new();
    for source in &SOURCES {
        let line = match properties(connection, source).await {
            Ok(properties) => Line {
                heading: source.heading,
                word: string(&properties, source.word),
                reason: string(&properties, "Reason"),
                problems: strings(&properties, "ConfigurationProblems"),
                answered: true,
            },
            Err(error) => Line {
                heading: source.heading,
                word: "unknown".to_owned(),
                reason: format!("{} does not answer: {}", source.name, text::chain(&error)),
                problems: Vec::new(),
                answered: false,
            },
        };
        lines.push(line);
    }
    lines
}

async fn properties(
    connection: &Connection,
    source: &Source,
) -> zbus::Result<HashMap<String, OwnedValue>> {
    let proxy = fdo::PropertiesProxy::builder(connection)
        .destination(source.name)?
        .path(source.path)?
        .build()
        .await?;
    let interface = zbus::names::InterfaceName::try_from(format!("{}.Manager", source.name))?;
    Ok(proxy.get_all(interface).await?)
}

fn string(properties: &HashMap<String, OwnedValue>, name: &str) -> String {
    let value = properties
        .get(name)
        .and_then(|value| value.downcast_ref::<&str>().ok());
    text::escape(value.unwrap_or_default())
}

fn strings(properties: &HashMap<String, OwnedValue>, name: &str) -> Vec<String> {
    let value = properties
        .get(name)
        .and_then(|value| value.try_clone().ok());
    let strings = value.and_then(|value| Vec::<String>::try_from(value).ok());
    strings
        .unwrap_or_default()
        .iter()
        .map(|line| text::escape(line))
        .collect()
}

/// The lines in columns.
pub(crate) fn render(lines: &[Line]) -> String {
    let width = lines
        .iter()
        .map(|line| line.word.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for line in lines {
        let row = format!("{:<8} {:<width$}  {}", line.heading, line.word, line.reason);
        out.push_str(row.trim_end());
        out.push('\n');
        for problem in &line.problems {
            out.push_str(&format!(
                "{:<8} {:<width$}  configuration: {problem}\n",
                "", ""
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_problems_stand_below() {
        let line = |heading, word: &str, reason: &str, problems: &[&str]| Line {
            heading,
            word: word.into(),
            reason: reason.into(),
            problems: problems.iter().map(ToString::to_string).collect(),
            answered: true,
        };
        let lines = [
            line(
                "network",
                "online",
                "br0 has 192.0.2.7/24",
                &["cmdline: unknown key"],
            ),
            line("name", "build-adbeefb8da", "from the MAC", &[]),
            line("agents", "", "no agents configured", &[]),
        ];
        assert_eq!(
            render(&lines),
            "network  online            br0 has 192.0.2.7/24\n\
             \x20                          configuration: cmdline: unknown key\n\
             name     build-adbeefb8da  from the MAC\n\
             agents                     no agents configured\n"
        );
    }
}
