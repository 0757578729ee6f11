//! The guest's side of a virtio-mmio device, good and bad by choice: it sets the device up, offers chains, writes any
//! register and any byte of the rings, and lets the host's side have its turn.
//! It does not know what a device does; the device's target gives it requests.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::virtio::mmio::Mmio;
use vmm::virtio::{Device, Interrupt, Memory};

use super::Choices;

const MEMORY_SIZE: usize = 2 << 20;
/// Where the rings of queue n are: at n + 1 times this.
const RINGS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xc000;
/// Buffers, one per descriptor used, behind the rings of all queues.
const BUFFERS: u64 = 0x10_0000;
const BUFFER_SIZE: u64 = 0x1000;
const BUFFERS_COUNT: u64 = 128;
/// Choices one input may make, so that its time is bounded.
const STEPS_MAX: usize = 400;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// virtio 1.2, 4.2.2 "MMIO Device Register Layout".
mod register {
    pub const FEATURES: u64 = 0x10;
    pub const FEATURES_PAGE: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_PAGE: u64 = 0x24;
    pub const QUEUE: u64 = 0x30;
    pub const QUEUE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
}

/// What a driver asks of a device: bytes it gives, and room it offers.
#[derive(Default)]
pub struct Request {
    pub queue: u32,
    pub readable: Vec<Vec<u8>>,
    pub writable: Vec<u32>,
}

