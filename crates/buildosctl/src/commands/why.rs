//! `buildosctl why`: finds the reason why this host does not build.
//!
//! A build needs the steps of a chain, in order. The first failed step is the answer,
//! because the later steps depend on it. A failed step is only a remark if an agent runs
//! without it: a slave on br0, for example, needs no NAT.
//!
//! | file | subject |
//! |---|---|
//! | `chain` | checks the steps in order |
//! | `network` | steps from the daemons to NAT |
//! | `agents` | steps from the clock to the controllers |
//! | `step` | the steps, and the result of checking one |
//! | `agent_state` | evaluates states and missing requirements of agents |
//! | `verdict` | the answer as text and JSON |

mod agent_state;
mod agents;
mod chain;
mod network;
mod step;
#[cfg(test)]
mod tests;
mod verdict;

pub(crate) use chain::judge;
#[cfg(test)]
pub(crate) use verdict::Verdict;
