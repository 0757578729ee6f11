//! The device through real virtqueues: an ordinary driver, and ones that break the rules.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;
use virtio_queue::{Queue as Ring, QueueT as _};
use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemoryMmap};

use super::client::{Bytes, path_fd};
use crate::config::{Rules, Share};
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::tokens::TABLE_BYTES;
use crate::virtio::fs::wire::{EntryOut, ForgetIn, HostChange, InHeader, InitIn, MAJOR, OutHeader, Wire};
use crate::virtio::fs::{Fs, TAG_MAX};
use crate::virtio::{BrokenQueue, Device as _, Interrupt, Memory, Queue};

const MEMORY_BYTES: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
/// Where the queues, a request and the room for its reply are.
const QUEUES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = 0x2_0000;
/// The table of tokens, and the room for a change.
const TABLE: u64 = 0x4_0000;
const CHANGE: u64 = 0x5_0000;
/// The rings in each queue's page.
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
const PATIENCE: Duration = Duration::from_secs(10);

/// virtio 1.2, 2.7.5 "The Virtqueue Descriptor Table".
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A driver of the device, with a folder that it shares.
struct Driver {
    folder: TempDir,
    memory: Memory,
    fs: Fs,
    interrupts: Receiver<()>,
}

impl Driver {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = path_fd(folder.path());
        let fs = Fs::new(Share {
            tag: "tag".to_owned(),
            root,
            read_only: false,
            only: None,
            rules: Rules::default(),
        })
        .unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
        let mut driver = Self { folder, memory, fs, interrupts: channel().1 };
        driver.activate();
        driver
    }

    /// Activates the device as a kernel does that knows nothing of the queue of changes.
    fn activate(&mut self) {
        self.activate_with(|_| 2);
    }

    /// Activates the device when `set_up` has put something into the queues, of which it uses as many as that says.
    fn activate_with(&mut self, set_up: impl FnOnce(&mut Self) -> usize) {
        let (raise, interrupts) = channel();
        let interrupt = Interrupt::new(move || {
            let _gone = raise.send(());
        });
        // Queues whose rings are all zero.
        self.memory.write_slice(&[0; 0x3000], GuestAddress(QUEUES[0])).unwrap();
        let used = set_up(self);
        let queues = QUEUES.map(|address| {
            let low = |offset: u64| Some(u32::try_from(address + offset).unwrap());
            let mut ring = Ring::new(QUEUE_SIZE).unwrap();
            ring.set_size(QUEUE_SIZE);
            ring.set_desc_table_address(low(0), Some(0));
            ring.set_avail_ring_address(low(AVAIL), Some(0));
            ring.set_used_ring_address(low(USED), Some(0));
            ring.set_ready(address <= QUEUES[used - 1]);
            Queue::new(ring, interrupt.clone())
        });
        self.interrupts = interrupts;
        self.fs.activate(Arc::clone(&self.memory), queues.into());
    }

    fn write(&self, index: usize, offset: u64, value: impl ByteValued) {
        self.memory.write_obj(value, GuestAddress(QUEUES[index] + offset)).unwrap();
    }

    fn read<T: ByteValued>(&self, index: usize, offset: u64) -> T {
        self.memory.read_obj(GuestAddress(QUEUES[index] + offset)).unwrap()
    }

    /// Makes a chain of these buffers available, `(address, length, flags, next)` from descriptor 0 on, and kicks.
    fn submit(&mut self, index: usize, buffers: &[(u64, u32, u16, u16)]) -> Result<(), BrokenQueue> {
        self.offer(index, 0, buffers);
        self.fs.kick(index)
    }

    /// Makes a chain available, in the descriptors from `head` on.
    fn offer(&mut self, index: usize, head: u16, buffers: &[(u64, u32, u16, u16)]) {
        for (at, &(address, length, flags, next)) in (u64::from(head) * 16..).step_by(16).zip(buffers) {
            self.write(index, at, address);
            self.write(index, at + 8, length);
            self.write(index, at + 12, flags);
            self.write(index, at + 14, next);
        }
        let idx: u16 = self.read(index, AVAIL + 2);
        self.write(index, AVAIL + 4 + 2 * u64::from(idx % QUEUE_SIZE), head);
        self.memory.store(idx + 1, GuestAddress(QUEUES[index] + AVAIL + 2), Ordering::SeqCst).unwrap();
    }

    /// Activates the device as our kernel does: with a table of `length` bytes at `table`, and room for one change.
    fn activate_with_changes(&mut self, table: u64, length: u32, room: u32) {
        self.activate_with(|driver| {
            driver.offer(2, 0, &[(table, length, WRITE, 0)]);
            driver.offer(2, 1, &[(CHANGE, room, WRITE, 0)]);
            3
        });
        self.init();
    }

    fn used(&self, index: usize) -> u16 {
        self.memory.load(GuestAddress(QUEUES[index] + USED + 2), Ordering::SeqCst).unwrap()
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "{what}");
            let _tick = self.interrupts.recv_timeout(Duration::from_millis(10));
        }
    }

    fn put(&self, opcode: Opcode, node: u64, body: &Bytes) -> u32 {
        let len = u32::try_from(InHeader::SIZE + body.0.len()).unwrap();
        let header = InHeader { len, opcode: opcode as u32, unique: 7, node, ..InHeader::default() };
        let request = Bytes::of(&header).raw(&body.0).0;
        self.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        len
    }

    /// Sends a request, in two buffers, with room for the reply in two.
    fn call(&mut self, opcode: Opcode, node: u64, body: &Bytes) -> Vec<u8> {
        let length = self.put(opcode, node, body);
        let before = self.used(1);
        let buffers = [
            (REQUEST, 40, NEXT, 1),
            (REQUEST + 40, length - 40, NEXT, 2),
            (REPLY, 16, NEXT | WRITE, 3),
            (REPLY + 16, 4096, WRITE, 0),
        ];
        // Without a body there is no second buffer: an empty one would be a fault of the driver.
        if length == 40 {
            self.submit(1, &[(REQUEST, 40, NEXT, 1), (REPLY, 4096, WRITE, 0)]).unwrap();
        } else {
            self.submit(1, &buffers).unwrap();
        }
        self.wait("a reply", |driver| driver.used(1) != before);
        let written: u32 = self.read(1, USED + 4 + 8 * u64::from(before % QUEUE_SIZE) + 4);
        let mut reply = vec![0; written as usize];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        let header = OutHeader::decode(&mut &reply[..]).unwrap();
        assert_eq!((header.len as usize, header.unique), (reply.len(), 7));
        reply
    }

    fn init(&mut self) {
        let request = InitIn { major: MAJOR, minor: 40, max_readahead: 0, flags: u32::MAX };
        assert_eq!(self.call(Opcode::Init, 0, &Bytes::of(&request)).len(), 80);
    }

    fn lookup(&mut self, name: &str) -> Result<EntryOut, i32> {
        let reply = self.call(Opcode::Lookup, 1, &Bytes::default().name(name));
        let mut bytes = &reply[..];
        match OutHeader::decode(&mut bytes).unwrap().error {
            0 => Ok(EntryOut::decode(&mut bytes).unwrap()),
            error => Err(error),
        }
    }
}

