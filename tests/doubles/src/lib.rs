//! Implements stand-ins for bbot-agent and bslave.
//!
//! Debian has neither program. Both build in machines and need a controller on the
//! Internet. The stand-ins take the same command lines and behave the same towards the
//! host: they start, poll their controllers, log, and end on SIGTERM.
//!
//! The agent builds small C programs. Each task has its own worker ([`worker`]) in its
//! own build machine ([`build_machine`]), in QEMU or in a container. The worker gets its
//! task by TFTP ([`tftp`]) through a redirection ([`tftp_redirect`]).

pub mod agent;
pub mod agent_key;
pub mod auxiliary;
pub mod build_machine;
pub mod command_line;
pub mod container;
pub mod controller;
pub mod controller_client;
pub mod faults;
pub mod initramfs;
pub mod log;
pub mod login;
pub mod machine_list;
pub mod manifest;
pub mod program_path;
pub mod running_tasks;
pub mod shutdown;
pub mod snapshot;
pub mod sudo;
pub mod tap;
pub mod tftp;
pub mod tftp_redirect;
pub mod udhcpc;
pub mod virtual_machine;
pub mod worker;
