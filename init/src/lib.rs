//! The guest's own program: boots the sandbox, starts the agent's container, and serves exec.
//! It owns everything in the guest between the kernel and the command. It promises nothing to the host: whatever must
//! hold against a hostile guest is enforced on the host.
//!
//! Three processes come from it. PID 1 only reaps. Its child boots, then serves exec in one poll loop. That one's first
//! child is PID 1 of the container, which again only reaps; its others are the commands. There are no threads.
//! Where Docker is used, one more keeps its daemon; where anything connects to somewhere, one more carries that to the host.

pub mod boot;
mod plan;

mod apply;
pub mod reap;

pub mod docker;
pub mod exec;
mod grow;
pub mod housekeeping;
mod idle;
pub mod network;
pub mod power;

pub mod mark;
pub mod sys;
pub mod trust;
mod vsock;

use std::fmt::Display;

/// Tells the kernel's log, which fd 2 is in a guest, and with that whoever looks for a reason on the host.
pub fn log(message: impl Display) {
    // One write is one record; level 3 ("error") is what reaches the host even with a quiet console.
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("<3>init: {message}\n").as_bytes());
}
