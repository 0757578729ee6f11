//! Guest memory: one anonymous mapping per range of RAM.
//! It owns how memory is mapped and what is laid over it at start. It does not know what the guest keeps where.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// The guest's memory, shared by everything that reads or writes it.
pub type Memory = Arc<GuestMemoryMmap<()>>;
