//! The disk against a driver that behaves, tiny requests, and hostile ones.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::Interrupt;

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xf000;
const SECTORS: u64 = 64;

struct Driver {
    blk: Blk,
    memory: Memory,
    file: File,
    requests: u16,
}

impl Driver {
    fn new(read_only: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * SECTOR).unwrap();
        let disk = config::Disk { file: file.try_clone().unwrap(), read_only };
        let mut blk = Blk::new(disk).unwrap();
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let mut ring: Ring = MockSplitQueue::new(&*memory, 16).create_queue().unwrap();
        ring.set_event_idx(true);
        blk.activate(Memory::clone(&memory), vec![Queue::new(ring, Interrupt::new(|| ()))]);
        Self { blk, memory, file, requests: 0 }
    }

    /// Sends one request with `length` bytes of data and returns its status, `None` while it is pending.
    fn request(&mut self, kind: u32, sector: u64, length: u32, data_is_writable: bool) -> Option<u8> {
        let data_flags = if data_is_writable { 3 } else { 1 };
        let chain = [(HEADER, 16, 1), (DATA, length, data_flags), (STATUS, 1, 2)];
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.send(&chain).expect("a good chain");
        self.status()
    }

    fn send(&mut self, chain: &[(u64, u32, u16)]) -> Result<(), BrokenQueue> {
        let memory = Memory::clone(&self.memory);
        let queue = MockSplitQueue::new(&*memory, 16);
        self.memory.write_obj(0xaa_u8, GuestAddress(STATUS)).unwrap();
        for (n, &(address, length, flags)) in (0..).zip(chain) {
            let raw = RawDescriptor::from(Descriptor::new(address, length, flags, n + 1));
            queue.desc_table().store(n, raw).unwrap();
        }
        let slot = queue.avail_addr().unchecked_add(4 + u64::from(self.requests % 16) * 2);
        memory.write_obj(0_u16, slot).unwrap();
        self.requests += 1;
        memory.write_obj(self.requests, queue.avail_addr().unchecked_add(2)).unwrap();
        self.blk.kick(0)
    }

    fn status(&self) -> Option<u8> {
        let status = self.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap();
        (status != 0xaa).then_some(status)
    }
}

#[test]
fn sectors_are_written_and_read() {
    let mut driver = Driver::new(false);
    driver.memory.write_slice(&[7; 1024], GuestAddress(DATA)).unwrap();
    assert_eq!(driver.request(request::OUT, 3, 1024, false), Some(0));
    let mut bytes = [0; 1024];
    driver.file.read_exact_at(&mut bytes, 3 * SECTOR).unwrap();
    assert_eq!(bytes, [7; 1024]);
    driver.memory.write_slice(&[0; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(driver.request(request::IN, 4, 512, true), Some(0));
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(DATA + 511)).unwrap(), 7);
}

/// With VIRTIO_F_EVENT_IDX the driver kicks only at the index that the device has asked for.
#[test]
fn every_next_request_is_announced() {
    let mut driver = Driver::new(false);
    for _ in 0..40 {
        assert_eq!(driver.request(request::IN, 0, 512, true), Some(0));
        let memory = Memory::clone(&driver.memory);
        let used = MockSplitQueue::new(&*memory, 16).used_addr();
        let avail_event = used.unchecked_add(4 + 8 * 16);
        assert_eq!(memory.read_obj::<u16>(avail_event).unwrap(), driver.requests);
    }
}

#[test]
fn the_end_of_the_disk_is_the_end() {
    let mut driver = Driver::new(false);
    assert_eq!(driver.request(request::IN, SECTORS - 1, 512, true), Some(0));
    for (sector, length) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (0, 100), (u64::MAX / 512, 512)]
    {
        assert_eq!(driver.request(request::IN, sector, length, true), Some(1), "{sector} {length}");
        assert_eq!(driver.request(request::OUT, sector, length, false), Some(1), "{sector} {length}");
    }
    assert_eq!(driver.file.metadata().unwrap().len(), SECTORS * SECTOR, "the image did not grow");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut driver = Driver::new(true);
    driver.memory.write_slice(&[7; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(driver.request(request::OUT, 0, 512, false), Some(1));
    assert_eq!(driver.request(request::DISCARD, 0, 16, false), Some(2));
    assert_eq!(driver.request(request::WRITE_ZEROES, 0, 16, false), Some(2));
    let mut bytes = [1; 512];
    driver.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 512]);
}

