//! Runs a program in a container with one link to a bridge of the host.
//!
//! The container has its own network, mount, PID and UTS namespaces.

use crate::sudo::{self, ToolError};
use std::io;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A container. Dropping it stops the program and removes the network.
#[derive(Debug)]
pub struct Container {
    name: String,
    child: Child,
    /// Standard input of the program, which exits when it is closed. The program runs as
    /// root, and the agent may not send it signals.
    stdin: Option<ChildStdin>,
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The network cannot be set up.
    #[error("cannot set up the network of a container")]
    Network(#[from] ToolError),
    /// The program cannot be started.
    #[error("cannot run {0} in a container")]
    Start(String, #[source] io::Error),
}

/// Returns a name unique among the containers and taps of this host.
///
/// It is also the name of the link on the host, which limits it to 15 characters. sudo
/// permits only taps with this prefix (units/sudoers.d).
#[must_use]
pub fn unique_name() -> String {
    let number = COUNT.fetch_add(1, Ordering::Relaxed) % 10_000;
    format!("tap{}-{number}", std::process::id())
}

/// Returns the commands that set up the network of a container.
fn network_commands(name: &str, bridge: &str) -> [String; 5] {
    [
        format!("ip netns add {name}"),
        format!("ip link add {name} type veth peer name eth0 netns {name}"),
        format!("ip link set {name} master {bridge} up"),
        format!("ip -netns {name} link set lo up"),
        format!("ip -netns {name} link set eth0 up"),
    ]
}

impl Container {
    /// Runs `program` in a new container called `name` on a bridge. The program must exit
    /// at the end of its standard input.
    ///
    /// # Errors
    ///
    /// The network cannot be set up, or the program cannot be started.
    pub fn start(name: &str, bridge: &str, program: &[&str]) -> Result<Self, ContainerError> {
        let set_up = network_commands(name, bridge)
            .iter()
            .try_for_each(|line| sudo::run(line).map(drop));
        if let Err(error) = set_up {
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
            stdin: child.stdin.take(),
            child,
        })
    }

    /// Returns the name of the container and of its link on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the exit status if the program has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stdin.take();
        // The program exits at once.
        let _ = self.child.wait();
        remove(&self.name);
    }
}

/// Deletes the network namespace, and with it the link.
fn remove(name: &str) {
    let _ = sudo::run(&format!("ip netns delete {name}"));
}

/// Exits this program, which runs in a container, at the end of its standard input.
pub fn exit_at_end_of_stdin() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_names_differ_and_fit_a_link_name() {
        let (one, two) = (unique_name(), unique_name());
        assert_ne!(one, two);
        assert!(one.len() <= 15, "{one}");
        assert!("tap4194304-9999".len() <= 15);
    }

    #[test]
    fn network_commands_add_the_link_to_the_bridge() {
        let lines = network_commands("tap1-0", "br1");
        assert!(lines.contains(&"ip link set tap1-0 master br1 up".to_owned()));
    }
}
