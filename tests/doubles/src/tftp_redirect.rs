//! Redirects a worker's TFTP to its agent with an iptables rule.
//!
//! Workers send to a fixed routable address that no host has. Without the redirection
//! the packets would leave by the default route.

use crate::sudo::{self, ToolError};
use std::net::Ipv4Addr;

/// Address to which workers send their requests.
pub const TFTP_HOST: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);
/// Port of TFTP.
pub const TFTP_PORT: u16 = 69;

/// A redirection. Dropping it deletes the iptables rule.
#[derive(Debug)]
pub struct TftpRedirect(String);

impl TftpRedirect {
    /// Redirects TFTP from this link, a port of a bridge, to a port of the host.
    ///
    /// # Errors
    ///
    /// iptables cannot be executed or fails.
    pub fn new(link: &str, port: u16) -> Result<Self, ToolError> {
        let rule = rule(link, port);
        sudo::run(&format!("iptables --wait 30 -t nat -A {rule}"))?;
        Ok(Self(rule))
    }
}

fn rule(link: &str, port: u16) -> String {
    format!(
        "PREROUTING -m physdev --physdev-in {link} -d {TFTP_HOST} -p udp --dport {TFTP_PORT} \
         -j REDIRECT --to-ports {port}"
    )
}

impl Drop for TftpRedirect {
    fn drop(&mut self) {
        let _ = sudo::run(&format!("iptables --wait 30 -t nat -D {}", self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_redirects_tftp_of_one_link() {
        assert_eq!(
            rule("tap7", 23_400),
            "PREROUTING -m physdev --physdev-in tap7 -d 196.254.111.222 -p udp --dport 69 -j REDIRECT --to-ports 23400"
        );
    }
}
