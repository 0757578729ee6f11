//! The driver's side of a virtqueue, for the tests of devices: it offers chains and takes back used ones, with the
//! notification rules of EVENT_IDX. The mock of virtio-queue does not wrap around its rings; this does.
//! It does not know what a chain carries, and it can be told to offer chains no driver may offer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Interrupt, Memory, Queue};

/// Every descriptor has a buffer of its own: a vsock packet of the largest size fits.
pub const BUFFER_SIZE: u64 = 0x1_1000;
/// What the rings of one queue take, at most; the buffers come behind.
const RINGS_SIZE: u64 = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub struct Driver {
    memory: Memory,
    base: u64,
    size: u16,
    available: u16,
    seen: u16,
    /// Kicks are asked for up to here.
    kicked: u16,
    free: Vec<u16>,
    /// By head: the descriptors, and of those the ones the device may write to.
    chains: Vec<Vec<(u16, u32, bool)>>,
    /// The last byte the device could write in the chain taken back last.
    pub last: u8,
    pub interrupts: Arc<AtomicU32>,
}

/// Memory for `queues` drivers of at most `size` descriptors each.
pub fn memory(queues: u64, size: u16) -> Memory {
    let length = usize::try_from(queues * span(size)).unwrap();
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).unwrap())
}

fn span(size: u16) -> u64 {
    RINGS_SIZE + u64::from(size) * BUFFER_SIZE
}

impl Driver {
    /// The driver of queue `index` of a device, and the queue for the device.
    pub fn new(memory: &Memory, index: u64, size: u16) -> (Self, Queue) {
        let base = index * span(size);
        let interrupts = Arc::new(AtomicU32::new(0));
        let driver = Self {
            memory: Arc::clone(memory),
            base,
            size,
            available: 0,
            seen: 0,
            kicked: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); size.into()],
            last: 0,
            interrupts: Arc::clone(&interrupts),
        };
        memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
        let mut ring = Ring::new(size).unwrap();
        ring.try_set_desc_table_address(GuestAddress(base)).unwrap();
        ring.try_set_avail_ring_address(GuestAddress(driver.avail(0))).unwrap();
        ring.try_set_used_ring_address(GuestAddress(driver.used(0))).unwrap();
        ring.set_event_idx(true);
        ring.set_ready(true);
        assert!(ring.is_valid(&**memory));
        let interrupt = Interrupt::new(move || {
            interrupts.fetch_add(1, Ordering::SeqCst);
        });
        (driver, Queue::new(ring, interrupt))
    }

    /// How many descriptors are not in use.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Where the buffer of descriptor `index` is.
    pub fn buffer(&self, index: u16) -> GuestAddress {
        GuestAddress(self.base + RINGS_SIZE + u64::from(index) * BUFFER_SIZE)
    }

    /// Offers a chain of buffers with these bytes and then of buffers with these sizes. Returns its head.
    pub fn offer(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let count = readable.len() + writable.len();
        let indices: Vec<u16> = self.free.drain(..count).collect();
        let mut chain = Vec::new();
        for (n, index) in indices.iter().enumerate() {
            let (length, write) = match readable.get(n) {
                Some(bytes) => (u32::try_from(bytes.len()).unwrap(), false),
                None => (writable[n - readable.len()], true),
            };
            assert!(u64::from(length) <= BUFFER_SIZE);
            if let Some(bytes) = readable.get(n) {
                self.memory.write_slice(bytes, self.buffer(*index)).unwrap();
            }
            let next = indices.get(n + 1).copied();
            let flags = if write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.describe(*index, self.buffer(*index).0, length, flags, next.unwrap_or(0));
            chain.push((*index, length, write));
        }
        self.chains[usize::from(indices[0])] = chain;
        self.publish(indices[0]);
        indices[0]
    }

    /// Writes one descriptor, whatever it says.
    pub fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(self.base + 16 * u64::from(index))).unwrap();
    }

    /// Makes a head available.
    pub fn publish(&mut self, head: u16) {
        self.write(self.avail(4 + 2 * u64::from(self.available % self.size)), head);
        self.available = self.available.wrapping_add(1);
        self.write(self.avail(2), self.available);
    }

    /// Whether the device asked for a kick about what was offered since the last call.
    pub fn wants_kick(&mut self) -> bool {
        let event = self.read(self.used(4 + 8 * u64::from(self.size)));
        let old = std::mem::replace(&mut self.kicked, self.available);
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
    }

    /// The next used chain: its head and what was written into it.
    pub fn take_used(&mut self) -> Option<(u16, Vec<u8>)> {
        if self.read(self.used(2)) == self.seen {
            return None;
        }
        let element = self.used(4 + 8 * u64::from(self.seen % self.size));
        let head = self.read(element);
        let mut left: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        // Asks for an interrupt about the next one.
        self.write(self.avail(4 + 2 * u64::from(self.size)), self.seen);
        let mut bytes = Vec::new();
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(!chain.is_empty(), "used twice, or never offered");
        for (index, length, write) in chain {
            self.free.push(index);
            if write {
                let mut part = vec![0; left.min(length) as usize];
                self.memory.read_slice(&mut part, self.buffer(index)).unwrap();
                left -= left.min(length);
                bytes.extend(part);
                if length > 0 {
                    let end = self.buffer(index).0 + u64::from(length);
                    self.last = self.memory.read_obj(GuestAddress(end - 1)).unwrap();
                }
            }
        }
        assert_eq!(left, 0, "more was written than there was room for");
        Some((head, bytes))
    }

    /// Counts what the device has published as used, at any time.
    pub fn used_count(&self) -> impl Fn() -> u16 + Send + 'static {
        let (memory, address) = (Arc::clone(&self.memory), GuestAddress(self.used(2)));
        move || memory.read_obj(address).unwrap()
    }

    fn avail(&self, offset: u64) -> u64 {
        self.base + 16 * u64::from(self.size) + offset
    }

    fn used(&self, offset: u64) -> u64 {
        // The available ring is 6 bytes and 2 for each descriptor; the used ring is aligned to 4.
        self.avail((6 + 2 * u64::from(self.size)).next_multiple_of(4)) + offset
    }

    fn read(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn write(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }
}
