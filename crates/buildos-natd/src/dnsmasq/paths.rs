//! Defines the paths below the root of the files by which natd, the supervisor and
//! dnsmasq communicate.

/// The configuration that natd desires. natd writes it, the supervisor reads it.
pub const DESIRED: &str = "run/buildos/natd/dnsmasq.conf";
/// The configuration that dnsmasq runs with: the supervisor's copy of [`DESIRED`].
pub const ACTIVE: &str = "run/buildos/dnsmasq/dnsmasq.conf";
/// Exists while dnsmasq serves. dnsmasq writes it once its sockets are bound. At the end
/// dnsmasq or the supervisor removes it, or systemd if both were killed (`PIDFile=`).
pub const PID: &str = "run/buildos/dnsmasq/dnsmasq.pid";
/// Name servers that dnsmasq forwards to. dnsmasq rereads the file when natd changes it,
/// so that a new lease needs no restart.
pub const RESOLV: &str = "run/buildos/natd/resolv.conf";
/// Leases of machines; see [`crate::dnsmasq::leases`].
pub const LEASES: &str = "run/buildos/dnsmasq/leases";
