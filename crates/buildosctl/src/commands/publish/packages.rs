//! Compares the packages of two revisions, from dpkg's status (deb-control(5)).

use std::collections::BTreeMap;

/// Versions of installed packages by name.
pub(super) type Packages = BTreeMap<String, String>;

/// Reads the installed packages from `/var/lib/dpkg/status`.
pub(super) fn parse(status: &str) -> Packages {
    let mut packages = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field = |name: &str| {
            let mut lines = paragraph.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let installed = field("Status").is_some_and(|status| status.ends_with(" installed"));
        if let (true, Some(name), Some(version)) = (installed, field("Package"), field("Version")) {
            let foreign = field("Multi-Arch") == Some("same");
            let name = match field("Architecture").filter(|_| foreign) {
                Some(architecture) => format!("{name}:{architecture}"),
                None => name.to_owned(),
            };
            packages.insert(name, version.to_owned());
        }
    }
    packages
}

/// Returns the differences, one a line.
pub(super) fn changes(before: &Packages, after: &Packages) -> Vec<String> {
    let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
    let mut out: Vec<_> = gone
        .map(|(name, version)| format!("- {name} {version}"))
        .collect();
    for (name, version) in after {
        match before.get(name) {
            None => out.push(format!("+ {name} {version}")),
            Some(old) if old != version => out.push(format!("~ {name} {version}, was {old}")),
            Some(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(packages: &[(&str, &str, &str)]) -> Packages {
        let paragraphs = packages.iter().map(|(name, version, status)| {
            format!("Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: {version}\nDescription: x\n y: z\n\n")
        });
        parse(&paragraphs.collect::<Vec<_>>().concat())
    }

    #[test]
    fn installed_packages_are_compared() {
        let installed = "install ok installed";
        let before = status(&[
            ("gcc", "14.1", installed),
            ("tcc", "1", installed),
            ("a", "1", installed),
        ]);
        let after = status(&[
            ("a", "1", installed),
            ("clang", "19", installed),
            ("gcc", "14.2", installed),
            ("tcc", "1", "deinstall ok config-files"),
        ]);
        assert_eq!(before.len(), 3);
        assert_eq!(
            changes(&before, &after),
            ["- tcc 1", "+ clang 19", "~ gcc 14.2, was 14.1"]
        );
        assert_eq!(changes(&after, &after), [""; 0]);
    }

    #[test]
    fn architectures_of_one_package_are_different() {
        let text = "Package: libc6\nStatus: install ok installed\nMulti-Arch: same\nArchitecture: i386\nVersion: 2\n";
        assert_eq!(parse(text).into_keys().collect::<Vec<_>>(), ["libc6:i386"]);
        assert!(parse("no status").is_empty());
    }
}
