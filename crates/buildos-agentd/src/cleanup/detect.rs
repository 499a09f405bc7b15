//! Detects what an agent left behind, in the output of tools. Does no I/O.
//!
//! systemd kills the processes in the control group of the unit. Three other things outlive
//! the processes that created them:
//!
//! | leftover | created with | criterion |
//! |---|---|---|
//! | tap | `ip tuntap add` | persistent, of the agent's user, without carrier |
//! | redirection of TFTP | `iptables -t nat` | its link does not exist |
//! | namespace file in `/run/netns` | `ip netns add` | not mounted in any process |
//!
//! # Limits
//!
//! A tap without carrier may belong to another agent of the same user that created it a
//! moment ago. The caller looks again before it removes anything.

use std::collections::BTreeSet;

use serde::Deserialize;

/// Network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface name.
    pub name: String,
    /// Owner, if the interface is a persistent tap that no process holds open.
    pub idle_tap_of: Option<String>,
}

/// Parses the output of `ip -json -details link show`.
///
/// # Errors
///
/// The text is not the JSON of iproute2.
pub fn links(json: &str) -> Result<Vec<Link>, serde_json::Error> {
    let links: Vec<RawLink> = serde_json::from_str(json)?;
    Ok(links.into_iter().filter_map(RawLink::link).collect())
}

/// Returns the names of idle taps of a user.
#[must_use]
pub fn idle_taps(links: &[Link], user: &str) -> BTreeSet<String> {
    let of_user = |link: &&Link| link.idle_tap_of.as_deref() == Some(user);
    let taps = links.iter().filter(of_user);
    taps.map(|link| link.name.clone()).collect()
}

/// Link in the JSON of iproute2, which also contains empty objects.
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
        // A tap that is down has no carrier flag, and is not in use either.
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

/// Returns the lines of `iptables-save -t nat` (`-A …`) that redirect TFTP from a link
/// that does not exist. `links`: existing links.
#[must_use]
pub fn dangling_rules(saved: &str, links: &BTreeSet<String>) -> Vec<String> {
    let dangling = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            // "! -i link" matches all other links.
            let negated = at > 0 && words[at - 1] == "!";
            words.get(at + 1).filter(|_| !negated).copied()
        };
        let link = value("--physdev-in").or_else(|| value("-i"));
        // "tap+" matches any tap.
        let gone = link.is_some_and(|link| !link.ends_with('+') && !links.contains(link));
        let redirects = matches!(value("-j"), Some("REDIRECT" | "DNAT"));
        line.starts_with("-A PREROUTING ") && redirects && value("--dport") == Some("69") && gone
    };
    saved.lines().filter(dangling).map(str::to_owned).collect()
}

/// Returns the input of `iptables-restore --noflush` that deletes these rules.
#[must_use]
pub fn deletion(rules: &[String]) -> String {
    let mut text = String::from("*nat\n");
    for rule in rules {
        // `dangling_rules` returns only lines with this prefix.
        let rule = rule.strip_prefix("-A ").unwrap_or(rule);
        text.push_str(&format!("-D {rule}\n"));
    }
    text.push_str("COMMIT\n");
    text
}

/// Parses `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Returns the names below
/// `/run/netns` that a namespace is mounted on.
#[must_use]
pub fn mounted_namespaces(mountinfo: &str) -> BTreeSet<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let path = line.split(' ').nth(4)?;
            let name = path.strip_prefix("/run/netns/")?;
            Some(name.to_owned()).filter(|name| !name.contains('/'))
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
    fn idle_persistent_taps_of_user_are_found() {
        let links = links(LINKS).unwrap();
        assert_eq!(links.len(), 7);
        assert_eq!(idle_taps(&links, "build"), ["tap1".to_owned()].into());
        assert_eq!(idle_taps(&links, "guest"), BTreeSet::new());
        assert!(super::links("x").is_err());
    }

    #[test]
    fn tftp_redirections_from_missing_links_are_found() {
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
    fn mounted_namespaces_are_found() {
        let text = "100 90 0:25 /netns /run/netns rw shared:5 - tmpfs tmpfs rw\n\
             101 100 0:4 net:[4026532000] /run/netns/build1 rw - nsfs nsfs rw\n\
             102 100 0:4 net:[4026532001] /run/netns/a/b rw - nsfs nsfs rw\n\
             103 100 0:4 / /proc rw - proc proc rw\n\nx\n";
        assert_eq!(mounted_namespaces(text), ["build1".to_owned()].into());
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_parsed(text: String) {
            let _ = links(&text);
            let _ = mounted_namespaces(&text);
            let found = dangling_rules(&text, &BTreeSet::new());
            prop_assert!(found.iter().all(|rule| rule.starts_with("-A PREROUTING ")));
        }
    }
}
