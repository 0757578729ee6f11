//! The transport against a driver that behaves, one that does little, and one that does everything wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::layout;

const QUEUE_SIZE: u16 = 16;
const DRIVER_STEPS: [u32; 4] = [
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

/// Copies what it reads to what it may write, and counts.
#[derive(Default)]
struct Echo {
    active: Option<(Memory, Vec<Queue>)>,
    resets: Arc<Mutex<u32>>,
}

impl Device for Echo {
    fn profile(&self) -> Profile {
        Profile { id: 42, features: 1 << 3, queue_sizes: &[QUEUE_SIZE] }
    }

    fn config(&self) -> &[u8] {
        b"config"
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        self.active = Some((memory, queues));
    }

    fn kick(&mut self, index: usize) -> Result<(), BrokenQueue> {
        let (memory, queues) = self.active.as_mut().expect("kicks come between activate and reset");
        let queue = &mut queues[index];
        while let Some(mut chain) = queue.pop(memory)? {
            let mut bytes = vec![0; chain.reader.remaining().min(chain.writer.remaining())];
            assert!(chain.reader.read(&mut bytes) && chain.writer.write(&bytes));
            queue.complete(memory, chain)?;
        }
        queue.notify(memory)
    }

    fn reset(&mut self) {
        self.active = None;
        *self.resets.lock().unwrap() += 1;
    }
}

struct Driver {
    mmio: Mmio<Echo>,
    memory: Memory,
    interrupts: Arc<AtomicU32>,
    resets: Arc<Mutex<u32>>,
}

/// As in a machine of 1 MiB with a layer.
fn layer_start() -> u64 {
    layout::layers(1 << 20, [1])[0].0
}

impl Driver {
    fn new() -> Self {
        let memory = crate::memory::map(1 << 20, &layout::layers(1 << 20, [1])).unwrap();
        let interrupts = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&interrupts);
        let interrupt = Interrupt::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let device = Box::new(Echo::default());
        let resets = Arc::clone(&device.resets);
        Self { mmio: Mmio::new(device, Arc::clone(&memory), interrupt), memory, interrupts, resets }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.mmio.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.mmio.write(offset, &value.to_le_bytes());
    }

    fn negotiate(&mut self) {
        self.write(0x70, DRIVER_STEPS[0]);
        self.write(0x70, DRIVER_STEPS[1]);
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, DRIVER_STEPS[2]);
    }

    fn set_up_queue(&mut self, desc: u64, avail: u64, used: u64) {
        self.write(0x30, 0);
        self.write(0x38, u32::from(QUEUE_SIZE));
        for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
            self.write(register, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(register + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(0x44, 1);
    }

    /// Everything up to DRIVER_OK, with the mock's rings.
    fn start(&mut self, queue: &MockSplitQueue<'_, GuestMemoryMmap>) {
        self.negotiate();
        self.set_up_queue(queue.desc_table_addr().0, queue.avail_addr().0, queue.used_addr().0);
        self.write(0x70, DRIVER_STEPS[3]);
    }

    fn status(&self) -> u32 {
        self.read(0x70)
    }
}

fn descriptor(address: u64, length: u32, flags: u32, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, u16::try_from(flags).unwrap(), next))
}

const NEXT: u32 = 1;
const WRITE: u32 = 2;
const INDIRECT: u32 = 4;

#[test]
fn a_driver_that_behaves_gets_its_bytes_back() {
    let mut driver = Driver::new();
    let memory = Arc::clone(&driver.memory);
    let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
    assert_eq!(driver.read(0x00), u32::from_le_bytes(*b"virt"));
    assert_eq!((driver.read(0x04), driver.read(0x08)), (2, 42));
    memory.write_slice(b"hello", GuestAddress(0x8000)).unwrap();
    driver.start(&queue);
    assert_eq!(driver.status(), DRIVER_STEPS[3]);
    let chain = [descriptor(0x8000, 5, NEXT, 1), descriptor(0x9000, 5, WRITE, 0)];
    queue.build_desc_chain(&chain).unwrap();
    driver.write(0x50, 0);
    let mut bytes = [0; 5];
    memory.read_slice(&mut bytes, GuestAddress(0x9000)).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_eq!(driver.interrupts.load(Ordering::SeqCst), 1);
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
}

