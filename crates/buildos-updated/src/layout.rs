//! Computes the names of subvolumes and links of machines from templates.
//!
//! ```text
//! /build/machines/VOLUME/NAME/NAME-3        {name}/{name}-{revision}   a read-only subvolume
//! /build/machines/VOLUME/NAME/NAME -> NAME-3    {name}/{name}          the link that agents use
//! ```
//!
//! Containers are at fixed places, as systemd-nspawn(1) expects them:
//!
//! ```text
//! /var/lib/machines/NAME-3
//! /var/lib/machines/NAME -> NAME-3
//! ```
//!
//! # Limits
//!
//! A path has at most one directory. It is made by root in a directory of root, so no other
//! user can replace it by a link.

use std::fmt;
use std::str::FromStr;

use buildos_channel::Name;
use buildos_channel::model::Kind;

/// The names of subvolumes and links, relative to the directory of their kind on a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Layout {
    pub subvolume: SubvolumeTemplate,
    pub link: LinkTemplate,
}

/// The template of the path of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeTemplate(String);

/// The template of the path of the link to the current revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTemplate(String);

/// A text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidTemplate {
    #[error("it has no {{{0}}}")]
    Lacks(&'static str),
    #[error("it has {{revision}}, and a link is the same for all revisions")]
    Revision,
    #[error("it is not a relative path with at most one directory, such as {{name}}/{{name}}")]
    Path,
    #[error("a file name has letters, digits, '.', '_', '+' and '-', and does not begin with '.'")]
    FileName,
}

const NAME: &str = "{name}";
const REVISION: &str = "{revision}";
/// Longest template in bytes: with two names it is still below NAME_MAX.
const LONGEST: usize = 40;

impl Layout {
    /// Returns the path of a revision.
    #[must_use]
    pub fn subvolume(&self, kind: Kind, name: &Name, revision: u64) -> String {
        match kind {
            Kind::Machine => fill(&self.subvolume.0, name.as_str(), revision),
            Kind::Container => format!("{name}-{revision}"),
        }
    }

    /// Returns the path of the link to the current revision.
    #[must_use]
    pub fn link(&self, kind: Kind, name: &Name) -> String {
        match kind {
            Kind::Machine => fill(&self.link.0, name.as_str(), 0),
            Kind::Container => name.to_string(),
        }
    }

    /// Returns the reason why the two templates do not fit together.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let (subvolume, link) = (&self.subvolume.0, &self.link.0);
        let is_directory = |a: &str, b: &str| b.split('/').next() == Some(a) && b.contains('/');
        if is_directory(link, subvolume) {
            return Some("machines.link names the directory of machines.subvolume");
        }
        if is_directory(subvolume, link) {
            return Some("machines.link is inside of machines.subvolume");
        }
        None
    }
}

/// Returns what a link at `link` has to say to name `target`; both are relative paths.
#[must_use]
pub fn relative(link: &str, target: &str) -> String {
    match (link.split_once('/'), target.split_once('/')) {
        (Some((a, _)), Some((b, rest))) if a == b => rest.to_owned(),
        (Some(_), _) => format!("../{target}"),
        (None, _) => target.to_owned(),
    }
}

fn fill(template: &str, name: &str, revision: u64) -> String {
    template
        .replace(NAME, name)
        .replace(REVISION, &revision.to_string())
}

fn check(text: &str) -> Result<(), InvalidTemplate> {
    if !text.contains(NAME) {
        return Err(InvalidTemplate::Lacks("name"));
    }
    let filled = fill(text, "x", 1);
    let parts: Vec<_> = filled.split('/').collect();
    let empty = parts.iter().any(|part| part.is_empty());
    if empty || parts.len() > 2 || text.len() > LONGEST {
        return Err(InvalidTemplate::Path);
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let is_name = |part: &&str| part.bytes().all(valid) && !part.starts_with(['.', '-']);
    match parts.iter().all(is_name) && text.matches(NAME).count() <= 2 {
        true => Ok(()),
        false => Err(InvalidTemplate::FileName),
    }
}

impl Default for SubvolumeTemplate {
    fn default() -> Self {
        Self("{name}/{name}-{revision}".to_owned())
    }
}

impl Default for LinkTemplate {
    fn default() -> Self {
        Self("{name}/{name}".to_owned())
    }
}

impl FromStr for SubvolumeTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        check(text)?;
        match text.contains(REVISION) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidTemplate::Lacks("revision")),
        }
    }
}

