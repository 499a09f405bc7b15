//! Observes the virtual machines of agents: QEMU processes in the control group of a unit.
//!
//! ```text
//!  cgroup.procs, /proc/PID, /sys/class/net --> group --> tracker --> D-Bus, journal, drain
//!                                                |
//!                                         process, qemu (parsers)
//! ```
//!
//! | file | contents |
//! |---|---|
//! | [`group`] | reads the processes of a unit |
//! | [`process`] | parses the files of a process |
//! | [`qemu`] | finds taps and consoles on the command line of QEMU |
//! | [`tracker`] | start, end and suspension of machines |
//!
//! # Limits
//!
//! agentd has no capabilities, so it reads only what every user may read. The tap of a machine is
//! the one on QEMU's command line. A machine that lives for less than the interval between two
//! observations can be missed.

pub mod group;
pub mod process;
pub mod qemu;
pub mod tracker;
