//! Renders `resolv.conf` (resolv.conf(5)).

use buildos_dhcp::Lease;

use crate::status::Status;

/// Limit of name servers that glibc uses (`MAXNS`).
const NAME_SERVERS: usize = 3;

/// Returns the content of the file.
#[must_use]
pub fn render(status: &Status) -> String {
    let is_configured = status.lease.as_ref().is_some_and(Lease::is_configured);
    let source = match is_configured {
        true => "static address",
        false => "DHCP lease",
    };
    let mut out = format!("# Made by buildos-netd from the {source} of br0; changes are lost.\n");
    let Some(lease) = &status.lease else {
        out.push_str("# There is no lease now.\n");
        return out;
    };
    for (i, server) in lease.dns.iter().enumerate() {
        if i >= NAME_SERVERS {
            out.push_str("# not used, too many: ");
        }
        out.push_str(&format!("nameserver {server}\n"));
    }
    let domains = status.search_domains();
    if !domains.is_empty() {
        out.push_str(&format!("search {}\n", domains.join(" ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{offline, online};

    #[test]
    fn resolv_conf_has_servers_and_domains_of_lease() {
        assert_eq!(
            render(&online()),
            "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n\
             nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org\n"
        );
        assert!(!render(&offline()).contains("\nnameserver"));
    }

    #[test]
    fn resolv_conf_fourth_name_server_is_comment() {
        let mut status = online();
        let lease = status.lease.as_mut().unwrap();
        lease.dns = (1..5).map(|i| [192, 0, 2, i].into()).collect();
        lease.search = vec!["a.example".into(), "b.example".into()];
        let text = render(&status);
        assert!(
            text.contains("\n# not used, too many: nameserver 192.0.2.4\n"),
            "{text}"
        );
        assert!(text.contains("\nsearch a.example b.example\n"), "{text}");
    }
}
