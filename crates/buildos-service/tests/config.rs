//! Evaluates files below a root, and a kernel command line.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use buildos_service::config::{Loaded, Schema, evaluate, sources};
use tempfile::TempDir;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Settings {
    private: String,
    grace: u32,
    include: Vec<String>,
    controllers: BTreeMap<String, Vec<String>>,
    speeds: BTreeMap<u8, u32>,
}

fn schema() -> Schema<Settings> {
    Schema::new("testd")
        .key("private", "A string.", |c: &mut Settings, v| c.private = v)
        .key("carrier.grace", "A number.", |c: &mut Settings, v| {
            c.grace = v
        })
        .key("include", "A list.", |c: &mut Settings, v| c.include = v)
        .alias("buildos.include")
        .named(
            "bbot.*.controllers",
            "A list per name.",
            |c: &mut Settings, name: String, v| {
                c.controllers.insert(name, v);
            },
        )
        .table("port.*", |c: &mut Settings, port: u8| {
            c.speeds.insert(port, 0);
        })
        .named(
            "port.*.speed",
            "A number per port.",
            |c: &mut Settings, port: u8, v| {
                c.speeds.insert(port, v);
            },
        )
        .check(|c| {
            let is_fast = |speed: &u32| c.grace > 0 && *speed > c.grace;
            let ports = c.speeds.iter().filter(|(_, speed)| is_fast(speed));
            let error = |(port, _)| (format!("port.{port}"), "is faster than grace".to_owned());
            let errors = ports.map(error).collect();
            c.speeds
                .retain(|_, speed| c.grace == 0 || *speed <= c.grace);
            errors
        })
}

/// Creates a root with a kernel command line and these files.
fn root(cmdline: &str, files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "proc/cmdline", cmdline);
    for (path, text) in files {
        write(root.path(), path, text);
    }
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Returns the settings, and the problems as shown without the root.
fn load(root: &TempDir) -> (Settings, Vec<String>) {
    let (fragments, mut problems) = sources::read(root.path(), "testd");
    let Loaded {
        settings,
        problems: more,
    } = evaluate(&schema(), &fragments);
    problems.extend(more);
    let prefix = root.path().to_str().unwrap();
    (
        settings,
        problems
            .iter()
            .map(|p| p.to_string().replace(prefix, ""))
            .collect(),
    )
}

#[test]
fn later_source_wins_key_by_key() {
    let root = root(
        "quiet buildos.testd.carrier.grace=3",
        &[
            (
                "usr/lib/buildos/testd.conf.d/50-a.toml",
                "private = 'usr'\ncarrier.grace = 1\n",
            ),
            ("run/buildos/testd.conf.d/40-a.toml", "include = ['run']\n"),
            (
                "etc/buildos/testd.conf.d/10-a.toml",
                "private = 'etc'\n[carrier]\ngrace = 2\n",
            ),
        ],
    );
    let (settings, problems) = load(&root);
    assert_eq!(problems, [""; 0]);
    assert_eq!(settings.private, "etc");
    assert_eq!(settings.grace, 3);
    assert_eq!(settings.include, ["run"]);
}

#[test]
fn contradiction_between_sources_has_place_of_its_key() {
    let ports = "private = 'a'\n[port.1]\nspeed = 9\n[port.2]\nspeed = 2\n";
    let root = root(
        "buildos.testd.carrier.grace=3 buildos.testd.port.4.speed=5",
        &[
            ("etc/buildos/testd.conf.d/10-a.toml", ports),
            ("etc/buildos/testd.conf.d/20-b.toml", "port.3.speed = 1\n"),
        ],
    );
    let (settings, problems) = load(&root);
    assert_eq!(
        problems,
        [
            "/etc/buildos/testd.conf.d/10-a.toml:3: port.1: is faster than grace",
            "kernel command line: port.4: is faster than grace",
        ]
    );
    assert_eq!(settings.speeds, BTreeMap::from([(2, 2), (3, 1)]));
}

#[test]
fn file_of_same_name_replaces_and_dev_null_masks() {
    let root = root(
        "",
        &[
            (
                "usr/lib/buildos/testd.conf.d/50-a.toml",
                "private = 'usr'\ncarrier.grace = 1\n",
            ),
            (
                "usr/lib/buildos/testd.conf.d/60-b.toml",
                "include = ['usr']\n",
            ),
            ("etc/buildos/testd.conf.d/50-a.toml", "private = 'etc'\n"),
        ],
    );
    symlink(
        "/dev/null",
        root.path().join("etc/buildos/testd.conf.d/60-b.toml"),
    )
    .unwrap();
    let (settings, problems) = load(&root);
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        settings,
        Settings {
            private: "etc".into(),
            ..Settings::default()
        }
    );
}

#[test]
fn invalid_key_is_named_and_others_apply() {
    let text = "# comment\nprivat = 'x'\n\n[carrier]\ngrace = 'soon'\n[bbot.default]\ncontroller = []\ncontrollers = ['http://a/']\n";
    let root = root(
        "",
        &[
            (
                "usr/lib/buildos/testd.conf.d/50-a.toml",
                "carrier.grace = 7\n",
            ),
            ("etc/buildos/testd.conf.d/50-b.toml", text),
        ],
    );
    let (settings, problems) = load(&root);
    assert_eq!(
        problems,
        [
            "/etc/buildos/testd.conf.d/50-b.toml:2: unknown key \"privat\"; the nearest valid key is \"private\"",
            "/etc/buildos/testd.conf.d/50-b.toml:5: carrier.grace: invalid type: string \"soon\", expected u32",
            "/etc/buildos/testd.conf.d/50-b.toml:7: unknown key \"bbot.default.controller\"; the nearest valid key is \"bbot.default.controllers\"",
        ]
    );
    assert_eq!(settings.grace, 7);
    assert_eq!(settings.controllers["default"], ["http://a/"]);
}

