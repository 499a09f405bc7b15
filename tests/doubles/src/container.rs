//! A build machine without a machine: a process in network, mount, PID and name
//! namespaces of its own, with one link into a bridge of the host.

use crate::sudo::{self, ToolError};
use std::io;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A container. What it is made of goes with it.
#[derive(Debug)]
pub struct Container {
    name: String,
    child: Child,
    /// The program ends when this is closed: it runs as root, where we have no
    /// signals for it.
    leash: Option<ChildStdin>,
}

/// A container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Its network.
    #[error("cannot make the network of a container")]
    Network(#[from] ToolError),
    /// Its program.
    #[error("cannot run {0} in a container")]
    Start(String, #[source] io::Error),
}

/// A name that no other container or tap of this host has, of 15 characters at
/// most: it is the name of its link on the host as well.
#[must_use]
pub fn unique_name() -> String {
    let number = COUNT.fetch_add(1, Ordering::Relaxed) % 10_000;
    format!("bb{}-{number}", std::process::id())
}

/// The commands that make the network of a container.
fn network(name: &str, bridge: &str) -> [String; 5] {
    [
        format!("ip netns add {name}"),
        format!("ip link add {name} type veth peer name eth0 netns {name}"),
        format!("ip link set {name} master {bridge} up"),
        format!("ip -netns {name} link set lo up"),
        format!("ip -netns {name} link set eth0 up"),
    ]
}

impl Container {
    /// Runs `program`, which must end with its standard input, in a new container
    /// called `name` on a bridge.
    ///
    /// # Errors
    ///
    /// Its network cannot be made, or the program cannot be started.
    pub fn start(name: &str, bridge: &str, program: &[&str]) -> Result<Self, ContainerError> {
        let made = network(name, bridge)
            .iter()
            .try_for_each(|line| sudo::run(line).map(drop));
        if let Err(error) = made {
            remove(name);
            return Err(error.into());
        }
        let mut words = vec!["ip", "netns", "exec", name];
        words.extend("unshare --mount --pid --uts --fork --kill-child".split(' '));
        words.extend(["--mount-proc", "--"]);
        words.extend(program);
        let mut child = sudo::command(&words)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| {
                remove(name);
                ContainerError::Start(program.join(" "), error)
            })?;
        Ok(Self {
            name: name.to_owned(),
            leash: child.stdin.take(),
            child,
        })
    }

    /// Name of the container, and of its link on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its program ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.leash.take();
        // It ends at once, and nothing can be done if not.
        let _ = self.child.wait();
        remove(&self.name);
    }
}

/// Its link goes with the namespace. What is not there need not be removed.
fn remove(name: &str) {
    let _ = sudo::run(&format!("ip netns delete {name}"));
}

/// Ends this program, which runs in a container, when nobody holds its leash.
pub fn end_with_leash() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit() {
        let (one, two) = (unique_name(), unique_name());
        assert_ne!(one, two);
        assert!(one.len() <= 15, "{one}");
        assert!("bb4194304-9999".len() <= 15);
    }

    #[test]
    fn the_link_is_on_the_bridge() {
        let lines = network("bb1-0", "br1");
        assert!(lines.contains(&"ip link set bb1-0 master br1 up".to_owned()));
    }
}
