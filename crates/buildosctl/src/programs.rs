//! Runs other programs for the commands of a desk.
//!
//! | file | program |
//! |---|---|
//! | `capture` | any: bounded output, clear errors |
//! | `sqv` | sqv(1) verifies signatures |
//! | `gpg` | gpg(1) signs, and asks for the passphrase or the token itself |

pub(crate) mod capture;
pub(crate) mod gpg;
pub(crate) mod sqv;
