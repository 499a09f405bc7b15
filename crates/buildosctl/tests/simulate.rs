//! Runs `buildosctl simulate` with the descriptions in `tests/simulate` and `docs/examples`,
//! and with invalid descriptions.
//!
//! The expected output is beside each description; `BUILDOS_BLESS=1` rewrites it.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Descriptions, relative to the crate.
const HERE: &str = "tests/simulate";
const EXAMPLES: &str = "../../docs/examples";

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_buildosctl"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .unwrap()
}

fn printed(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code(),
    )
}

fn descriptions() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for directory in [HERE, EXAMPLES] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            let path = Path::new(directory).join(entry.unwrap().file_name());
            if path.extension().is_some_and(|end| end == "toml") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() >= 9, "{found:?}");
    found
}

/// Final state and hostname of each description, which `BUILDOS_BLESS` does not change.
const ENDS: [(&str, &str, Option<&str>); 20] = [
    ("three-nics", "online", Some("build-adbeefb8da")),
    ("no-server", "acquiring", None),
    ("tagged", "online", Some("build-0000000001")),
    ("slow-server", "online", Some("build-0000000001")),
    ("bootif", "online", Some("build-0000000002")),
    ("overlap", "online", Some("rack-7.farm.example.org")),
    ("excluded", "online", Some("b1.example.org")),
    ("cable-later", "online", Some("build-0000000001")),
    ("bad-servers", "online", Some("build-0000000001")),
    ("proxy-arp", "online", Some("build-0000000001")),
    ("server-ends", "acquiring", Some("build-0000000001")),
    ("provisional", "online", Some("build-0000000002")),
    ("bootif-only", "online", Some("build-0000000002")),
    (
        "no-default-route",
        "no-default-route",
        Some("build-0000000001"),
    ),
    ("gateway-silent", "online", Some("build-0000000002")),
    ("moved", "online", Some("build-0000000001")),
    ("settings", "online", Some("build-0000000001")),
    ("static", "online", Some("build-0000000002")),
    ("keep-expired", "online", Some("build-0000000001")),
    ("vlans", "online", Some("build-0000000001")),
];

#[test]
fn simulation_text_equals_expected_output() {
    for path in descriptions() {
        let path = path.to_str().unwrap();
        let (text, problems, code) = printed(&run(&["simulate", path]));
        assert_eq!((problems.as_str(), code), ("", Some(0)), "{path}");
        let kept = Path::new(HERE).join(Path::new(path).file_stem().unwrap());
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(kept)
            .with_extension("txt");
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        let kept = fs::read_to_string(&golden).unwrap();
        assert_eq!(text, kept, "{path}");
    }
}

#[test]
fn simulation_json_has_expected_state_and_hostname() {
    let mut ends = ENDS.to_vec();
    for path in descriptions() {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (json, _, code) = printed(&run(&["simulate", "--json", path.to_str().unwrap()]));
        assert_eq!(code, Some(0));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let position = ends.iter().position(|(name, ..)| *name == stem);
        let (_, state, name) = ends.swap_remove(position.expect("an end for each description"));
        assert_eq!(json["state"], state, "{stem}");
        assert_eq!(json["hostname"]["name"].as_str(), name, "{stem}");
    }
    assert!(ends.is_empty(), "{ends:?}");
}

#[test]
fn description_with_errors_is_refused_with_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    let name = path.to_str().unwrap();
    for (text, problems) in [
        (
            "[nic.enp1s0]\nmac = \"02:00:00:00:00:01\"\ncarier = false\n",
            &[
                ":3: unknown key \"nic.enp1s0.carier\"; the nearest valid key is \"nic.enp1s0.carrier\"",
            ][..],
        ),
        (
            "duration_s = -1\n[nic.enp1s0]\nmac = \"x\"\n[nic.\"a b\"]\n[server.s]\nbehaviour = \"god\"\nwithout = [300]\nvlan = 4095\noptions = { 43 = \"0\" }\n",
            &[
                ":1: duration_s: -1 is not a number of seconds from 0 to a year",
                ":3: nic.enp1s0.mac: \"x\" is not a hardware address",
                ":4: nic.a b: \"a b\" is not an interface name",
                ":6: server.s.behaviour: unknown variant `god`",
                ":7: server.s.without: invalid value: integer `300`",
                ":8: server.s.vlan: 4095 is not a VLAN from 0 to 4094",
                ":9: server.s.options: \"0\" is not an option",
            ],
        ),
        (
            "[nic.a]\n[server.s]\nsegment = \"b\"\n[neighbour.n]\n",
            &[
                ": nic.a: mac is missing",
                ": server.s: address is missing",
                ": server.s: offers is missing",
                ": server.s: no NIC is on segment \"b\"; the NICs are on lan",
                ": neighbour.n: address is missing",
            ],
        ),
        ("", &[": there is no NIC; describe one as [nic.enp1s0]"]),
        ("[nic", &[":1: not TOML"]),
    ] {
        fs::write(&path, text).unwrap();
        let (printed, errors, code) = printed(&run(&["simulate", name]));
        assert_eq!((printed.as_str(), code), ("", Some(1)), "{errors}");
        let errors: Vec<_> = errors.lines().collect();
        assert_eq!(errors.len(), problems.len(), "{errors:#?}");
        for (error, problem) in errors.iter().zip(problems) {
            assert!(error.starts_with(&format!("{name}{problem}")), "{error}");
        }
    }
    let (_, errors, code) = printed(&run(&["simulate", "nowhere.toml"]));
    assert_eq!(code, Some(1));
    assert!(errors.starts_with("cannot read nowhere.toml: "), "{errors}");
}

/// Like the daemons, the simulation uses the default for a key with an error.
#[test]
fn configuration_with_errors_is_reported_and_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    let text = "cmdline = \"buildos.netd.privat=10.0.0.1/16\"\n\
                [config]\nnatd = \"dhcp_lease_s = 1\"\nnetdd = \"\"\n\
                [nic.enp1s0]\nmac = \"02:00:00:00:00:01\"\n";
    fs::write(&path, text).unwrap();
    let (text, errors, code) = printed(&run(&["simulate", path.to_str().unwrap()]));
    assert_eq!((errors.as_str(), code), ("", Some(1)));
    let (_, errors) = text.split_once("\nErrors in the configuration\n").unwrap();
    for expected in [
        "config.netdd: is not one of netd, hostnamed, natd, agentd",
        "the nearest valid key is \"buildos.netd.private\"",
        "config.natd:1: dhcp_lease_s: 1 is not between 120",
    ] {
        assert!(errors.contains(expected), "{errors}");
    }
    assert!(text.contains("address 172.23.0.1/16"), "{text}");
}
