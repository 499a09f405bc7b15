//! The library of buildos-hostnamed.
