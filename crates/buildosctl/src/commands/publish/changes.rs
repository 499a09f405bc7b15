//! Compares two channels and lists the differences.

use buildos_channel::Channel;
use buildos_channel::model::Machine;

/// Returns the changes from `before` to `after`, one a line. Serial, validity and rollout
/// do not count.
pub(super) fn changes(before: Option<&Channel>, after: &Channel) -> Vec<String> {
    let mut out = Vec::new();
    let os = before.and_then(|before| before.os.as_ref());
    if os != after.os.as_ref() {
        out.push(match &after.os {
            Some(os) => format!("~ os {}", os.version),
            None => "- os".to_owned(),
        });
    }
    let none = Vec::new();
    list(
        &mut out,
        "agent",
        before.map_or(&[][..], |before| &before.agents),
        &after.agents,
        |agent| (agent.name.to_string(), format!("version {}", agent.version)),
    );
    list(
        &mut out,
        "toolchain",
        before.map_or(&[][..], |before| &before.toolchains),
        &after.toolchains,
        |toolchain| {
            (
                toolchain.name.to_string(),
                format!("version {}", toolchain.version),
            )
        },
    );
    list(
        &mut out,
        "machine",
        before.map_or(&none, |before| &before.machines),
        &after.machines,
        |machine: &Machine| {
            (
                machine.name.to_string(),
                format!("revision {}", machine.revision),
            )
        },
    );
    out
}

/// Appends the changes of a list whose items have name and version.
fn list<T: PartialEq>(
    out: &mut Vec<String>,
    kind: &str,
    before: &[T],
    after: &[T],
    of: impl Fn(&T) -> (String, String),
) {
    let find = |items: &[T], name: &str| items.iter().position(|item| of(item).0 == name);
    for item in before {
        let (name, version) = of(item);
        if find(after, &name).is_none() {
            out.push(format!("- {kind} {name} {version}"));
        }
    }
    for item in after {
        let (name, version) = of(item);
        match find(before, &name).and_then(|at| before.get(at)) {
            None => out.push(format!("+ {kind} {name} {version}")),
            Some(old) if old != item => {
                out.push(format!("~ {kind} {name} {version}, was {}", of(old).1));
            }
            Some(_) => {}
        }
    }
}
