//! What an agent leaves behind when it ends: pure reading of what the tools say.
//!
//! Processes are in the control group of the unit, so none escapes. Three things
//! outlive the processes that made them:
//!
//! - a *tap* that was made with `ip tuntap add` is persistent. It belongs to the
//!   user of the agent, and it has carrier only while a machine holds it open. One
//!   without carrier is either left, or was just made by another agent of that
//!   user, whose machine opens it in a moment;
//! - a *rule* that redirects TFTP of a tap or a container's link to the agent stays
//!   in table `nat`. One whose link does not exist can serve nobody;
//! - a *namespace* that was made with `ip netns add` is a mount on a file in
//!   `/run/netns`. The mount goes with the unit's mount namespace, the file stays.

use std::collections::BTreeSet;

use serde::Deserialize;

/// A network interface, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it is a persistent tap of this user that nobody holds open.
    pub idle_tap_of: Option<String>,
}

/// Reads `ip -json -details link show`.
///
/// # Errors
///
/// It is not what iproute2 writes.
pub fn links(json: &str) -> Result<Vec<Link>, serde_json::Error> {
    let links: Vec<RawLink> = serde_json::from_str(json)?;
    Ok(links.into_iter().filter_map(RawLink::link).collect())
}

/// Names of the taps that this user left.
#[must_use]
pub fn idle_taps(links: &[Link], user: &str) -> BTreeSet<String> {
    let of_user = |link: &&Link| link.idle_tap_of.as_deref() == Some(user);
    let taps = links.iter().filter(of_user);
    taps.map(|link| link.name.clone()).collect()
}

/// What iproute2 writes of a link. Namespaces of other links are written as
/// empty objects.
#[derive(Deserialize)]
struct RawLink {
    ifname: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    linkinfo: RawInfo,
}

#[derive(Default, Deserialize)]
struct RawInfo {
    info_kind: Option<String>,
    #[serde(default)]
    info_data: RawData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawData {
    r#type: Option<String>,
    persist: bool,
    user: Option<String>,
}

impl RawLink {
    fn link(self) -> Option<Link> {
        let data = self.linkinfo.info_data;
        // A tap that is down says nothing about carrier: nobody uses that either.
        let carrier = self.flags.iter().any(|flag| flag == "LOWER_UP");
        let is_tap = self.linkinfo.info_kind.as_deref() == Some("tun")
            && data.r#type.as_deref() == Some("tap");
        let idle = is_tap && data.persist && !carrier;
        Some(Link {
            name: self.ifname?,
            idle_tap_of: data.user.filter(|_| idle),
        })
    }
}

/// Lines of `iptables-save -t nat` that redirect TFTP from a link that is none of
/// these, or no longer, as `-A …`.
#[must_use]
pub fn dangling_rules(saved: &str, links: &BTreeSet<String>) -> Vec<String> {
    let dangling = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            // "! -i link" is about all other links.
            let negated = at > 0 && words[at - 1] == "!";
            words.get(at + 1).filter(|_| !negated).copied()
        };
        let link = value("--physdev-in").or_else(|| value("-i"));
        // "tap+" is any tap.
        let gone = link.is_some_and(|link| !link.ends_with('+') && !links.contains(link));
        let redirects = matches!(value("-j"), Some("REDIRECT" | "DNAT"));
        line.starts_with("-A PREROUTING ") && redirects && value("--dport") == Some("69") && gone
    };
    saved.lines().filter(dangling).map(str::to_owned).collect()
}

/// Input of `iptables-restore --noflush` that deletes these rules.
#[must_use]
pub fn deletion(rules: &[String]) -> String {
    let mut text = String::from("*nat\n");
    for rule in rules {
        // `dangling_rules` finds nothing that begins otherwise.
        let rule = rule.strip_prefix("-A ").unwrap_or(rule);
        text.push_str(&format!("-D {rule}\n"));
    }
    text.push_str("COMMIT\n");
    text
}

