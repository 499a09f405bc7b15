//! The library of buildos-agentd.
