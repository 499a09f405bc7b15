//! Tests the way from configuration to drop-ins.

#![allow(clippy::unwrap_used)] // Tests panic.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use buildos_agentd::resources::hardware::Hardware;
use buildos_agentd::resources::resources;
use buildos_agentd::settings::{Settings, schema};
use buildos_agentd::unit::command::Command;
use buildos_agentd::unit::dropin;
use buildos_service::config::{Fragment, Loaded, Origin, evaluate};

fn load(toml: &str, cmdline: &str) -> (Settings, Vec<String>) {
    let fragments = [
        Fragment {
            origin: Origin::File("/etc/buildos/agentd.conf.d/50-test.toml".into()),
            text: toml.to_owned(),
        },
        Fragment {
            origin: Origin::KernelCommandLine,
            text: cmdline.to_owned(),
        },
    ];
    let Loaded { settings, problems } = evaluate(&schema(), &fragments);
    (settings, problems.iter().map(ToString::to_string).collect())
}

/// Machine with 8 GiB, of which 512 MiB are reserved.
fn hardware() -> Hardware {
    Hardware {
        threads: NonZeroU32::new(4).unwrap(),
        memory: 8192,
        volume: 0,
    }
}

/// Returns the drop-ins of all agents, each after its path.
fn dropins(settings: &Settings) -> String {
    let mut text = String::new();
    for (id, agent) in &settings.agents {
        text.push_str(&format!("--- {}/{}\n", dropin::directory(id), dropin::FILE));
        let resources = resources(id, settings, hardware());
        match Command::new(id, agent, &settings.options, resources) {
            Ok(command) => text.push_str(&dropin::text(&command)),
            Err(error) => text.push_str(&format!("{error}\n")),
        }
    }
    text
}

/// Compares the drop-ins of `tests/golden/NAME.toml` with `tests/golden/NAME.conf`.
fn golden(name: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |end: &str| fs::read_to_string(directory.join(format!("{name}.{end}"))).unwrap();
    let (settings, problems) = load(&read("toml"), "");
    assert_eq!(problems, [""; 0]);
    assert_eq!(dropins(&settings), read("conf"));
}

#[test]
fn smallest_configuration_makes_dropin() {
    golden("smallest");
}

#[test]
fn all_settings_appear_in_dropin() {
    golden("everything");
}

#[test]
fn special_characters_are_quoted_in_dropin() {
    golden("quoting");
}

#[test]
fn kernel_command_line_alone_configures_agent() {
    let (settings, problems) = load(
        "",
        "quiet buildos.agentd.bbot.default.controllers=0100=https://ci.example.org/?a=b,http://192.0.2.1 \
         buildos.agentd.bbot.default.kvm=waived buildos.agentd.bbot.default.instance_max=2",
    );
    assert_eq!(problems, [""; 0]);
    assert!(dropins(&settings).ends_with(
        "ExecStart=/usr/bin/bbot-agent --systemd-daemon --toolchain-name default --instance-max 2 --cpu 2 --build-ram 3932160 --auxiliary-ram 0 --bridge br1 \
         \"0100=https://ci.example.org/?a=b\" http://192.0.2.1\n"
    ));
}

#[test]
fn query_string_on_kernel_command_line_is_kept() {
    let urls = "0100=https://ci.example.org/?repository=a,b&interactive=true,http://b/?x=%2C";
    let (settings, problems) = load(
        "",
        &format!("quiet buildos.agentd.bbot.x.controllers={urls} x=y"),
    );
    assert_eq!(problems, [""; 0]);
    assert!(dropins(&settings).ends_with(
        " \"0100=https://ci.example.org/?repository=a,b&interactive=true\" \"http://b/?x=%%2C\"\n"
    ));
}

#[test]
fn kernel_command_line_sets_options_of_bbot() {
    let fingerprint = ["AB"; 32].join(":");
    let keys = [
        "controllers=https://a",
        "toolchain_version=0.17",
        "toolchain_id=1",
        "interactive=true",
        &format!("trust={fingerprint},{fingerprint}"),
        "nice=-5",
        "auxiliary_ram_mib=1024",
    ];
    let cmdline = keys
        .map(|key| format!("buildos.agentd.bbot.x.{key}"))
        .join(" ");
    let (settings, problems) = load("", &cmdline);
    assert_eq!(problems, [""; 0]);
    // 7680 MiB are for agents: 6656 for the task, 1024 for its auxiliary machines.
    assert!(dropins(&settings).ends_with(&format!(
        "ExecStart=/usr/bin/bbot-agent --systemd-daemon --toolchain-name x --toolchain-ver 0.17 --toolchain-id 1 --cpu 4 --build-ram 6815744 --auxiliary-ram 1048576 --nice -5 --interactive true --trust {fingerprint} --trust {fingerprint} --bridge br1 https://a\n"
    )));
}

#[test]
fn kernel_command_line_disables_agent() {
    let toml = "[bbot.default]\ncontrollers = ['https://a']\n[bslave.default]\n";
    let (settings, problems) = load(toml, "buildos.agentd.bbot.default.enabled=false");
    assert_eq!(problems, [""; 0]);
    let enabled: Vec<_> = settings.agents.values().map(|a| a.enabled).collect();
    assert_eq!(enabled, [false, true]);
}

