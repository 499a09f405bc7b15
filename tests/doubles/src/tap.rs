//! Creates the tap of a virtual build machine on a bridge.

use crate::sudo::{self, ToolError};

/// A persistent tap. Dropping it deletes the tap.
///
/// If the program is killed, the tap remains.
#[derive(Debug)]
pub struct Tap(String);

impl Tap {
    /// Creates a tap that this program's user may open, and adds it to a bridge.
    ///
    /// # Errors
    ///
    /// The tap cannot be created or added to the bridge.
    pub fn new(name: &str, bridge: &str) -> Result<Self, ToolError> {
        let user = sudo::user()?;
        sudo::run(&format!("ip tuntap add {name} mode tap user {user}"))?;
        // An error below drops and thus deletes the tap.
        let tap = Self(name.to_owned());
        sudo::run(&format!("ip link set {name} master {bridge} up"))?;
        Ok(tap)
    }

    /// Returns the name of the tap.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = sudo::run(&format!("ip tuntap del {} mode tap", self.0));
    }
}
