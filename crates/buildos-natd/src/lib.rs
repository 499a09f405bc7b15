//! The library of buildos-natd.
