//! The lab suite: Coracle as its users have it, on a KVM that runs an unmodified kernel. `tests/lab/runner` brings this
//! program to one. A module per topic, all in one program so that the lab is booted once; their order is that of
//! libtest, by name, so the long ones begin early.

mod bad_input;
mod churn;
mod clients;
mod coherence;
mod crash;
mod credentials;
mod disk;
mod docker;
mod docker_network;
mod hangs;
mod hostile;
mod lifecycle;
mod memory;
mod network;
mod ports;
mod posix;
mod run;
mod sizes;
mod software;
mod ssh_agent;
mod templates;
mod terminal;
mod workspace;
