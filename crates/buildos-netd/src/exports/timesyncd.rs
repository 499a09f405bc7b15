//! Renders `timesyncd.conf`, a drop-in for systemd-timesyncd (timesyncd.conf(5)).

use crate::status::Status;

/// Returns the content of the file, with the time servers of the lease before the configured
/// ones. Returns [`None`] without a lease: the former file stays, as its servers probably
/// still work.
#[must_use]
pub fn render(status: &Status) -> Option<String> {
    let lease = status.lease.as_ref()?;
    let mut out =
        "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n".to_owned();
    if lease.ntp.is_empty() {
        out.push_str("# The lease names no time server.\n");
    } else {
        let servers: Vec<_> = lease.ntp.iter().map(ToString::to_string).collect();
        // The empty assignment clears the servers of earlier files.
        out.push_str(&format!("[Time]\nNTP=\nNTP={}\n", servers.join(" ")));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{offline, online};

    #[test]
    fn timesyncd_conf_has_time_servers_of_lease() {
        let mut status = online();
        let lease = status.lease.as_mut().unwrap();
        lease.ntp = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        assert_eq!(
            render(&status).unwrap(),
            "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n\
             [Time]\nNTP=\nNTP=192.0.2.1 192.0.2.2\n"
        );
        status.lease.as_mut().unwrap().ntp.clear();
        let text = render(&status).unwrap();
        assert!(!text.contains("NTP="), "{text}");
        assert_eq!(render(&offline()), None);
    }
}