/// The two ends of a device that are not its queues.
pub trait Scene<D> {
    /// A request that gets somewhere.
    fn request(&mut self, choices: &mut Choices<'_>) -> Request;

    /// Something happens on the host.
    fn host(&mut self, _device: &mut D, _choices: &mut Choices<'_>) {}
}

pub struct Driver<D: Device> {
    mmio: Mmio<D>,
    memory: Memory,
    /// Size and next available index of each queue.
    queues: Vec<(u16, u16)>,
    next_descriptor: u64,
}

impl<D: Device> Driver<D> {
    pub fn new(device: D) -> Self {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("memory is there");
        let memory = Arc::new(memory);
        let queues = vec![(0, 0); device.profile().queue_sizes.len()];
        let mmio = Mmio::new(Box::new(device), Arc::clone(&memory), Interrupt::new(|| ()));
        Self { mmio, memory, queues, next_descriptor: 0 }
    }

    /// Does what the choices say, and then resets the device, which always works.
    pub fn play(mut self, choices: &mut Choices<'_>, scene: &mut impl Scene<D>) {
        self.set_up(choices, scene);
        for _ in 0..STEPS_MAX {
            if choices.is_empty() {
                break;
            }
            match choices.byte() % 16 {
                0..6 => self.offer(&scene.request(choices)),
                6 => self.write(register::NOTIFY, choices.number() as u32),
                7..9 => self.ready(),
                9 => self.write(u64::from(choices.word16() % 0x200), choices.word32()),
                10 => self.access(choices),
                11 => self.scribble(choices),
                12 => self.offer_any(choices),
                13 if choices.byte().is_multiple_of(4) => {
                    self.write(register::STATUS, 0);
                    self.set_up(choices, scene);
                }
                _ => scene.host(&mut self.mmio.device, choices),
            }
        }
        self.write(register::STATUS, 0);
        assert_eq!(self.read(register::STATUS), 0);
    }

    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.mmio.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.mmio.write(offset, &value.to_le_bytes());
    }

    /// The way of virtio 1.2, 3.1 "Device Initialization"; features, sizes and what is in the queues by then are a choice.
    fn set_up(&mut self, choices: &mut Choices<'_>, scene: &mut impl Scene<D>) {
        self.write(register::STATUS, 1);
        self.write(register::STATUS, 3);
        let declined = choices.of(&[0, 0, 1 << 28, 1 << 29, u32::MAX]);
        for (page, declined) in [(0, declined), (1, 0)] {
            self.write(register::FEATURES_PAGE, page);
            self.write(register::DRIVER_FEATURES_PAGE, page);
            let offered = self.read(register::FEATURES);
            self.write(register::DRIVER_FEATURES, offered & !declined);
        }
        self.write(register::STATUS, 11);
        let shift = choices.byte() % 8;
        for index in 0..self.queues.len() {
            self.set_up_queue(index, shift);
        }
        for _ in 0..choices.byte() % 4 {
            self.offer(&scene.request(choices));
        }
        self.write(register::STATUS, 15);
    }

    fn set_up_queue(&mut self, index: usize, shift: u8) {
        let base = rings(index);
        self.memory.write_slice(&[0; RINGS as usize], GuestAddress(base)).expect("rings are in memory");
        self.write(register::QUEUE, index as u32);
        let size = (self.read(register::QUEUE_MAX) >> shift).max(1);
        self.write(register::QUEUE_SIZE, size);
        for (register, address) in register::ADDRESSES.into_iter().zip([base, base + AVAILABLE, base + USED])
        {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
        self.write(register::QUEUE_READY, 1);
        self.queues[index] = (size as u16, 0);
    }

    /// Offers a chain with the request, and says so.
    fn offer(&mut self, request: &Request) {
        let queue = request.queue as usize % self.queues.len();
        let readable = request.readable.iter().map(|bytes| (bytes.len() as u32, Some(bytes), 0));
        let buffers: Vec<_> =
            readable.chain(request.writable.iter().map(|&length| (length, None, WRITE))).collect();
        let (size, _) = self.queues[queue];
        let first = self.next_descriptor;
        for (n, (length, bytes, flags)) in buffers.iter().enumerate() {
            let address = BUFFERS + self.next_descriptor % BUFFERS_COUNT * BUFFER_SIZE;
            if let Some(bytes) = bytes {
                // What reaches beyond memory is the device's to refuse.
                let _ = self.memory.write_slice(bytes, GuestAddress(address));
            }
            let last = n + 1 == buffers.len();
            self.next_descriptor += 1;
            let next = (self.next_descriptor % u64::from(size)) as u16;
            let flags = if last { *flags } else { flags | NEXT };
            let index = (self.next_descriptor - 1) % u64::from(size);
            self.describe(queue, index, address, *length, flags, next);
        }
        self.publish(queue, (first % u64::from(size)) as u16);
        self.write(register::NOTIFY, queue as u32);
    }

    fn describe(&self, queue: usize, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend([flags, next].map(u16::to_le_bytes).concat());
        self.memory
            .write_slice(&bytes, GuestAddress(rings(queue) + 16 * index))
            .expect("rings are in memory");
    }

    fn publish(&mut self, queue: usize, head: u16) {
        let available = rings(queue) + AVAILABLE;
        let (size, index) = self.queues[queue];
        let entry = GuestAddress(available + 4 + 2 * u64::from(index % size));
        self.memory.write_obj(head, entry).expect("rings are in memory");
        self.queues[queue].1 = index.wrapping_add(1);
        let index = self.queues[queue].1;
        self.memory.write_obj(index, GuestAddress(available + 2)).expect("rings are in memory");
    }

    /// A descriptor with anything in it.
    fn offer_any(&mut self, choices: &mut Choices<'_>) {
        let queue = usize::from(choices.byte()) % self.queues.len();
        let (index, head) = (choices.number() % 512, choices.number() as u16);
        self.describe(
            queue,
            index,
            choices.number(),
            choices.number() as u32,
            choices.word16(),
            choices.word16(),
        );
        self.publish(queue, head);
        self.write(register::NOTIFY, queue as u32);
    }

    /// Any bytes anywhere in the rings and buffers.
    fn scribble(&self, choices: &mut Choices<'_>) {
        let address = u64::from(choices.word32()) % (MEMORY_SIZE as u64 - 256);
        let length = usize::from(choices.byte());
        self.memory.write_slice(choices.take(length), GuestAddress(address)).expect("below the end");
    }

    /// A read, and a write of the same width, as no driver does them.
    fn access(&mut self, choices: &mut Choices<'_>) {
        let mut bytes = vec![0; usize::from(choices.byte() % 9)];
        let offset = choices.number();
        self.mmio.read(offset, &mut bytes);
        self.mmio.write(offset, &choices.word64().to_le_bytes()[..bytes.len().min(8)]);
    }

    /// The event loop's turn.
    fn ready(&mut self) {
        let readable = self.mmio.device.wake_fd().is_some_and(|fd| {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
        });
        if readable {
            self.mmio.ready();
        }
    }
}

fn rings(queue: usize) -> u64 {
    (queue as u64 + 1) * RINGS
}
