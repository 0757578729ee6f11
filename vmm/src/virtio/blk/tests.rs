//! The disk against a driver that behaves, tiny requests and hostile ones, with real files.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::driver::{self, Driver};

const SECTORS: u64 = 4096;

struct Guest {
    blk: Blk,
    driver: Driver,
    memory: Memory,
    file: File,
}

impl Guest {
    fn new(read_only: bool) -> Self {
        Self::above_floor(read_only, 0)
    }

    fn above_floor(read_only: bool, keep_free: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * SECTOR_SIZE).unwrap();
        let disk = config::Disk { file: file.try_clone().unwrap(), read_only, keep_free };
        let mut blk = Blk::new(disk).unwrap();
        let memory = driver::memory(1, QUEUE_SIZE);
        let (driver, queue) = Driver::new(&memory, 0, QUEUE_SIZE);
        blk.activate(memory.clone(), vec![queue]);
        Self { blk, driver, memory, file }
    }

    /// A guest whose disk has no thread: its jobs are done when the test says so.
    fn stepping() -> Self {
        let mut guest = Self::new(false);
        guest.blk.worker.is_started = true;
        guest
    }

    fn send(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> u16 {
        let header = header(kind, sector);
        let readable: &[&[u8]] = if data.is_empty() { &[&header] } else { &[&header, data] };
        let writable: &[u32] = if room == 0 { &[1] } else { &[room, 1] };
        let head = self.driver.offer(readable, writable);
        if self.driver.wants_kick() {
            self.blk.kick(0).unwrap();
        }
        head
    }

    /// Sends a request and waits for its status and what was read.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, Vec<u8>) {
        let head = self.send(kind, sector, data, room);
        let (used, mut bytes) = self.wait();
        assert_eq!(used, head);
        bytes.pop().expect("a status");
        (self.driver.last, bytes)
    }

    fn wait(&mut self) -> (u16, Vec<u8>) {
        loop {
            if let Some(used) = self.driver.take_used() {
                return used;
            }
            assert!(self.is_awake(Duration::from_secs(10)), "an answer that does not come");
            self.blk.ready().unwrap();
        }
    }

    fn is_awake(&self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let mut polled = [PollFd::from_borrowed_fd(self.blk.wake_fd().unwrap(), PollFlags::IN)];
        poll(&mut polled, Some(&timeout)).unwrap() == 1
    }

    fn memory_write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn memory_read(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn content(&self, sector: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, sector * SECTOR_SIZE).unwrap();
        bytes
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn sectors_are_written_and_read() {
    let mut guest = Guest::new(false);
    let data: Vec<u8> = (0..8192_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for round in 0..200 {
        assert_eq!(guest.request(kind::OUT, round * 16, &data, 0), (0, vec![]));
        assert_eq!(guest.request(kind::IN, round * 16, &[], 8192), (0, data.clone()));
    }
    assert_eq!(guest.content(3 * 16, 8192), data);
    assert_eq!(guest.request(kind::IN, 1, &[], 512).1, data[512..1024]);
    assert_eq!(guest.request(kind::IN, 0, &[], 0), (0, vec![]));
}

#[test]
fn a_request_may_lie_in_pieces() {
    let mut guest = Guest::new(false);
    let header = header(kind::OUT, 2);
    guest.driver.offer(&[&header[..3], &header[3..], &[1; 100], &[], &[2; 412]], &[0, 1]);
    guest.blk.kick(0).unwrap();
    assert_eq!(guest.wait().1, [0]);
    assert_eq!(guest.content(2, 512), [[1; 100].to_vec(), [2; 412].to_vec()].concat());
    guest.driver.offer(&[&self::header(kind::IN, 2)], &[100, 400, 13]);
    guest.blk.kick(0).unwrap();
    let (_, bytes) = guest.wait();
    assert_eq!((bytes.len(), bytes[99], bytes[100], bytes[512]), (513, 1, 2, 0));
}

#[test]
fn the_end_of_the_disk_is_the_end() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.request(kind::IN, SECTORS - 1, &[], 512).0, 0);
    let out = [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512)];
    let odd = [(0, 100), (0, 511), (0, 513)];
    for (sector, length) in out.into_iter().chain(odd) {
        assert_eq!(guest.request(kind::IN, sector, &[], length), (1, vec![]), "{sector} {length}");
        let data = vec![1; length as usize];
        assert_eq!(guest.request(kind::OUT, sector, &data, 0), (1, vec![]), "{sector} {length}");
    }
    assert_eq!(guest.file.metadata().unwrap().len(), SECTORS * SECTOR_SIZE, "the image did not grow");
    assert_eq!(guest.content(0, 1024), [0; 1024]);
}