impl FromStr for LinkTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        check(text)?;
        match text.contains(REVISION) {
            true => Err(InvalidTemplate::Revision),
            false => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for SubvolumeTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for LinkTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_subvolume_link_and_target() {
        for (subvolume, link, path, at, target) in [
            (
                "{name}/{name}-{revision}",
                "{name}/{name}",
                "m/m-3",
                "m/m",
                "m-3",
            ),
            (
                "{name}/{name}-1.{revision}",
                "{name}/{name}-1",
                "m/m-1.3",
                "m/m-1",
                "m-1.3",
            ),
            ("{name}.{revision}", "{name}", "m.3", "m", "m.3"),
            ("all/{name}.{revision}", "{name}", "all/m.3", "m", "all/m.3"),
            ("{name}.{revision}", "now/{name}", "m.3", "now/m", "../m.3"),
            (
                "old/{name}.{revision}",
                "now/{name}",
                "old/m.3",
                "now/m",
                "../old/m.3",
            ),
        ] {
            let layout = Layout {
                subvolume: subvolume.parse().unwrap(),
                link: link.parse().unwrap(),
            };
            let name = "m".parse().unwrap();
            assert_eq!(layout.conflict(), None, "{subvolume} {link}");
            assert_eq!(layout.subvolume(Kind::Machine, &name, 3), path);
            assert_eq!(layout.link(Kind::Machine, &name), at);
            assert_eq!(relative(at, path), target);
        }
    }

    #[test]
    fn containers_are_where_systemd_nspawn_looks_for_them() {
        let layout = Layout {
            subvolume: "all/{name}.{revision}".parse().unwrap(),
            link: "now/{name}".parse().unwrap(),
        };
        let name = "debian".parse().unwrap();
        assert_eq!(layout.subvolume(Kind::Container, &name, 3), "debian-3");
        assert_eq!(layout.link(Kind::Container, &name), "debian");
    }

    #[test]
    fn bad_templates_are_refused() {
        for (text, error) in [
            ("{name}", InvalidTemplate::Lacks("revision")),
            ("m-{revision}", InvalidTemplate::Lacks("name")),
            ("/{name}-{revision}", InvalidTemplate::Path),
            ("a/b/{name}-{revision}", InvalidTemplate::Path),
            ("{name}//{revision}", InvalidTemplate::Path),
            ("../{name}-{revision}", InvalidTemplate::FileName),
            ("{name}/.{revision}", InvalidTemplate::FileName),
            ("-{name}{revision}", InvalidTemplate::FileName),
            ("{name} {revision}", InvalidTemplate::FileName),
            ("{name}{name}{name}{revision}", InvalidTemplate::FileName),
        ] {
            assert_eq!(text.parse::<SubvolumeTemplate>(), Err(error), "{text}");
        }
        assert_eq!(
            "{name}-{revision}".parse::<LinkTemplate>(),
            Err(InvalidTemplate::Revision)
        );
    }

    #[test]
    fn template_of_longest_name_is_file_name() {
        let template = format!("{{name}}{{name}}{}{{revision}}", "x".repeat(18));
        let layout = Layout {
            subvolume: template.parse().unwrap(),
            ..Layout::default()
        };
        let name: Name = "n".repeat(Name::LONGEST).parse().unwrap();
        assert!(layout.subvolume(Kind::Machine, &name, 999_999_999).len() <= 255);
    }

    #[test]
    fn link_in_the_way_of_subvolumes_is_a_conflict() {
        let layout = |subvolume: &str, link: &str| Layout {
            subvolume: subvolume.parse().unwrap(),
            link: link.parse().unwrap(),
        };
        assert!(
            layout("{name}/{name}-{revision}", "{name}")
                .conflict()
                .is_some()
        );
        assert!(layout("{name}{revision}", "{name}/x").conflict().is_none());
    }
}