#[test]
fn the_configuration_says_tag_and_queues() {
    let driver = Driver::new();
    let mut expected = [0; TAG_MAX + 4];
    expected[..3].copy_from_slice(b"tag");
    expected[TAG_MAX] = 1;
    assert_eq!(driver.fs.config(), expected);
    assert_eq!((driver.fs.profile().id, driver.fs.profile().queue_sizes.len()), (26, 3));
    for tag in ["", &"t".repeat(TAG_MAX + 1)] {
        let root = path_fd(driver.folder.path());
        assert!(
            Fs::new(Share {
                tag: tag.to_owned(),
                root,
                read_only: false,
                only: None,
                rules: Rules::default()
            })
            .is_err()
        );
    }
}

#[test]
fn a_driver_is_answered_and_interrupted() {
    let mut driver = Driver::new();
    std::fs::write(driver.folder.path().join("f"), "text").unwrap();
    driver.init();
    let entry = driver.lookup("f").unwrap();
    assert_eq!(entry.attr.size, 4);
    let length = driver.put(Opcode::Forget, entry.node, &Bytes::of(&ForgetIn { lookups: 1 }));
    driver.submit(0, &[(REQUEST, length, 0, 0)]).unwrap();
    driver.wait("the forget is taken", |driver| driver.used(0) == 1);
    for _ in 0..100 {
        assert_eq!(driver.lookup("none"), Err(-libc::ENOENT));
    }
}

#[test]
fn a_reset_ends_everything_and_the_next_driver_starts_anew() {
    let mut driver = Driver::new();
    driver.init();
    std::fs::write(driver.folder.path().join("f"), "text").unwrap();
    for _ in 0..20 {
        driver.fs.reset();
        driver.fs.reset();
        assert!(driver.fs.kick(1).is_err());
        driver.activate();
        assert_eq!(driver.lookup("f"), Err(-libc::EIO), "not mounted");
        driver.init();
        assert!(driver.lookup("f").is_ok());
    }
}

#[test]
fn a_driver_that_breaks_the_rules_is_given_up() {
    let hostile: [&[(u64, u32, u16, u16)]; 7] = [
        // A chain that loops, one that leaves memory, one in the wrong order, one without room for the reply, one
        // with too little, one shorter than a header, and one that is empty.
        &[(REQUEST, 40, NEXT, 0)],
        &[(MEMORY_BYTES as u64 - 1, 40, NEXT, 1), (REPLY, 4096, WRITE, 0)],
        &[(REPLY, 4096, WRITE | NEXT, 1), (REQUEST, 40, 0, 0)],
        &[(REQUEST, 40, 0, 0)],
        &[(REQUEST, 40, NEXT, 1), (REPLY, 15, WRITE, 0)],
        &[(REQUEST, 39, NEXT, 1), (REPLY, 4096, WRITE, 0)],
        &[(REPLY, 4096, WRITE, 0)],
    ];
    let mut driver = Driver::new();
    for buffers in hostile {
        driver.init();
        driver.put(Opcode::Statfs, 1, &Bytes::default());
        // The worker may already be awake, and gone before the kick.
        let _any = driver.submit(1, buffers);
        driver.wait("the device gives up", |driver| driver.fs.kick(1).is_err());
        driver.fs.reset();
        driver.activate();
    }
    driver.init();
}

