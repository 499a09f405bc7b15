//! Stand-ins for bbot-agent and bslave.
