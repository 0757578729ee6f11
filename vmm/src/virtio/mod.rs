//! Virtio devices, the transport that carries them, and what they are given.
//! A device does not know its address, its interrupt line or any other device; it gets queues when the driver
//! is ready and answers kicks. Source: Virtual I/O Device (VIRTIO) Version 1.2.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use self::chain::{Chain, Deferred, Reader, Writer};
pub use self::queue::Queue;
pub use crate::memory::Memory;

mod chain;
#[cfg(test)]
pub(crate) mod driver;
mod queue;

pub mod mmio;

pub mod balloon;
pub mod blk;
pub mod fs;
pub mod rng;
pub mod vsock;

/// The guest broke the rules of a queue: its device stops until the driver resets it
/// (virtio 1.2, 2.1.2 "Device Requirements: Device Status Field", DEVICE_NEEDS_RESET).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenQueue(pub &'static str);

/// What is fixed about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// virtio 1.2, 5 "Device Types".
    pub id: u32,
    /// Device-specific feature bits; the transport adds those of the ring.
    pub features: u64,
    /// The largest size of each queue; their number is the number of queues.
    pub queue_sizes: &'static [u16],
}

/// A virtio device. All calls come with the machine's device lock held, so none may block.
pub trait Device: Send {
    fn profile(&self) -> Profile;

    /// The device's configuration space.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver is ready: the device owns these queues until `reset`.
    fn activate(&mut self, memory: Memory, queues: Vec<Queue>);

    /// The driver has put something into queue `index`, one of the profile's.
    ///
    /// # Errors
    /// When the guest broke the queue; the device is then not called again until it is reset.
    fn kick(&mut self, index: usize) -> Result<(), BrokenQueue>;

    /// A descriptor which the event loop watches for the device: readable means `ready` is called.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor of `wake_fd` is readable.
    ///
    /// # Errors
    /// As for `kick`.
    fn ready(&mut self) -> Result<(), BrokenQueue> {
        Ok(())
    }

    /// What the device is made of may have changed on the host. The driver is not told: it reads the configuration space
    /// again when somebody tells it to.
    fn refresh(&mut self) {}

    /// The queues are gone. When this returns, nothing of the device touches guest memory any more.
    fn reset(&mut self);

    /// After a reset: nothing of the device touches its files either.
    fn is_at_rest(&self) -> bool {
        true
    }
}

/// Bits of the InterruptStatus register (virtio 1.2, 4.2.2 "MMIO Device Register Layout").
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

/// A device's way to interrupt the guest; clones share one line.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    raise: Arc<dyn Fn() + Send + Sync>,
}

impl Interrupt {
    /// `raise` sends one edge on the device's line.
    pub fn new(raise: impl Fn() + Send + Sync + 'static) -> Self {
        Self { status: Arc::default(), raise: Arc::new(raise) }
    }

    /// Tells the driver that a used ring has grown.
    pub fn used_buffer(&self) {
        self.signal(USED_BUFFER);
    }

    /// Tells the driver to look at the status register or the configuration space again.
    pub fn config_changed(&self) {
        self.signal(CONFIG_CHANGED);
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The InterruptACK register: the driver has handled `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    fn signal(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        (self.raise)();
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").field("status", &self.status).finish_non_exhaustive()
    }
}
