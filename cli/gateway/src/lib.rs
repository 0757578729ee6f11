//! `coracle gateway`: the only way from a sandbox to a network.
//! It owns what may be reached (policy), how (streams, names, published ports) and with whose credentials (interception). It
//! knows nothing of KVM, and believes nothing that the guest says.

pub mod agent;
pub mod credentials;
pub mod dns;
pub mod handover;
pub mod intercept;
pub mod log;
mod machine;
pub mod names;
pub mod policy;
pub mod ports;
pub mod resolve;
pub mod supervisor;
pub mod worker;
