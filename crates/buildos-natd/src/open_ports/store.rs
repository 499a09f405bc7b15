//! Keeps the open ports in a file in `/run` for the next natd of this boot.

use std::path::Path;

use buildos_service::{file, text};

use super::OpenPorts;
use crate::open_port::OpenPort;

/// The open ports, as JSON.
const FILE: &str = "run/buildos/natd/open-ports.json";
/// Limit of that file, bytes.
const LIMIT: usize = 64 << 10;

/// Returns the open ports that an earlier natd wrote below `root`.
#[must_use]
pub fn read(root: &Path) -> OpenPorts {
    let text = file::read_bounded(&root.join(FILE), LIMIT).ok();
    let open = text.and_then(|text| serde_json::from_slice::<Vec<OpenPort>>(&text).ok());
    OpenPorts::resume(open.unwrap_or_default())
}

/// Writes the open ports.
pub fn write(root: &Path, ports: &OpenPorts) {
    let text = serde_json::to_vec(ports.list()).unwrap_or_default();
    if let Err(error) = file::replace(&root.join(FILE), &text, 0o640) {
        tracing::warn!("{}", text::chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn written_ports_are_read_again() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path()), OpenPorts::default());
        std::fs::create_dir_all(root.path().join("run/buildos/natd")).unwrap();
        let ports = OpenPorts::resume(vec![OpenPort {
            outside: 61_000,
            link: "tap0".to_owned(),
            index: 7,
            address: [172, 23, 0, 9].into(),
            port: 22,
            until: Duration::from_millis(1500),
            until_usec: 1,
        }]);
        write(root.path(), &ports);
        assert_eq!(read(root.path()), ports);
        std::fs::write(root.path().join(FILE), "nonsense").unwrap();
        assert_eq!(read(root.path()), OpenPorts::default());
    }
}
