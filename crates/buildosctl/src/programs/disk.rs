//! Examines and makes the content of disks, with wipefs(8) and mkfs.btrfs(8).

use std::path::Path;
use std::process::Command;

use buildos_service::text;
use buildos_types::Escaped;
use buildos_updated::programs::capture;
use serde::Deserialize;

/// Bytes of output that are kept.
const OUTPUT: usize = 1 << 20;

/// A signature of a file system, a partition table or the like.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<Signature>,
}

fn run(
    program: &str,
    package: &'static str,
    arguments: &[&str],
    node: &Path,
) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.args(arguments).arg("--").arg(node);
    capture::output(&mut command, package, OUTPUT).map_err(|error| text::chain(&error))
}

/// Returns the signatures on a device: `ext4 "label"`, each once. Writes nothing.
pub(crate) fn signatures(node: &Path) -> Result<Vec<String>, String> {
    let arguments = ["--no-act", "--json", "--output", "TYPE,LABEL"];
    parse(&run("wipefs", "util-linux", &arguments, node)?)
}

fn parse(output: &[u8]) -> Result<Vec<String>, String> {
    if output.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let found: Signatures = serde_json::from_slice(output)
        .map_err(|error| format!("wipefs wrote something else than signatures: {error}"))?;
    let mut shown: Vec<String> = Vec::new();
    for Signature { kind, label } in found.signatures {
        let kind = Escaped::new(&kind);
        let text = match label.filter(|label| !label.is_empty()) {
            Some(label) => format!("{kind} {:?}", Escaped::new(&label).to_string()),
            None => kind.to_string(),
        };
        if !shown.contains(&text) {
            shown.push(text);
        }
    }
    Ok(shown)
}

/// Erases all signatures of a device, and lets the kernel forget its partitions.
pub(crate) fn wipe(node: &Path) -> Result<(), String> {
    run("wipefs", "util-linux", &["--all", "--quiet"], node).map(|_| ())
}

/// Makes a btrfs. Refuses a device with a signature, as a check of mkfs.btrfs.
pub(crate) fn make_btrfs(node: &Path, label: &str) -> Result<(), String> {
    let arguments = ["--quiet", "--label", label];
    run("mkfs.btrfs", "btrfs-progs", &arguments, node).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_shown_once_with_label() {
        let output = br#"{"signatures": [
            {"type": "ext4", "label": "data"}, {"type": "gpt", "label": null},
            {"type": "gpt", "label": ""}, {"type": "vfat", "label": "a\u001bb"}]}"#;
        let shown = parse(output).unwrap();
        assert_eq!(shown, ["ext4 \"data\"", "gpt", "vfat \"a\\\\u{1b}b\""]);
        assert_eq!(parse(br#"{"signatures": []}"#), Ok(Vec::new()));
        assert_eq!(parse(b"\n"), Ok(Vec::new()));
        assert!(parse(b"offset").is_err());
    }
}
