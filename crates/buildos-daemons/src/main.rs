//! Contains the daemons of a build host and their helpers in one file. The name by which
//! the file is called selects the program.
//!
//! Each program is a separate process with its own user and privileges. Most of their
//! code is shared (D-Bus, the runtime, configuration, journal): in one file it is read
//! once from the disk or a compressed image, and is in RAM once.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// The `main` function of a program.
type Program = fn() -> ExitCode;

/// Exit status for an unknown program name.
const USAGE: u8 = 2;

/// The programs, sorted by name.
const PROGRAMS: [(&str, Program); 19] = [
    ("buildos-agent-place", buildos_updated::agent_place::main),
    ("buildos-agent-reap", buildos_agentd::cleanup::main),
    ("buildos-agentd", buildos_agentd::main),
    ("buildos-channel-look", buildos_updated::look::main),
    ("buildos-dnsmasq", buildos_natd::dnsmasq::supervise::main),
    ("buildos-hostnamed", buildos_hostnamed::main),
    (
        "buildos-machine-place",
        buildos_updated::volume::place::main,
    ),
    ("buildos-machine-ram", buildos_updated::volume::ram::main),
    (
        "buildos-machine-volumes",
        buildos_updated::volume::mount::main,
    ),
    ("buildos-natd", buildos_natd::main),
    ("buildos-netd", buildos_netd::main),
    ("buildos-netd-wait-online", buildos_netd::wait_online::main),
    (
        "buildos-os-handover",
        buildos_updated::os_handover::hand_over::main,
    ),
    (
        "buildos-os-trial",
        buildos_updated::os_handover::trial::main,
    ),
    ("buildos-pieces", buildos_updated::peers::answer::main),
    ("buildos-probe", buildos_probe::main),
    ("buildos-state", buildos_volumes::state::main),
    ("buildos-updated", buildos_updated::main),
    ("buildos-volumes", buildos_volumes::select::main),
];

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    if let Some(program) = program(&called) {
        return program();
    }
    let names = PROGRAMS.map(|(name, _)| name).join(", ");
    eprintln!("buildos-daemons: call this program by one of these names: {names}");
    ExitCode::from(USAGE)
}

/// Returns the program with the file name of `path`.
fn program(path: &OsStr) -> Option<Program> {
    let called = Path::new(path).file_name()?;
    let found = PROGRAMS.iter().find(|(name, _)| called == *name);
    found.map(|(_, program)| *program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_link_every_program() {
        let debian = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../debian");
        let mut linked: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(debian).unwrap() {
            let path = entry.unwrap().path();
            if path.extension() == Some(OsStr::new("links")) {
                let links = std::fs::read_to_string(path).unwrap();
                let names = links
                    .lines()
                    .filter_map(|link| link.strip_prefix("usr/libexec/buildos-daemons "))
                    .filter_map(|link| link.rsplit('/').next());
                linked.extend(names.map(str::to_owned));
            }
        }
        linked.sort();
        assert_eq!(linked, PROGRAMS.map(|(name, _)| name));
    }

    #[test]
    fn file_name_selects_program() {
        for (name, _) in PROGRAMS {
            assert!(program(OsStr::new(name)).is_some(), "{name}");
            let path = format!("/usr/sbin/{name}");
            assert!(program(OsStr::new(&path)).is_some(), "{path}");
        }
        for other in [
            "",
            "/",
            "buildos-daemons",
            "/usr/libexec/buildos-daemons",
            "netd",
        ] {
            assert!(program(OsStr::new(other)).is_none(), "{other}");
        }
    }
}
