//! The library of buildos-netd.