/// The guest's address space is not the limit on a request: buffers may overlap.
#[test]
fn a_request_is_not_larger_than_the_limit() {
    let mut guest = Guest::new(false);
    guest.blk.image.sectors = 1 << 40;
    guest.file.set_len(256 << 20).unwrap();
    let length = SEGMENT_SIZE_MAX * 4;
    for (buffers, status) in [(31, 0), (32, 1), (120, 1)] {
        let address = guest.driver.buffer(0).0;
        guest.memory_write(address, &header(kind::IN, 0));
        guest.driver.describe(0, address, 16, 1, 1);
        for n in 1..=buffers {
            guest.driver.describe(n, guest.driver.buffer(2).0, length, 3, n + 1);
        }
        let status_at = guest.driver.buffer(100).0;
        guest.driver.describe(buffers + 1, status_at, 1, 2, 0);
        guest.driver.publish(0);
        guest.blk.kick(0).unwrap();
        assert_eq!(guest.memory_read(status_at), status, "{buffers}");
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut guest = Guest::new(true);
    assert_eq!(guest.blk.profile().features & (feature::READ_ONLY | feature::FLUSH), feature::READ_ONLY);
    assert_eq!(guest.request(kind::OUT, 0, &[7; 512], 0).0, 1);
    assert_eq!(guest.request(kind::DISCARD, 0, &range(0, 8, 0), 0).0, 2);
    assert_eq!(guest.request(kind::WRITE_ZEROES, 0, &range(0, 8, 0), 0).0, 2);
    assert_eq!(guest.request(kind::FLUSH, 0, &[], 0).0, 2);
    assert_eq!(guest.content(0, 512), [0; 512]);
    assert_eq!(guest.request(kind::IN, 0, &[], 512), (0, vec![0; 512]));
}

#[test]
fn a_flush_is_answered_by_the_event_loop() {
    let mut guest = Guest::new(false);
    for _ in 0..200 {
        assert_eq!(guest.request(kind::FLUSH, 0, &[], 0), (0, vec![]));
    }
    assert!(!guest.is_awake(Duration::ZERO));
}

#[test]
fn other_requests_go_on_while_a_flush_waits() {
    let mut guest = Guest::stepping();
    let flush = guest.send(kind::FLUSH, 0, &[], 0);
    assert_eq!(guest.request(kind::OUT, 0, &[7; 512], 0).0, 0);
    assert_eq!(guest.request(kind::IN, 0, &[], 512), (0, vec![7; 512]));
    assert!(!guest.is_awake(Duration::ZERO));
    guest.blk.worker.step();
    assert_eq!(guest.wait(), (flush, vec![0]));
}

#[test]
fn flushes_in_a_row_are_answered_together_and_discards_in_order() {
    let mut guest = Guest::stepping();
    let discard = range(0, 8, 0);
    let sent = [
        guest.send(kind::FLUSH, 0, &[], 0),
        guest.send(kind::FLUSH, 0, &[], 0),
        guest.send(kind::DISCARD, 0, &discard, 0),
        guest.send(kind::FLUSH, 0, &[], 0),
    ];
    for count in [2, 1, 1] {
        let before = guest.blk.worker.len();
        guest.blk.worker.step();
        assert_eq!(before - guest.blk.worker.len(), count);
    }
    assert_eq!(sent.map(|_| guest.wait().0), sent);
}

#[test]
fn discarded_sectors_read_as_zeroes_and_take_no_space() {
    let mut guest = Guest::new(false);
    for (kind, flags) in [(kind::DISCARD, 0), (kind::WRITE_ZEROES, 1)] {
        guest.file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let before = guest.file.metadata().unwrap().blocks();
        let ranges = [range(8, 1024, flags), range(1032, 8, flags), range(0, 0, flags)].concat();
        assert_eq!(guest.request(kind, 0, &ranges, 0), (0, vec![]));
        assert_eq!(guest.content(8, 1032 * 512), vec![0; 1032 * 512]);
        assert_eq!((guest.content(7, 512), guest.content(1040, 512)), (vec![7; 512], vec![7; 512]));
        assert!(guest.file.metadata().unwrap().blocks() <= before - 1024);
    }
    assert_eq!(guest.file.metadata().unwrap().len(), SECTORS * SECTOR_SIZE);
}

#[test]
fn zeroes_may_be_asked_to_keep_their_space() {
    let mut guest = Guest::new(false);
    guest.file.write_all_at(&[7; 1 << 20], 0).unwrap();
    match guest.request(kind::WRITE_ZEROES, 0, &range(8, 8, 0), 0).0 {
        0 => assert_eq!(guest.content(8, 4096), [0; 4096]),
        status => assert_eq!((status, guest.content(8, 4096)), (2, vec![7; 4096]), "tmpfs cannot do it"),
    }
}

/// The floor is above all there is: nothing may grow, and all that is there goes on.
#[test]
fn a_disk_below_the_floor_does_not_grow_but_can_be_read_changed_and_freed() {
    let mut guest = Guest::above_floor(false, u64::MAX);
    guest.file.write_all_at(&[7; 1 << 20], 0).unwrap();
    let before = guest.file.metadata().unwrap().blocks();
    for (sector, status) in [(0, 0), (2047, 0), (2048, 1), (SECTORS - 1, 1)] {
        assert_eq!(guest.request(kind::OUT, sector, &[8; 512], 0).0, status, "{sector}");
    }
    assert_eq!(guest.request(kind::OUT, 2047, &[8; 1024], 0).0, 1, "half of it is new");
    assert_eq!(guest.request(kind::WRITE_ZEROES, 0, &range(2048, 8, 0), 0).0, 1);
    assert_eq!(guest.request(kind::IN, 2047, &[], 1024), (0, [[8; 512], [0; 512]].concat()));
    assert_eq!(guest.file.metadata().unwrap().blocks(), before);
    assert_eq!(guest.request(kind::FLUSH, 0, &[], 0).0, 0);
    assert_eq!(guest.request(kind::DISCARD, 0, &range(0, 2048, 0), 0).0, 0);
    assert!(guest.file.metadata().unwrap().blocks() < before);
}

#[test]
fn hostile_discards_are_refused() {
    let mut guest = Guest::new(false);
    guest.file.write_all_at(&[7; 4096], 0).unwrap();
    let mut check = |data: &[u8], status| {
        assert_eq!(guest.request(kind::DISCARD, 0, data, 0).0, status, "{data:x?}");
    };
    check(&range(u64::MAX, 8, 0), 1);
    check(&range(0, u32::MAX, 0), 1);
    check(&range(SECTORS, 1, 0), 1);
    check(&range(SECTORS - 1, 2, 0), 1);
    check(&range(0, 8, 0xff), 2);
    check(&range(0, 8, 1), 2);
    check(&[range(0, 8, 0), range(0, 8, 2)].concat(), 2);
    check(&range(0, 8, 0)[..15], 1);
    check(&[0; 17], 1);
    check(&[0; 17 * 16], 1);
    check(&[], 0);
    guest.blk.image.sectors = 1 << 50;
    assert_eq!(guest.request(kind::DISCARD, 0, &range(0, RANGE_SECTORS_MAX + 1, 0), 0).0, 1);
    assert_eq!(guest.content(0, 4096), [7; 4096]);
}

#[test]
fn unknown_requests_are_unsupported_and_an_id_may_be_short() {
    let mut guest = Guest::new(false);
    for kind in [2, 3, 5, 7, 10, 14, 99, u32::MAX] {
        assert_eq!(guest.request(kind, 0, &[1; 512], 512), (2, vec![]));
    }
    assert_eq!(guest.request(kind::GET_ID, 0, &[], 3), (0, b"cor".to_vec()));
    assert_eq!(guest.request(kind::GET_ID, 0, &[], 0), (0, vec![]));
    assert_eq!(guest.request(kind::GET_ID, 0, &[], 100).1.len(), 20);
}

#[test]
fn chains_that_are_no_request_stop_the_disk() {
    let whole = header(kind::IN, 0);
    for (readable, writable) in
        [(&[&whole[..15]][..], &[1][..]), (&[&whole], &[]), (&[], &[1]), (&[&whole], &[0])]
    {
        let mut guest = Guest::new(false);
        guest.driver.offer(readable, writable);
        assert!(guest.blk.kick(0).is_err());
        guest.blk.kick(0).unwrap();
        assert!(!guest.is_awake(Duration::ZERO));
    }
}

/// A driver may offer a chain again that it has not got back; it cannot make the disk remember more of them than
/// there are descriptors.
#[test]
fn outstanding_requests_are_limited() {
    let mut guest = Guest::stepping();
    let head = guest.send(kind::FLUSH, 0, &[], 0);
    let result = (0..1000).find_map(|_| {
        guest.driver.publish(head);
        guest.blk.kick(0).err()
    });
    assert_eq!(result, Some(BrokenQueue("more requests than the queue is long")));
    assert_eq!(guest.blk.worker.len(), 0);
}

#[test]
fn one_call_serves_a_bounded_number_of_requests() {
    let mut guest = Guest::new(false);
    let in_header = header(kind::IN, 0);
    for _ in 0..QUEUE_SIZE / 2 {
        guest.driver.offer(&[&in_header], &[SEGMENT_SIZE_MAX + 1]);
    }
    guest.blk.kick(0).unwrap();
    let mut used = 0;
    while guest.driver.take_used().is_some() {
        used += 1;
    }
    assert_eq!(used, 1 + BYTES_MAX / (SEGMENT_SIZE_MAX + 1) as usize);
    while used < (QUEUE_SIZE / 2).into() {
        guest.wait();
        used += 1;
    }
    if guest.is_awake(Duration::ZERO) {
        guest.blk.ready().unwrap();
    }
    assert!(!guest.is_awake(Duration::ZERO));
}

/// The flush of the driver before is under way: it answers nobody, nothing overtakes it, and without a driver it
/// does not wake the event loop.
#[test]
fn a_reset_during_a_flush_is_survived() {
    let mut guest = Guest::stepping();
    guest.send(kind::FLUSH, 0, &[], 0);
    guest.send(kind::DISCARD, 0, &range(0, 8, 0), 0);
    guest.blk.worker.set_busy();
    guest.blk.reset();
    let (driver, queue) = Driver::new(&guest.memory, 0, QUEUE_SIZE);
    guest.driver = driver;
    guest.blk.activate(guest.memory.clone(), vec![queue]);
    let head = guest.send(kind::OUT, 0, &[7; 512], 0);
    assert!(guest.driver.take_used().is_none() && !guest.is_awake(Duration::ZERO));
    guest.blk.worker.finish_stale();
    assert_eq!(guest.wait(), (head, vec![0]));
    assert_eq!(guest.content(0, 512), [7; 512], "the discard is forgotten");

    guest.blk.worker.set_busy();
    guest.blk.reset();
    guest.blk.worker.finish_stale();
    assert!(!guest.is_awake(Duration::ZERO));
}

#[test]
fn a_disk_is_dropped_at_any_time() {
    for _ in 0..50 {
        let mut guest = Guest::new(false);
        guest.send(kind::FLUSH, 0, &[], 0);
        guest.send(kind::FLUSH, 0, &[], 0);
    }
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    let mut guest = Guest::new(false);
    guest.file.set_len(512).unwrap();
    assert_eq!(guest.request(kind::IN, 0, &[], 512).0, 0);
    assert_eq!(guest.request(kind::IN, 0, &[], 1024).0, 1);
    assert_eq!(guest.request(kind::IN, 8, &[], 512).0, 1);
}

#[test]
fn a_file_that_has_grown_is_a_larger_disk_after_a_refresh() {
    let mut guest = Guest::new(false);
    guest.file.set_len((SECTORS + 8) * SECTOR_SIZE + 511).unwrap();
    assert_eq!(guest.request(kind::IN, SECTORS, &[], 512).0, 1);
    guest.blk.refresh();
    assert_eq!(guest.blk.config()[..8], (SECTORS + 8).to_le_bytes());
    assert_eq!(guest.request(kind::OUT, SECTORS + 7, &[7; 512], 0).0, 0);
    assert_eq!(guest.request(kind::IN, SECTORS + 8, &[], 512).0, 1);
    guest.file.set_len(512).unwrap();
    guest.blk.refresh();
    assert_eq!(guest.blk.config()[..8], (SECTORS + 8).to_le_bytes(), "it does not shrink");
}

#[test]
fn odd_images_are_refused() {
    for size in [0, 1, 511, 513] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        assert!(matches!(
            Blk::new(config::Disk { file, read_only: true, keep_free: 0 }),
            Err(Error::Sectors(_))
        ));
    }
    for path in ["/", "/dev/null"] {
        let file = File::open(path).unwrap();
        assert!(matches!(Blk::new(config::Disk { file, read_only: true, keep_free: 0 }), Err(Error::Kind)));
    }
}

#[test]
fn the_configuration_space_says_what_there_is() {
    let guest = Guest::new(false);
    let config = guest.blk.config();
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[56..], [1, 0, 0, 0]);
}
