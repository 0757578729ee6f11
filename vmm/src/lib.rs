//! The virtual machine monitor: a `Config` goes in, an `Exit` comes out.
//! It owns KVM, guest memory, the devices and the event loop of one virtual machine. It knows nothing of
//! workspaces, images, agents, terminals or what the bytes on vsock mean; everything it opens is handed to it.

pub mod config;
pub mod marks;
pub mod virtio;

mod memory;

pub use config::Config;
