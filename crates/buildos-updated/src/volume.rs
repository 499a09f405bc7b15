//! Contains the helpers of machine volumes, which run as root.
//!
//! | file | does |
//! |---|---|
//! | [`mount`] | buildos-machine-volumes: mounts volumes |
//! | [`ram`] | buildos-machine-ram: makes a volume in RAM |
//! | `mount_point` | opens the directories for mounts, and follows no link there |
//! | [`place`] | buildos-machine-place: places and removes machines |
//! | [`stream`] | the pieces of a machine in the spool, verified before they are used |
//! | [`tree`] | the directories of a volume, and the records of what was placed |
//! | [`holders`] | finds subvolumes that processes use |
//! | [`account`] | user and group ids |
//!
//! ```text
//! /run/buildos/machine-volumes/NAME          the volume; only root can enter the directory above
//!   machines/  bound to /build/machines/NAME      machines of agents
//!   spool/     bound to /run/buildos/spool/NAME   pieces, of buildos-updated
//!   staging/                                      what is not whole yet
//!   records/NAME/REVISION                         what was placed, and its content id
//!   records/accepted                              serial of the channel
//! ```

pub mod account;
pub mod holders;
pub mod mount;
mod mount_point;
pub mod place;
pub mod ram;
pub mod stream;
pub mod tree;
