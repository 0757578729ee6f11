//! The commands, one file each: its arguments with their help, and what it does.
//! They share nothing here but what was typed: the work is in the modules they call.

use std::ffi::OsString;

pub mod agents;
pub mod doctor;
pub mod exec;
pub mod gateway;
pub mod ls;
pub mod policy;
pub mod ports;
pub mod resize;
pub mod rm;
pub mod run;
pub mod secret;
pub mod stats;
pub mod stop;
pub mod template;
pub mod version;
pub mod vmm;

/// What was typed besides a command's own arguments.
#[derive(Debug, Default)]
pub struct Typed {
    /// What the sandbox is to run.
    pub tail: Option<Vec<OsString>>,
    /// When this process started, by CLOCK_MONOTONIC.
    pub start_ns: u64,
}
