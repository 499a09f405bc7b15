//! The link of a virtual build machine: a tap that is a port of a bridge.

use crate::sudo::{self, ToolError};

/// A tap. It goes with this, and stays when the program is killed: the kernel keeps
/// it for whoever opens it next.
#[derive(Debug)]
pub struct Tap(String);

impl Tap {
    /// Makes a tap that this program's user may open, on a bridge.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn new(name: &str, bridge: &str) -> Result<Self, ToolError> {
        let user = sudo::user()?;
        sudo::run(&format!("ip tuntap add {name} mode tap user {user}"))?;
        // From here on it is removed, whatever happens.
        let tap = Self(name.to_owned());
        sudo::run(&format!("ip link set {name} master {bridge} up"))?;
        Ok(tap)
    }

    /// Its name.
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
