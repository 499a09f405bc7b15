//! Checks the manifests of build machines as a controller judges them.
//!
//! The text is that of `bbot-agent --dump-machines`: the same manifests are in each task
//! request. The rules are those of brep's task request. One wrong manifest makes the
//! controller refuse all requests of the host.

use std::collections::BTreeMap;

/// Longest task request that brep accepts, bytes.
const LONGEST_REQUEST: usize = 102_400;

/// A manifest of a machine.
#[derive(Debug, Default)]
struct Manifest {
    /// Line of its start.
    line: usize,
    values: BTreeMap<String, String>,
}

impl Manifest {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.values.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    fn is_auxiliary(&self) -> bool {
        self.get("role") == Some("auxiliary")
    }
}

/// Returns true if a text is a list of manifests.
pub(super) fn are_manifests(text: &str) -> bool {
    first(text).is_some_and(|(_, line)| line == ": 1")
}

fn first(text: &str) -> Option<(usize, &str)> {
    let mut lines = text.lines().map(str::trim).enumerate();
    lines.find(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Returns the mistakes in a list of manifests, one line each, without the place.
pub(super) fn problems(text: &str) -> Vec<String> {
    let (manifests, mut problems) = parse(text);
    for manifest in &manifests {
        let name = manifest.get("name").unwrap_or("machine");
        let each = of_manifest(manifest).into_iter();
        problems.extend(each.map(|problem| format!("{}: {name}: {problem}", manifest.line)));
    }
    problems.extend(shared(&manifests, "name"));
    problems.extend(shared(&manifests, "id"));
    if !manifests.is_empty() && manifests.iter().all(Manifest::is_auxiliary) {
        problems.push("1: no machine builds: all are auxiliary".to_owned());
    }
    if text.len() > LONGEST_REQUEST {
        problems.push(format!(
            "1: {} bytes; a controller refuses a request of more than {LONGEST_REQUEST}",
            text.len()
        ));
    }
    problems
}

/// Parses the manifests. Values of several lines, which no machine needs, are skipped.
fn parse(text: &str) -> (Vec<Manifest>, Vec<String>) {
    let (mut manifests, mut problems) = (Vec::new(), Vec::new());
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line == ":" || line == ": 1" {
            manifests.push(Manifest {
                line: number,
                ..Manifest::default()
            });
            continue;
        }
        let pair = line.split_once(':').filter(|(key, _)| !key.is_empty());
        let (Some((key, value)), Some(manifest)) = (pair, manifests.last_mut()) else {
            problems.push(format!("{number}: \"name: value\" is expected"));
            continue;
        };
        let value = value.trim();
        if value == "\\" && !lines.by_ref().any(|(_, line)| line.trim() == "\\") {
            problems.push(format!("{number}: the value of {key} has no end"));
        }
        if manifest
            .values
            .insert(key.to_owned(), value.to_owned())
            .is_some()
        {
            problems.push(format!("{number}: {key} is given twice"));
        }
    }
    (manifests, problems)
}

fn of_manifest(manifest: &Manifest) -> Vec<String> {
    let mut problems = Vec::new();
    for key in ["id", "name", "summary"] {
        if manifest.get(key).is_none() {
            problems.push(format!("has no {key}"));
        }
    }
    match manifest.get("role") {
        None | Some("build" | "auxiliary") => {}
        Some(role) => problems.push(format!("role {role} is neither build nor auxiliary")),
    }
    let name = manifest.get("name").unwrap_or_default();
    if manifest.is_auxiliary() && !has_architecture_and_system(name) {
        problems.push(
            "an auxiliary machine is named ARCHITECTURE-OS or ARCHITECTURE-OS-…; the controller \
             refuses all requests with this name (400)"
                .to_owned(),
        );
    }
    let mut ram = |key| {
        let value = manifest.get(key)?;
        let number = value.parse::<u64>().ok();
        if number.is_none() {
            problems.push(format!("{key} {value} is no number of KiB"));
        }
        number
    };
    if let (Some(least), Some(most)) = (ram("ram-minimum"), ram("ram-maximum")) {
        if least > most {
            problems.push("ram-minimum is above ram-maximum".to_owned());
        }
    }
    problems
}

fn has_architecture_and_system(name: &str) -> bool {
    let mut parts = name.split('-');
    let mut part = || parts.next().is_some_and(|part| !part.is_empty());
    part() && part()
}

/// Returns a problem for each value of a key that several machines have.
fn shared(manifests: &[Manifest], key: &str) -> Vec<String> {
    let mut by_value: BTreeMap<&str, Vec<&Manifest>> = BTreeMap::new();
    for manifest in manifests {
        if let Some(value) = manifest.get(key) {
            by_value.entry(value).or_default().push(manifest);
        }
    }
    // An id identifies the content: results of one machine count as results of the other.
    let each = by_value.into_iter().filter_map(|(value, manifests)| {
        let [_, others @ ..] = manifests.as_slice() else {
            return None;
        };
        let line = others.first()?.line;
        Some(format!(
            "{line}: {} machines have the {key} {value}",
            manifests.len()
        ))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "\
# two machines
: 1
id: 5d41402abc4b2a76
name: linux_debian_13-gcc
summary: Debian 13 with GCC
:
id: 7d793037a0760186
name: x86_64-linux_debian_13-postgresql
summary:\\
PostgreSQL
\\
role: auxiliary
ram-minimum: 1048576
ram-maximum: 2097152
";

    #[test]
    fn good_manifests_have_no_problems() {
        assert!(are_manifests(GOOD));
        assert!(!are_manifests("name: x\n"));
        assert!(!are_manifests(""));
        assert_eq!(problems(GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        for (from, to, expected) in [
            (
                "x86_64-linux_debian_13-postgresql",
                "postgresql",
                "6: postgresql: an auxiliary machine is named ARCHITECTURE-OS or ARCHITECTURE-OS-…; the controller refuses all requests with this name (400)",
            ),
            (
                "role: auxiliary",
                "role: server",
                "6: x86_64-linux_debian_13-postgresql: role server is neither build nor auxiliary",
            ),
            (
                "id: 5d41402abc4b2a76\n",
                "",
                "2: linux_debian_13-gcc: has no id",
            ),
            (
                "5d41402abc4b2a76",
                "7d793037a0760186",
                "6: 2 machines have the id 7d793037a0760186",
            ),
            (
                "linux_debian_13-gcc\n",
                "x86_64-linux_debian_13-postgresql\n",
                "6: 2 machines have the name x86_64-linux_debian_13-postgresql",
            ),
            (
                "1048576",
                "4194304",
                "6: x86_64-linux_debian_13-postgresql: ram-minimum is above ram-maximum",
            ),
            (
                "1048576",
                "1G",
                "6: x86_64-linux_debian_13-postgresql: ram-minimum 1G is no number of KiB",
            ),
            (
                "PostgreSQL\n\\\n",
                "PostgreSQL\n",
                "9: the value of summary has no end",
            ),
            (
                "summary: Debian",
                "Debian",
                "5: \"name: value\" is expected",
            ),
            ("summary: Debian", "id: Debian", "5: id is given twice"),
            (":\n", ": 2\n", "6: \"name: value\" is expected"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let found = problems(&text);
            assert!(
                found.iter().any(|problem| problem == expected),
                "{expected}: {found:?}"
            );
        }
        let auxiliary = GOOD.replace("summary: Debian", "role: auxiliary\nsummary: Debian");
        assert!(
            problems(&auxiliary).contains(&"1: no machine builds: all are auxiliary".to_owned())
        );
    }

    #[test]
    fn request_has_a_limit() {
        let long = GOOD.replace("Debian 13 with", &"x".repeat(LONGEST_REQUEST));
        assert!(problems(&long)[0].contains("refuses a request of more than 102400"));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(lines in prop::collection::vec("(: 1|:|\\\\|(id|name|role|ram-minimum):[ -~]{0,8}|\\PC{0,12})", 0..40)) {
            let text = lines.join("\n");
            let _ = are_manifests(&text);
            problems(&text);
        }
    }
}
