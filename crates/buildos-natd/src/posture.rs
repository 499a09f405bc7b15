//! Decides from the observed table whether the bridges forward.
//!
//! | table | posture | bridges |
//! |---|---|---|
//! | the desired one | open | forward |
//! | absent or different, and cannot be replaced | closed | do not forward |
//! | cannot be read | unknown | stay as they are |
//!
//! Without the table, machines would reach other networks with private and forged
//! addresses.
//!
//! While the posture is closed, a smaller table keeps the ports of the host closed
//! ([`crate::firewall::policy::closed_table`]).
//!
//! If the kernel refuses that table too, br1 passes no frame
//! ([`crate::bridge::set_closed`]): machines reach nothing.
//!
//! # Limits
//!
//! In a kernel without VLAN filtering, machines reach every port of the host then that other
//! tables do not close. The status says so. Frames for 01:80:c2:00:00:02 pass a closed bridge.

use crate::firewall::error::FirewallError;

/// What the bridges do with packets for other networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// They forward.
    Open,
    /// They do not forward.
    Closed,
}

/// Why the table is not known to be the desired one.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The table cannot be read.
    #[error(transparent)]
    Unknown(FirewallError),
    /// The table is absent or different, and was not replaced.
    #[error(transparent)]
    NotInstalled(FirewallError),
}

/// Returns the posture, or [`None`] while the table is unknown: a table that natd
/// installed before is likely still there, and connections need it.
#[must_use]
pub fn posture(table: &Result<(), TableError>) -> Option<Posture> {
    match table {
        Ok(()) => Some(Posture::Open),
        Err(TableError::NotInstalled(_)) => Some(Posture::Closed),
        Err(TableError::Unknown(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_table_known_to_be_wrong_closes() {
        assert_eq!(posture(&Ok(())), Some(Posture::Open));
        let refused = TableError::NotInstalled(FirewallError::Unstable);
        assert_eq!(posture(&Err(refused)), Some(Posture::Closed));
        let unreadable = TableError::Unknown(FirewallError::Unstable);
        assert_eq!(posture(&Err(unreadable)), None);
    }
}
