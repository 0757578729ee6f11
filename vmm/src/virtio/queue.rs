//! A split virtqueue as a device sees it: chains are taken out, completed, and the driver is told.
//! It owns the rules of notification in both directions. It does not interpret what a chain carries.
//! Source: virtio 1.2, 2.7 "Split Virtqueues".

use std::sync::atomic::Ordering;

use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::{BrokenQueue, Chain, Deferred, Interrupt, Memory};

/// A queue the driver has set up, with the way to interrupt it.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    interrupt: Interrupt,
}

impl Queue {
    /// `ring` has been checked by the transport to lie within guest memory.
    pub fn new(ring: Ring, interrupt: Interrupt) -> Self {
        Self { ring, interrupt }
    }

    /// False for a queue that the driver does not use.
    pub fn is_set_up(&self) -> bool {
        self.ring.ready()
    }

    /// Takes the next chain the driver has made available.
    ///
    /// # Errors
    /// When the available ring or the chain breaks the rules of the specification.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, BrokenQueue> {
        // The iterator refuses an index that is further ahead than the ring is long.
        let mut available =
            self.ring.iter(&**memory).map_err(|_| BrokenQueue("available index is ahead of the ring"))?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        Chain::new(memory, descriptors).map(Some)
    }

    /// Makes the chain taken last available again, for when it cannot be served yet.
    pub fn put_back(&mut self, chain: Chain<'_>) {
        drop(chain);
        self.ring.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with the number of bytes that were written into it.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    #[expect(clippy::needless_pass_by_value, reason = "a chain that was given back must not be used again")]
    pub fn complete(&mut self, memory: &Memory, chain: Chain<'_>) -> Result<(), BrokenQueue> {
        let written = chain.writer.written();
        self.ring
            .add_used(&**memory, chain.head(), written)
            .map_err(|_| BrokenQueue("used ring is not in memory"))
    }

    /// Gives a chain back that had been put aside, with `last` in its last writable byte.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    #[expect(clippy::needless_pass_by_value, reason = "as for `complete`")]
    pub fn complete_deferred(
        &mut self,
        memory: &Memory,
        chain: Deferred,
        last: u8,
    ) -> Result<(), BrokenQueue> {
        memory.write_obj(last, chain.last).map_err(|_| BrokenQueue("buffer is not in memory"))?;
        self.ring.add_used(&**memory, chain.head, 1).map_err(|_| BrokenQueue("used ring is not in memory"))
    }

    /// Interrupts the driver if it asked for that; called once per burst of completions.
    ///
    /// # Errors
    /// When the available ring is not in guest memory.
    pub fn notify(&mut self, memory: &Memory) -> Result<(), BrokenQueue> {
        let wanted = self
            .ring
            .needs_notification(&**memory)
            .map_err(|_| BrokenQueue("available ring is not in memory"))?;
        if wanted {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    /// Tells the driver that kicks are not needed while the device is looking at the queue anyway.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    pub fn mute_kicks(&mut self, memory: &Memory) -> Result<(), BrokenQueue> {
        self.ring.disable_notification(&**memory).map_err(|_| BrokenQueue("used ring is not in memory"))
    }

    /// Asks for kicks again. True if chains have come meanwhile, which no kick will announce.
    ///
    /// # Errors
    /// When a ring is not in guest memory.
    pub fn unmute_kicks(&mut self, memory: &Memory) -> Result<bool, BrokenQueue> {
        self.ring.enable_notification(&**memory).map_err(|_| BrokenQueue("used ring is not in memory"))
    }

    /// True when the driver has made nothing available.
    ///
    /// # Errors
    /// When the available ring is not in guest memory.
    pub fn is_empty(&self, memory: &Memory) -> Result<bool, BrokenQueue> {
        let index = self
            .ring
            .avail_idx(&**memory, Ordering::Acquire)
            .map_err(|_| BrokenQueue("available ring is not in memory"))?;
        Ok(index.0 == self.ring.next_avail())
    }
}