/// Names below `/run/netns` that a namespace is mounted on, by a
/// `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[must_use]
pub fn mounted_namespaces(mountinfo: &str) -> BTreeSet<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let place = line.split(' ').nth(4)?;
            let place = place.strip_prefix("/run/netns/")?;
            Some(place.to_owned()).filter(|name| !name.contains('/'))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINKS: &str = r#"[{},
        {"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"linkinfo":{}},
        {"ifname":"br1","flags":["UP"],"linkinfo":{"info_kind":"bridge","info_data":{"forward_delay":0}}},
        {"ifname":"tap1","flags":["NO-CARRIER","UP"],"linkinfo":{"info_kind":"tun","info_data":{"type":"tap","persist":true,"user":"build"}}},
        {"ifname":"tap2","flags":["UP","LOWER_UP"],"linkinfo":{"info_kind":"tun","info_data":{"type":"tap","persist":true,"user":"build"}}},
        {"ifname":"tap3","flags":["NO-CARRIER"],"linkinfo":{"info_kind":"tun","info_data":{"type":"tap","persist":true,"user":"operator"}}},
        {"ifname":"tap4","flags":["NO-CARRIER"],"linkinfo":{"info_kind":"tun","info_data":{"type":"tap","persist":true}}},
        {"ifname":"tun5","flags":["NO-CARRIER"],"linkinfo":{"info_kind":"tun","info_data":{"type":"tun","persist":true,"user":"build"}}}]"#;

    #[test]
    fn only_taps_of_the_user_that_nobody_holds_are_left() {
        let links = links(LINKS).unwrap();
        assert_eq!(links.len(), 7);
        assert_eq!(idle_taps(&links, "build"), ["tap1".to_owned()].into());
        assert_eq!(idle_taps(&links, "nobody"), BTreeSet::new());
        assert!(super::links("x").is_err());
    }

    #[test]
    fn only_redirections_of_tftp_from_nowhere_are_left() {
        let left = [
            "-A PREROUTING -d 196.254.111.222/32 -p udp -m physdev --physdev-in tap7 -m udp --dport 69 -j REDIRECT --to-ports 23400",
            "-A PREROUTING -i tap8 -p udp -m udp --dport 69 -j DNAT --to-destination 172.23.0.1:23400",
        ];
        let kept = [
            "*nat",
            ":PREROUTING ACCEPT [0:0]",
            "-A PREROUTING -m physdev --physdev-in tap1 -p udp -m udp --dport 69 -j REDIRECT --to-ports 1",
            "-A PREROUTING -i tap+ -p udp -m udp --dport 69 -j REDIRECT --to-ports 1",
            "-A PREROUTING ! -i tap7 -p udp -m udp --dport 69 -j REDIRECT --to-ports 1",
            "-A PREROUTING -i tap7 -p udp -m udp --dport 69 -j ACCEPT",
            "-A PREROUTING -i tap7 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 1",
            "-A PREROUTING -p udp -m udp --dport 69 -j REDIRECT --to-ports 1",
            "-A POSTROUTING -o tap7 -j MASQUERADE",
            "-A PREROUTING -i",
            "COMMIT",
        ];
        let saved = [&left[..], &kept].concat().join("\n");
        let links = ["tap1".to_owned()].into();
        let found = dangling_rules(&saved, &links);
        assert_eq!(found, left);
        let expected = format!(
            "*nat\n-D {}\n-D {}\nCOMMIT\n",
            left[0].strip_prefix("-A ").unwrap(),
            left[1].strip_prefix("-A ").unwrap()
        );
        assert_eq!(deletion(&found), expected);
    }

    #[test]
    fn namespaces_are_mounts() {
        let text = "100 90 0:25 /netns /run/netns rw shared:5 - tmpfs tmpfs rw\n\
             101 100 0:4 net:[4026532000] /run/netns/build1 rw - nsfs nsfs rw\n\
             102 100 0:4 net:[4026532001] /run/netns/a/b rw - nsfs nsfs rw\n\
             103 100 0:4 / /proc rw - proc proc rw\n\nx\n";
        assert_eq!(mounted_namespaces(text), ["build1".to_owned()].into());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text: String) {
            let _ = links(&text);
            let _ = mounted_namespaces(&text);
            let found = dangling_rules(&text, &BTreeSet::new());
            prop_assert!(found.iter().all(|rule| rule.starts_with("-A PREROUTING ")));
        }
    }
}