#[test]
fn chosen_name_is_validated() {
    let text = "[port.1]\nspeed = 10\n[port.one]\nspeed = 100\n[port.2]\n";
    let root = root(
        "buildos.testd.port.two.speed=1",
        &[("etc/buildos/testd.conf.d/10-a.toml", text)],
    );
    let (settings, problems) = load(&root);
    assert_eq!(
        problems,
        [
            "/etc/buildos/testd.conf.d/10-a.toml:3: port.one: invalid digit found in string",
            "kernel command line: buildos.testd.port.two.speed: invalid digit found in string",
        ]
    );
    assert_eq!(settings.speeds, BTreeMap::from([(1, 10), (2, 0)]));
}

#[test]
fn file_that_is_not_toml_is_ignored_and_others_apply() {
    let root = root(
        "",
        &[
            (
                "etc/buildos/testd.conf.d/10-a.toml",
                "private = 'a'\nprivate private\n",
            ),
            ("etc/buildos/testd.conf.d/20-b.toml", "include = ['b']\n"),
        ],
    );
    let (settings, problems) = load(&root);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with(
            "/etc/buildos/testd.conf.d/10-a.toml:2: not TOML, the whole file is ignored: "
        ),
        "{problems:?}"
    );
    assert_eq!(
        settings,
        Settings {
            include: vec!["b".into()],
            ..Settings::default()
        }
    );
}

#[test]
fn file_with_wrong_suffix_is_a_problem() {
    let root = root(
        "",
        &[("etc/buildos/testd.conf.d/10-a.conf", "private = 'a'\n")],
    );
    write(
        root.path(),
        "etc/buildos/testd.conf.d/10-a.toml.dpkg-old",
        "private = 'old'\n",
    );
    let (settings, problems) = load(&root);
    assert_eq!(
        problems,
        ["/etc/buildos/testd.conf.d/10-a.conf: ignored: its name does not end in .toml"]
    );
    assert_eq!(settings, Settings::default());
}

#[test]
fn value_on_kernel_command_line_needs_no_quotes() {
    for (cmdline, expected) in [
        ("buildos.testd.include=eth*", vec!["eth*"]),
        ("buildos.testd.include=eth0,eth1", vec!["eth0", "eth1"]),
        ("buildos.testd.include='[\"eth0\"]'", vec!["'[\"eth0\"]'"]),
        ("buildos.include=eth9", vec!["eth9"]),
    ] {
        // The kernel does not know single quotes: it removes the double quotes inside.
        let expected: Vec<String> = expected.iter().map(|e| e.replace('"', "")).collect();
        let (settings, problems) = load(&root(cmdline, &[]));
        assert_eq!(problems, [""; 0], "{cmdline}");
        assert_eq!(settings.include, expected, "{cmdline}");
    }
    // A number is a valid string.
    assert_eq!(
        load(&root("buildos.testd.private=12345", &[])).0.private,
        "12345"
    );
}

#[test]
fn invalid_key_on_kernel_command_line_is_named() {
    let (settings, problems) = load(&root(
        "buildos.testd.privte=x buildos.testd.carrier.grace=soon buildos.testd.carrier.grace=5000000000 buildos.otherd.x=1",
        &[],
    ));
    assert_eq!(
        problems,
        [
            "kernel command line: unknown key \"buildos.testd.privte\"; the nearest valid key is \"buildos.testd.private\"",
            "kernel command line: buildos.testd.carrier.grace: invalid type: string \"soon\", expected u32",
            "kernel command line: buildos.testd.carrier.grace: invalid value: integer `5000000000`, expected u32",
        ]
    );
    assert_eq!(settings, Settings::default());
}

#[test]
fn dissimilar_key_has_no_suggestion() {
    let (_, problems) = load(&root("buildos.testd.completely_different=x", &[]));
    assert_eq!(
        problems,
        ["kernel command line: unknown key \"buildos.testd.completely_different\""]
    );
}

#[test]
fn value_in_place_of_a_table_is_an_unknown_key() {
    let root = root(
        "",
        &[("etc/buildos/testd.conf.d/10-a.toml", "carrier = 3\n")],
    );
    let (_, problems) = load(&root);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].contains("unknown key \"carrier\""),
        "{problems:?}"
    );
}

#[test]
fn problem_escapes_keys_and_values_once() {
    let text = r#""a\\b" = 1
"c\u0007d" = 2
carrier.grace = 'x\y'
"#;
    let root = root("", &[("etc/buildos/testd.conf.d/a.toml", text)]);
    let (_, problems) = load(&root);
    let messages: Vec<_> = problems
        .iter()
        .map(|problem| problem.split_once(": ").unwrap().1)
        .collect();
    assert_eq!(
        messages,
        [
            r#"unknown key "a\\b""#,
            r#"unknown key "c\u{7}d""#,
            r#"carrier.grace: invalid type: string "x\\y", expected u32"#,
        ]
    );
}
