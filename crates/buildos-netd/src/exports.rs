//! Renders the status for programs that read files: `resolv.conf` (resolv.conf(5)),
//! `interfaces` (interfaces(5) of ifupdown) and `timesyncd.conf` (timesyncd.conf(5)).
//!
//! Links in `/etc` lead to the files in `/run/buildos/netd`. netd never reads them.

pub mod interfaces;
pub mod resolv_conf;
pub mod timesyncd;
