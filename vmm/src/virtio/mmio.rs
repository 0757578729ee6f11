//! The virtio-mmio transport: the register file and the driver's way through the device status.
//! It owns features, queue set-up and interrupt acknowledgement of one device. It does not know its address.
//! Source: virtio 1.2, 4.2.2 "MMIO Device Register Layout" and 3.1 "Device Initialization".

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::GuestAddress;

use super::{BrokenQueue, Device, Interrupt, Memory, Profile, Queue};
use crate::memory;

const VENDOR_ID: u32 = u32::from_le_bytes(*b"CRCL");
const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// A device with its registers.
pub struct Mmio<D: Device + ?Sized> {
    registers: Registers,
    pub device: Box<D>,
}

struct Registers {
    profile: Profile,
    memory: Memory,
    interrupt: Interrupt,
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue_select: usize,
    rings: Vec<Ring>,
}

impl<D: Device + ?Sized> Mmio<D> {
    pub fn new(device: Box<D>, memory: Memory, interrupt: Interrupt) -> Self {
        let registers = Registers::new(device.profile(), memory, interrupt);
        Self { registers, device }
    }

    /// The driver reads `data.len()` bytes at `offset`. What is no register reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        const CONFIG: u64 = 0x100;
        if let Some(at) = offset.checked_sub(CONFIG) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            data.fill(0);
            for (byte, value) in data.iter_mut().zip(self.device.config().get(at..).unwrap_or_default()) {
                *byte = *value;
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) {
            *word = self.registers.read(offset).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    /// The driver writes at `offset`. What is no register, or not allowed at this point, is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        const QUEUE_NOTIFY: u64 = 0x50;
        const STATUS: u64 = 0x70;
        // The configuration spaces of our devices are read-only, and registers are 32 bits wide.
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        match offset {
            QUEUE_NOTIFY => self.notify(value),
            STATUS => self.set_status(value),
            _ => self.registers.write(offset, value),
        }
    }

    /// The event loop saw the device's wake descriptor readable.
    pub fn ready(&mut self) {
        if self.registers.is_live() {
            let result = self.device.ready();
            self.registers.check(result);
        }
    }

    fn notify(&mut self, index: u32) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if self.registers.is_live() && index < self.registers.rings.len() {
            let result = self.device.kick(index);
            self.registers.check(result);
        }
    }

    /// The driver may take these steps, each once and in this order; a write of zero resets from anywhere
    /// (2.1 "Device Status Field").
    fn set_status(&mut self, status: u32) {
        const STEPS: [(u32, u32); 4] = [
            (0, ACKNOWLEDGE),
            (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
            (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
            (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
        ];
        if status == 0 {
            return self.reset();
        }
        if !STEPS.contains(&(self.registers.status, status)) {
            return;
        }
        let newest = self.registers.status ^ status;
        if newest == FEATURES_OK && !self.registers.features_are_acceptable() {
            return;
        }
        self.registers.status = status;
        if newest == DRIVER_OK {
            match self.registers.take_queues() {
                Ok(queues) => self.device.activate(self.registers.memory.clone(), queues),
                Err(broken) => self.registers.check(Err(broken)),
            }
        }
    }

    /// As if the driver had asked for it.
    pub fn reset(&mut self) {
        if self.registers.status & DRIVER_OK != 0 {
            self.device.reset();
        }
        let Registers { profile, memory, interrupt, .. } = &self.registers;
        interrupt.acknowledge(u32::MAX);
        self.registers = Registers::new(*profile, memory.clone(), interrupt.clone());
    }
}

impl Registers {
    fn new(profile: Profile, memory: Memory, interrupt: Interrupt) -> Self {
        let ring = |size: &u16| Ring::new(*size).expect("profiles have powers of two up to 32768");
        Self {
            profile,
            memory,
            interrupt,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue_select: 0,
            rings: profile.queue_sizes.iter().map(ring).collect(),
        }
    }

    fn offered(&self) -> u64 {
        self.profile.features | VERSION_1 | INDIRECT_DESC | EVENT_IDX
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    /// The driver is running and the device has its queues.
    fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Stops the device if the guest broke a queue, and tells the driver so.
    fn check(&mut self, result: Result<(), BrokenQueue>) {
        if result.is_err() {
            self.status |= NEEDS_RESET;
            self.interrupt.config_changed();
        }
    }

    /// The rings as the driver has set them up, for the device to own. One the driver left alone stays unused.
    fn take_queues(&mut self) -> Result<Vec<Queue>, BrokenQueue> {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.rings.len());
        for (ring, size) in self.rings.iter_mut().zip(self.profile.queue_sizes) {
            let used = GuestAddress(ring.used_ring());
            if ring.ready() && !(ring.is_valid(&*self.memory) && memory::is_writable(&self.memory, used)) {
                return Err(BrokenQueue("ring is not in memory"));
            }
            let empty = Ring::new(*size).expect("as in `new`");
            let mut taken = std::mem::replace(ring, empty);
            taken.set_event_idx(event_idx);
            queues.push(Queue::new(taken, self.interrupt.clone()));
        }
        Ok(queues)
    }

    fn read(&self, offset: u64) -> u32 {
        let ring = self.rings.get(self.queue_select);
        match offset {
            0x000 => u32::from_le_bytes(*b"virt"),
            0x004 => 2,
            0x008 => self.profile.id,
            0x00c => VENDOR_ID,
            0x010 => half(self.offered(), self.device_features_page),
            0x034 => ring.map_or(0, |ring| u32::from(ring.max_size())),
            0x044 => ring.map_or(0, |ring| u32::from(ring.ready())),
            0x060 => self.interrupt.status(),
            0x070 => self.status,
            // No shared memory regions: a length of all ones says so (0x0b0..0x0c0).
            0x0b0..0x0c0 => u32::MAX,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x014 => self.device_features_page = value,
            0x024 => self.driver_features_page = value,
            0x020 => self.set_driver_features(value),
            0x030 => self.queue_select = usize::try_from(value).unwrap_or(usize::MAX),
            0x064 => self.interrupt.acknowledge(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK, and not changed while they are ready: afterwards the
    /// device owns them, and nothing the driver writes here reaches it.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        const QUEUE_READY: u64 = 0x044;
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        let Some(ring) = self.rings.get_mut(self.queue_select) else { return };
        if ring.ready() && offset != QUEUE_READY {
            return;
        }
        match offset {
            // A size that is not allowed leaves the ring as it was.
            0x038 => ring.set_size(u16::try_from(value).unwrap_or(0)),
            QUEUE_READY => ring.set_ready(value == 1),
            0x080 => ring.set_desc_table_address(Some(value), None),
            0x084 => ring.set_desc_table_address(None, Some(value)),
            0x090 => ring.set_avail_ring_address(Some(value), None),
            0x094 => ring.set_avail_ring_address(None, Some(value)),
            0x0a0 => ring.set_used_ring_address(Some(value), None),
            0x0a4 => ring.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

/// The 32 bits of `features` that the driver has selected.
fn half(features: u64, page: u32) -> u32 {
    let shifted = if page > 1 { 0 } else { features >> (page * 32) };
    u32::try_from(shifted & 0xffff_ffff).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests;