#[test]
fn global_settings_are_read() {
    let (settings, problems) = load(
        "drain_budget_s = 60\nmemory_reserve_mib = 1024\n",
        "buildos.agentd.shutdown_budget_s=5 buildos.agentd.clock_deadline_s=0",
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!(settings.budgets.drain, Duration::from_secs(60));
    assert_eq!(settings.budgets.shutdown, Duration::from_secs(5));
    assert_eq!(settings.clock_deadline, Duration::ZERO);
    assert_eq!(settings.memory_reserve, Some(1024));
}

#[test]
fn invalid_values_are_reported_with_file_and_line() {
    let toml = "\
[bbot.default]
controller = ['https://a']
controllers = ['https://a', '99999=https://b']
program = 'bbot-agent'
instance_max = 0
kvm = 'maybe'
bridge = 'a very long name'
arguments = '--verbose'
environment = ['A B=C']
user = 'a b'
credentials = ['a/b']
drain = 'soon'
ram_mib = 0
auxiliary_ram_mib = -1
interactive = 'maybe'
trust = ['AB:CD']
machines = 'build/machines'
tftp = '/build/../etc'
tftp_port = 0
toolchain_version = '0.17 a'
toolchain_id = ''
toolchain_num = 10
nice = 20
[bbot.'a b']
enabled = true
[bslave.default]
controllers = ['https://a']
[bbot_option]
gpu = '--gpu'
cpu = 'threads'
";
    let (settings, problems) = load(
        toml,
        "buildos.agentd.bbot.default.controllers=ci.example.org",
    );
    let file = "/etc/buildos/agentd.conf.d/50-test.toml";
    assert_eq!(
        problems,
        [
            format!("{file}:2: unknown key \"bbot.default.controller\"; the nearest valid key is \"bbot.default.controllers\""),
            format!("{file}:3: bbot.default.controllers: bad priority \"99999\": its first digit, F, is 0, or 1 together with the next one, D"),
            format!("{file}:4: bbot.default.program: \"bbot-agent\" is not a program: an absolute path of letters, digits and ._+@- is expected"),
            format!("{file}:5: bbot.default.instance_max: invalid value: integer `0`, expected a nonzero u32"),
            format!("{file}:6: bbot.default.kvm: unknown variant `maybe`, expected `required` or `waived`"),
            format!("{file}:7: bbot.default.bridge: \"a very long name\" is not an interface name: 1 to 15 letters, digits and -_.@+ are required"),
            format!("{file}:8: bbot.default.arguments: invalid type: string \"--verbose\", expected a sequence"),
            format!("{file}:9: bbot.default.environment: \"A B=C\" is not an environment variable: NAME=VALUE without control characters is expected"),
            format!("{file}:10: bbot.default.user: \"a b\" is not a user name: up to 31 letters, digits, '-' and '_' are expected, the first a letter or '_'"),
            format!("{file}:11: bbot.default.credentials: \"a/b\" is not a credential: NAME or NAME:/PATH is expected, of letters, digits and ._+@- (and / in PATH), or encrypted:NAME, encrypted:NAME:/PATH"),
            format!("{file}:12: bbot.default.drain: \"soon\" is not a drain method: \"idle\" or one of SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH is expected"),
            format!("{file}:13: bbot.default.ram_mib: invalid value: integer `0`, expected a nonzero u32"),
            format!("{file}:14: bbot.default.auxiliary_ram_mib: invalid value: integer `-1`, expected u32"),
            format!("{file}:15: bbot.default.interactive: \"false\", \"true\" or \"both\" is expected"),
            format!("{file}:16: bbot.default.trust: \"AB:CD\" is not a fingerprint: 32 pairs of hexadecimal digits, XX:XX:…, are expected"),
            format!("{file}:17: bbot.default.machines: \"build/machines\" is not an absolute path of a directory"),
            format!("{file}:18: bbot.default.tftp: \"/build/../etc\" is not an absolute path of a directory"),
            format!("{file}:19: bbot.default.tftp_port: invalid value: integer `0`, expected a nonzero u16"),
            format!("{file}:20: bbot.default.toolchain_version: \"0.17 a\" is not one word of printable ASCII characters"),
            format!("{file}:21: bbot.default.toolchain_id: \"\" is not one word of printable ASCII characters"),
            format!("{file}:22: bbot.default.toolchain_num: 10 is not a number of a toolchain: 1 to 9 is expected"),
            format!("{file}:23: bbot.default.nice: 20 is not a priority: -20 to 19 is expected"),
            format!("{file}:24: bbot.a b: \"a b\" is not a valid agent name: up to 64 letters, digits, '-' and '_' are expected, the first a letter or digit"),
            format!("{file}:27: unknown key \"bslave.default.controllers\"; the nearest valid key is \"bbot.default.controllers\""),
            format!("{file}:29: bbot_option.gpu: bbot-agent has no option for \"gpu\"; the known ones are systemd_daemon, toolchain_name, toolchain_version, toolchain_id, toolchain_num, instance_max, cpu, build_ram, auxiliary_ram, nice, interactive, trust, machines, tftp, tftp_port, auth_key, bridge"),
            format!("{file}:30: bbot_option.cpu: \"threads\" is not an option: --NAME is expected, or \"\" if the program has no such option"),
            "kernel command line: buildos.agentd.bbot.default.controllers: bad controller \"ci.example.org\": https://HOST[:PORT][/PATH] or http://… is expected".to_owned(),
        ]
    );
    assert_eq!(
        dropins(&settings),
        "--- buildos-bbot@default.service.d/50-buildos.conf\n\
         no controller is configured (controllers of bbot@default)\n\
         --- buildos-bslave@default.service.d/50-buildos.conf\n"
            .to_owned()
            + &dropin_of_bslave()
    );
}

/// Returns the drop-in of an empty table.
fn dropin_of_bslave() -> String {
    let id = "bslave@default".parse().unwrap();
    let (settings, _) = load("[bslave.default]\n", "");
    let resources = resources(&id, &settings, hardware());
    let command = Command::new(&id, &settings.agents[&id], &settings.options, resources);
    dropin::text(&command.unwrap())
}
