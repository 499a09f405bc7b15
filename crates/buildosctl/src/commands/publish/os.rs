//! Publishes the two files of an operating system into the draft.
//!
//! Objects are never removed, so hosts find the pair that they run: without it they take no other.

use std::path::{Path, PathBuf};

use buildos_channel::model::{Object, Os};
use buildos_channel::{Digest, Name, write};
use buildos_updated::os::memory::LARGEST_PAIR;

use super::place::Place;
use super::size::size;
use super::{objects, tree};
use crate::files::{read_text, replace};

/// Files of image/build.
const IMAGE: &str = "buildos-image";
const INITRD: &str = "buildos-initrd";
const SUMS: &str = "SHA256SUMS";
const MANIFEST: &str = "buildos.manifest";
/// Bytes of a text of image/build.
const TEXT: usize = 1 << 20;
/// Digits of the initrd's digest in a version: the same packages give different files.
const DIGITS: usize = 8;

/// An operating system to publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Directory that image/build made.
    pub(crate) directory: PathBuf,
    /// Version; by default that of the package `buildos`, and the digest of the initrd.
    pub(crate) version: Option<Name>,
}

/// Publishes an operating system and returns what changed.
pub(super) fn publish(place: &Place, source: &Source) -> Result<String, String> {
    let mut draft = tree::draft(place)?;
    let sums = read_text(&source.directory.join(SUMS), TEXT)?;
    let image = file(place, source, IMAGE, &sums)?;
    let initrd = file(place, source, INITRD, &sums)?;
    let bytes = image.size.saturating_add(initrd.size);
    if bytes > LARGEST_PAIR {
        return Err(format!(
            "the two files have {}; hosts take at most {}",
            size(bytes),
            size(LARGEST_PAIR)
        ));
    }
    let version = match &source.version {
        Some(version) => version.clone(),
        None => version(
            &read_text(&source.directory.join(MANIFEST), TEXT)?,
            &initrd.sha256,
        )?,
    };
    let os = Os {
        version,
        image,
        initrd,
    };
    let is_same = draft.os.as_ref() == Some(&os);
    let line = format!("os {}: {} for each host\n", os.version, size(bytes));
    draft.os = Some(os);
    replace(&place.draft(), write::text(&draft).as_bytes())?;
    Ok(match is_same {
        true => format!("the draft has it already: {line}"),
        false => line,
    })
}

/// Returns the version that a manifest gives.
fn version(manifest: &str, initrd: &Digest) -> Result<Name, String> {
    let mut lines = manifest.lines();
    let package = lines.find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("buildos"))
            .then(|| words.next())
            .flatten()
    });
    let package = package.ok_or_else(|| {
        format!("{MANIFEST} does not have the package buildos: name the version with --name")
    })?;
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "._+-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let package: String = package.chars().map(allowed).collect();
    let digits: String = initrd.to_string().chars().take(DIGITS).collect();
    let version = format!("{package}.{digits}");
    version
        .parse()
        .map_err(|error| format!("version {version:?}: {error}"))
}

/// Stores a file as an object, if it has the digest of its checksum.
fn file(place: &Place, source: &Source, name: &str, sums: &str) -> Result<Object, String> {
    let mut lines = sums.lines().filter_map(|line| line.split_once("  "));
    let sum = lines.find(|(_, of)| *of == name);
    let (sum, _) = sum.ok_or_else(|| format!("{SUMS} does not have {name}"))?;
    store(&place.tree, &source.directory.join(name), sum)
}

/// Copies a file with the digest `sum` into the objects of a tree.
fn store(tree: &Path, path: &Path, sum: &str) -> Result<Object, String> {
    objects::copy(tree, path, |sha256| match sum.parse() == Ok(*sha256) {
        true => Ok(()),
        false => Err(format!(
            "{} does not match {SUMS}: copy it again",
            path.display()
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Desk {
        _directory: tempfile::TempDir,
        place: Place,
        source: Source,
    }

    fn desk() -> Desk {
        let directory = tempfile::tempdir().unwrap();
        let place = Place {
            tree: directory.path().join("www"),
            channel: "stable".parse().unwrap(),
        };
        tree::init(&place).unwrap();
        let image = directory.path().join("image");
        fs::create_dir(&image).unwrap();
        fs::write(image.join(IMAGE), "kernel").unwrap();
        fs::write(image.join(INITRD), "initrd").unwrap();
        let sums = format!(
            "{}  {IMAGE}\n{}  {INITRD}\n",
            Digest::of(b"kernel"),
            Digest::of(b"initrd")
        );
        fs::write(image.join(SUMS), sums).unwrap();
        fs::write(
            image.join(MANIFEST),
            "adduser 3 all x 1\nbuildos 1:0.1~rc-1 amd64 x 1\n",
        )
        .unwrap();
        let source = Source {
            directory: image,
            version: None,
        };
        Desk {
            _directory: directory,
            place,
            source,
        }
    }

    #[test]
    fn pair_is_in_the_draft_and_its_objects_in_the_tree() {
        let desk = desk();
        let said = publish(&desk.place, &desk.source).unwrap();
        let digits = &Digest::of(b"initrd").to_string()[..DIGITS];
        assert_eq!(
            said,
            format!("os 1_0.1_rc-1.{digits}: 12 B for each host\n")
        );
        let draft = tree::draft(&desk.place).unwrap();
        assert_eq!(draft.os.as_ref().unwrap().image.size, 6);
        assert_eq!(objects::faults(&desk.place.tree, &draft), [""; 0]);
        let again = publish(&desk.place, &desk.source).unwrap();
        assert!(again.starts_with("the draft has it already"), "{again}");
        let named = Source {
            directory: desk.source.directory.clone(),
            version: Some("12.5".parse().unwrap()),
        };
        assert!(
            publish(&desk.place, &named)
                .unwrap()
                .starts_with("os 12.5:")
        );
        assert_eq!(
            fs::read_dir(desk.place.tree.join("objects"))
                .unwrap()
                .count(),
            2
        );
    }

    #[test]
    fn former_pairs_stay() {
        let desk = desk();
        for version in ["1", "2", "3", "4"] {
            let initrd = desk.source.directory.join(INITRD);
            fs::write(&initrd, version).unwrap();
            let (image, initrd) = (Digest::of(b"kernel"), Digest::of(version.as_bytes()));
            let sums = format!("{image}  {IMAGE}\n{initrd}  {INITRD}\n");
            fs::write(desk.source.directory.join(SUMS), sums).unwrap();
            publish(&desk.place, &desk.source).unwrap();
        }
        assert_eq!(
            fs::read_dir(desk.place.tree.join("objects"))
                .unwrap()
                .count(),
            5
        );
    }

    #[test]
    fn file_that_differs_from_its_checksum_is_refused() {
        let desk = desk();
        fs::write(desk.source.directory.join(INITRD), "other").unwrap();
        let error = publish(&desk.place, &desk.source).unwrap_err();
        assert!(
            error.ends_with("buildos-initrd does not match SHA256SUMS: copy it again"),
            "{error}"
        );
        let stored = objects::path(&desk.place.tree, &Digest::of(b"other"));
        assert!(!stored.exists());
        fs::write(desk.source.directory.join(SUMS), "").unwrap();
        let error = publish(&desk.place, &desk.source).unwrap_err();
        assert_eq!(error, "SHA256SUMS does not have buildos-image");
        assert_eq!(tree::draft(&desk.place).unwrap().os, None);
    }
}