#[test]
fn a_guest_that_changes_a_request_while_it_is_served_gets_some_answer() {
    let mut driver = Driver::new();
    driver.init();
    let memory = Arc::clone(&driver.memory);
    let (stop, stopped) = channel::<()>();
    let flipper = std::thread::spawn(move || {
        let mut opcode = 0_u32;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            opcode = (opcode + 1) % 60;
            memory.write_obj(opcode, GuestAddress(REQUEST + 4)).unwrap();
            memory.write_obj(u64::from(opcode % 3), GuestAddress(REQUEST + 16)).unwrap();
        }
    });
    for _ in 0..2000 {
        let length = driver.put(Opcode::Lookup, 1, &Bytes::default().name("f"));
        let before = driver.used(1);
        driver.submit(1, &[(REQUEST, length, NEXT, 1), (REPLY, 4096, WRITE, 0)]).unwrap();
        driver.wait("a reply", |driver| driver.used(1) != before);
    }
    drop(stop);
    flipper.join().unwrap();
}

#[test]
fn a_driver_that_wants_to_know_is_told_what_the_host_changes() {
    let mut driver = Driver::new();
    driver.fs.reset();
    driver.activate_with_changes(TABLE, TABLE_BYTES, 320);
    let missing = driver.lookup("f").unwrap();
    let entry = GuestAddress(TABLE + missing.entry_valid % 4096 * 8);
    assert_eq!((missing.node, driver.memory.read_obj::<u64>(entry).unwrap()), (0, missing.entry_valid));
    File::create(driver.folder.path().join("f")).unwrap();
    driver.wait("the change is told", |driver| driver.used(2) == 1);
    assert_ne!(driver.memory.read_obj::<u64>(entry).unwrap(), missing.entry_valid);
    let mut told = [0; HostChange::SIZE + 1];
    driver.memory.read_slice(&mut told, GuestAddress(CHANGE)).unwrap();
    let change = HostChange::decode(&mut &told[..]).unwrap();
    assert_eq!((change.parent, change.mask, told[HostChange::SIZE]), (1, libc::IN_CREATE, b'f'));
    // The file was closed as well; that waits for room.
    driver.submit(2, &[(CHANGE, 320, WRITE, 0)]).unwrap();
    driver.wait("the next change is told", |driver| driver.used(2) == 2);
}

#[test]
fn a_table_that_is_none_is_not_used_and_a_room_too_small_ends_the_device() {
    let mut driver = Driver::new();
    let tables = [
        (TABLE, TABLE_BYTES - 1),
        (TABLE, TABLE_BYTES + 1),
        (TABLE + 1, TABLE_BYTES),
        (MEMORY_BYTES as u64 - u64::from(TABLE_BYTES) + 8, TABLE_BYTES),
    ];
    for (table, length) in &tables[..3] {
        driver.fs.reset();
        driver.activate_with_changes(*table, *length, 320);
        assert_eq!(driver.lookup("f"), Err(-libc::ENOENT), "nothing is vouched for");
    }
    driver.fs.reset();
    driver.activate_with(|driver| {
        driver.offer(2, 0, &[(tables[3].0, tables[3].1, WRITE, 0)]);
        3
    });
    driver.wait("the device gives up", |driver| driver.fs.kick(1).is_err());
    driver.fs.reset();
    driver.activate_with_changes(TABLE, TABLE_BYTES, 8);
    File::create(driver.folder.path().join("f")).unwrap();
    driver.wait("the device gives up", |driver| driver.fs.kick(1).is_err());
}

/// A FUSE file system nobody serves: whoever looks at it waits.
#[test]
fn a_host_file_system_that_hangs_does_not_hold_up_a_reset() {
    let mut driver = Driver::new();
    driver.init();
    let at = driver.folder.path().join("hangs");
    std::fs::create_dir(&at).unwrap();
    let Ok(fuse) = File::options().read(true).write(true).open("/dev/fuse") else { return };
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    if mount("hangs", &at, "fuse", MountFlags::empty(), Some(&*options)).is_err() {
        return;
    }
    let length = driver.put(Opcode::Lookup, 1, &Bytes::default().name("hangs"));
    driver.submit(1, &[(REQUEST, length, NEXT, 1), (REPLY, 4096, WRITE, 0)]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    driver.fs.reset();
    assert!(start.elapsed() < Duration::from_secs(2));
    // No second worker beside the one that is stuck.
    driver.activate();
    assert!(driver.fs.kick(1).is_err());
    driver.fs.reset();
    drop(fuse);
    unmount(&at, UnmountFlags::DETACH).unwrap();
    driver.wait("the worker ends", |driver| driver.fs.stuck.as_ref().is_none_or(|stuck| stuck.has_ended()));
    assert_eq!(driver.used(1), 0, "what it was doing is not given back");
    driver.activate();
    driver.init();
}