#[test]
fn a_flush_is_answered_when_it_is_done_and_what_follows_waits() {
    let mut driver = Driver::new(false);
    for _ in 0..3 {
        assert_eq!(driver.request(request::FLUSH, 0, 0, false), None);
        let wake = driver.blk.wake_fd().unwrap().try_clone_to_owned().unwrap();
        let timeout = rustix::event::Timespec::try_from(Duration::from_secs(10)).unwrap();
        assert_eq!(poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&timeout)), Ok(1));
        driver.blk.ready().unwrap();
        assert_eq!(driver.status(), Some(0));
    }
    assert_eq!(driver.request(request::IN, 0, 512, true), Some(0));
}

#[test]
fn a_reset_during_a_flush_is_survived() {
    let mut driver = Driver::new(false);
    assert_eq!(driver.request(request::FLUSH, 0, 0, false), None);
    driver.blk.reset();
    driver.blk.ready().unwrap();
    driver.blk.kick(0).unwrap();
}

#[test]
fn discarded_sectors_read_as_zeroes() {
    let mut driver = Driver::new(false);
    driver.file.write_all_at(&[7; 32 * 512], 0).unwrap();
    for kind in [request::DISCARD, request::WRITE_ZEROES] {
        driver.memory.write_obj(8_u64, GuestAddress(DATA)).unwrap();
        driver.memory.write_obj(8_u64, GuestAddress(DATA + 8)).unwrap();
        assert_eq!(driver.request(kind, 0, 16, false), Some(0));
    }
    let mut bytes = [0; 3];
    for (byte, sector) in bytes.iter_mut().zip([7, 8, 16]) {
        driver.file.read_exact_at(std::slice::from_mut(byte), sector * SECTOR).unwrap();
    }
    assert_eq!(bytes, [7, 0, 7]);
}

#[test]
fn hostile_discards_are_refused() {
    let mut driver = Driver::new(false);
    for (sector, count, flags, status) in
        [(u64::MAX, 8, 0, 1), (0, u32::MAX, 0, 1), (SECTORS, 1, 0, 1), (0, 8, 0xff, 2), (0, 8, 1, 2)]
    {
        driver.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        driver.memory.write_obj(count, GuestAddress(DATA + 8)).unwrap();
        driver.memory.write_obj::<u32>(flags, GuestAddress(DATA + 12)).unwrap();
        assert_eq!(driver.request(request::DISCARD, 0, 16, false), Some(status), "{sector} {count} {flags}");
    }
    driver.memory.write_obj(0_u32, GuestAddress(DATA + 12)).unwrap();
    assert_eq!(driver.request(request::DISCARD, 0, 17, false), Some(1), "not whole segments");
    assert_eq!(driver.request(request::DISCARD, 0, 512, false), Some(1), "too many segments");
}

#[test]
fn unknown_requests_are_unsupported_and_an_id_may_be_short() {
    let mut driver = Driver::new(false);
    assert_eq!(driver.request(99, 0, 512, true), Some(2));
    assert_eq!(driver.request(request::GET_ID, 0, 3, true), Some(0));
    let mut id = [0; 4];
    driver.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"cor\0");
}

#[test]
fn chains_that_are_no_request_break_the_queue() {
    for chain in [&[(HEADER, 15, 1), (STATUS, 1, 2)][..], &[(HEADER, 16, 0)], &[(STATUS, 1, 2)]] {
        assert!(Driver::new(false).send(chain).is_err(), "{chain:x?}");
    }
}

#[test]
fn odd_images_are_refused() {
    for size in [0, 1, 511, 513] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        assert!(matches!(Blk::new(config::Disk { file, read_only: true }), Err(Error::Sectors(_))));
    }
}