/// A program writes a piece of itself to a disk, past the page cache.
#[test]
fn a_device_reads_from_a_layer() {
    let mut driver = Driver::new();
    let memory = Arc::clone(&driver.memory);
    let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
    driver.start(&queue);
    let chain = [descriptor(layer_start(), 4, NEXT, 1), descriptor(0x9000, 4, WRITE, 0)];
    memory.write_slice(b"full", GuestAddress(0x9000)).unwrap();
    for (n, raw) in chain.iter().enumerate() {
        queue.desc_table().store(u16::try_from(n).unwrap(), *raw).unwrap();
    }
    memory.write_obj(0_u16, queue.avail_addr().unchecked_add(4)).unwrap();
    memory.write_obj(1_u16, queue.avail_addr().unchecked_add(2)).unwrap();
    driver.write(0x50, 0);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x9000)).unwrap(), 0, "there is no file under it");
    assert_eq!(driver.status(), DRIVER_STEPS[3]);
}

#[test]
fn config_space_reads_in_any_width_and_ends() {
    let driver = Driver::new();
    let read = |offset, length| {
        let mut bytes = vec![0xaa; length];
        driver.mmio.read(offset, &mut bytes);
        bytes
    };
    assert_eq!(read(0x100, 1), b"c");
    assert_eq!(read(0x102, 2), b"nf");
    assert_eq!(read(0x104, 4), b"ig\0\0");
    assert_eq!(read(0xfff, 8), [0; 8]);
    assert_eq!(read(0x00, 2), [0; 2], "registers are 32 bits wide");
}

#[test]
fn status_goes_one_way() {
    let mut driver = Driver::new();
    for wrong in [DRIVER, FEATURES_OK, DRIVER_OK, 0xff, u32::MAX] {
        driver.write(0x70, wrong);
        assert_eq!(driver.status(), 0);
    }
    driver.write(0x70, ACKNOWLEDGE);
    driver.write(0x70, ACKNOWLEDGE | DRIVER);
    driver.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "VERSION_1 is required");
    driver.write(0x24, 0);
    driver.write(0x20, 1 << 5);
    driver.write(0x24, 1);
    driver.write(0x20, 1);
    driver.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "a feature that was not offered");
    driver.write(0x70, 0);
    assert_eq!((driver.status(), *driver.resets.lock().unwrap()), (0, 0), "it was never active");
}

#[test]
fn a_reset_takes_the_queues_back() {
    let mut driver = Driver::new();
    let memory = Arc::clone(&driver.memory);
    let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
    for n in 1..100 {
        driver.start(&queue);
        driver.write(0x50, 0);
        driver.write(0x70, 0);
        assert_eq!(*driver.resets.lock().unwrap(), n);
    }
    driver.write(0x50, 0);
    assert!(driver.mmio.device.active.is_none());
}

#[test]
fn nothing_changes_a_queue_that_the_device_owns() {
    let mut driver = Driver::new();
    let memory = Arc::clone(&driver.memory);
    let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
    driver.start(&queue);
    driver.set_up_queue(0xdead_0000, 0xbeef_0000, u64::MAX);
    let chain = [descriptor(0x8000, 1, NEXT, 1), descriptor(0x9000, 1, WRITE, 0)];
    queue.build_desc_chain(&chain).unwrap();
    driver.write(0x50, 0);
    assert_eq!(driver.status(), DRIVER_STEPS[3]);
    assert_eq!(driver.interrupts.load(Ordering::SeqCst), 1);
}

