//! Compares generated files with the code, or writes them for `docs/generate-buildosctl`.

use std::fs;
use std::path::Path;

/// Asserts that a file of the tree has this content, or writes it if the environment
/// variable `BUILDOS_BLESS` is set.
pub(crate) fn compare(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    if std::env::var_os("BUILDOS_BLESS").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not up to date; run docs/generate-buildosctl",
        path.display()
    );
}
