//! Defines the name that a client sends to servers.

/// The name in DISCOVERs and REQUESTs, which a server may enter into the DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientName {
    /// Host name (option 12).
    Host(String),
    /// Client FQDN (option 81, RFC 4702). The server completes a name without a dot.
    Fqdn(String),
}
