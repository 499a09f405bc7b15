//! The redirection that brings a worker's TFTP to its agent. The address that
//! workers ask is routable and nobody's; without the redirection it would go out.

use crate::sudo::{self, ToolError};
use std::net::Ipv4Addr;

/// Where workers ask for their task.
pub const TFTP_HOST: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);
/// TFTP's port.
pub const TFTP_PORT: u16 = 69;

/// A rule of iptables, as long as this lives.
#[derive(Debug)]
pub struct Redirect(String);

impl Redirect {
    /// Redirects TFTP from this link, a port of a bridge, to a port of the host.
    ///
    /// # Errors
    ///
    /// iptables cannot be run or refuses.
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

impl Drop for Redirect {
    fn drop(&mut self) {
        let _ = sudo::run(&format!("iptables --wait 30 -t nat -D {}", self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tftp_of_one_link_is_redirected() {
        assert_eq!(
            rule("tap7", 23_400),
            "PREROUTING -m physdev --physdev-in tap7 -d 196.254.111.222 -p udp --dport 69 -j REDIRECT --to-ports 23400"
        );
    }
}
