//! The virtual machine monitor: a `Config` goes in, an `Exit` comes out.
//! It owns KVM, guest memory, the devices and the event loop of one virtual machine. It knows nothing of
//! workspaces, images, agents, terminals or what the bytes on vsock mean; everything it opens is handed to it.
//! The modules are listed in reading order.

pub mod config;
mod descriptors;
pub mod layout;
mod vm;

mod boot;
mod memory;

mod event_loop;
mod machine;
mod vcpu;

mod console;
mod ioapic;
pub mod virtio;

pub mod marks;
mod probe;
mod signals;

pub use config::Config;
pub use event_loop::BOOT_TIMEOUT;
pub use machine::Exit;
pub use probe::{Probe, probe};
pub use virtio::fs::has_jail;
pub use vm::{End, Error, Vm};