#[test]
fn rings_outside_of_memory_stop_the_device() {
    for (desc, avail, used) in [
        (0xffff_f000, 0x2000, 0x3000),
        (0x1000, u64::MAX - 1, 0x3000),
        (0x1000, 0x2000, 1 << 20),
        (0x1000, 0x2000, layer_start()),
    ] {
        let mut driver = Driver::new();
        driver.negotiate();
        driver.set_up_queue(desc, avail, used);
        driver.write(0x70, DRIVER_STEPS[3]);
        driver.write(0x50, 0);
        assert_ne!(driver.status(), DRIVER_STEPS[3], "{desc:#x} {avail:#x} {used:#x}");
    }
}

/// Chains no driver may build. Each stops the device, and a reset brings it back.
#[test]
fn broken_chains_stop_the_device_until_it_is_reset() {
    let layer = layer_start();
    let broken: &[(&str, &[RawDescriptor])] = &[
        ("points at itself", &[descriptor(0x8000, 1, NEXT, 0)]),
        ("next beyond the table", &[descriptor(0x8000, 1, NEXT, QUEUE_SIZE)]),
        ("outside of memory", &[descriptor(1 << 40, 1, 0, 0)]),
        ("across the end of memory", &[descriptor((1 << 20) - 1, 2, 0, 0)]),
        ("address wraps", &[descriptor(u64::MAX, 2, 0, 0)]),
        ("a layer to write to", &[descriptor(layer, 1, WRITE, 0)]),
        ("a layer's end", &[descriptor(layer + layout::LAYER_ALIGNMENT - 1, 2, 0, 0)]),
        ("writable first", &[descriptor(0x8000, 1, WRITE | NEXT, 1), descriptor(0x9000, 1, 0, 0)]),
        ("indirect not a multiple of 16", &[descriptor(0x8000, 17, INDIRECT, 0)]),
        ("indirect outside of memory", &[descriptor(1 << 40, 16, INDIRECT, 0)]),
        ("4 GiB", &[descriptor(0, u32::MAX, NEXT, 1), descriptor(0, u32::MAX, 0, 0)]),
    ];
    for (what, chain) in broken {
        let mut driver = Driver::new();
        let memory = Arc::clone(&driver.memory);
        let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
        driver.start(&queue);
        for (n, raw) in chain.iter().enumerate() {
            queue.desc_table().store(u16::try_from(n).unwrap(), *raw).unwrap();
        }
        memory.write_obj(0_u16, queue.avail_addr().unchecked_add(4)).unwrap();
        memory.write_obj(1_u16, queue.avail_addr().unchecked_add(2)).unwrap();
        driver.write(0x50, 0);
        assert_eq!(driver.status(), DRIVER_STEPS[3] | NEEDS_RESET, "{what}");
        driver.write(0x50, 0);
        driver.mmio.ready();
        driver.write(0x70, 0);
        assert_eq!(driver.status(), 0, "{what}");
    }
}

#[test]
fn an_available_index_ahead_of_the_ring_stops_the_device() {
    let mut driver = Driver::new();
    let memory = Arc::clone(&driver.memory);
    let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
    driver.start(&queue);
    memory.write_obj(QUEUE_SIZE + 1, queue.avail_addr().unchecked_add(2)).unwrap();
    driver.write(0x50, 0);
    assert_eq!(driver.status(), DRIVER_STEPS[3] | NEEDS_RESET);
}

/// Every register, in every width, at every status: nothing panics, and a reset always works.
#[test]
fn every_access_at_every_status_is_survived() {
    for steps in 0..=DRIVER_STEPS.len() {
        for offset in 0..0x200_u64 {
            for width in [1, 2, 3, 4, 8] {
                let mut driver = Driver::new();
                let memory = Arc::clone(&driver.memory);
                let queue = MockSplitQueue::new(&*memory, QUEUE_SIZE);
                if steps == DRIVER_STEPS.len() {
                    driver.start(&queue);
                } else {
                    DRIVER_STEPS[..steps].iter().for_each(|step| driver.write(0x70, *step));
                }
                driver.mmio.write(offset, &vec![0xff; width]);
                driver.mmio.read(offset, &mut vec![0; width]);
                driver.write(0x70, 0);
                assert_eq!(driver.status(), 0);
            }
        }
    }
}
