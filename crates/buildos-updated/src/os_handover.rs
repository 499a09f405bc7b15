//! Hands the host over to the operating system of the channel, and back.
//!
//! | file | does |
//! |---|---|
//! | [`hand_over`] | buildos-os-handover: verifies the new system, loads it with the running one inside |
//! | [`trial`] | buildos-os-trial: observes the new system, keeps it or returns to the previous one |
//! | [`judge`] | when a system is proven, and when the host returns; pure |
//! | [`why`] | asks buildosctl which step fails |
//! | [`command_line`] | kernel parameters of both systems; pure |
//! | [`record`] | the request, and what the previous system needs to run again; pure |
//! | [`cpio`] | writes the archive with the previous system |
//! | [`kexec`] | loads a kernel into RAM |
//! | [`files`] | the files of both programs |
//!
//! ```text
//! updated: os-request ──► buildos-os-handover ──kexec──► initrd: /run/buildos/previous
//!                                                              │
//!                  previous system ◄──kexec── not proven ── buildos-os-trial ── proven: removed
//! ```
//!
//! # Limits
//!
//! A system that panics or hangs cannot return by itself. It starts again by its boot server, a panic
//! after a minute, a hang of a system whose systemd has started by the hardware watchdog. The firmware
//! then names it ([`firmware`]).

pub mod command_line;
pub mod cpio;
pub mod files;
pub mod firmware;
pub mod hand_over;
pub mod judge;
pub mod kexec;
pub mod record;
pub mod trial;
pub mod why;
