//! Each virtio device behind its registers and queues.
//! It owns what a good request to each looks like, and what the host does meanwhile.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vmm::config;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::blk::Blk;
use vmm::virtio::fs::Fs;
use vmm::virtio::rng::Rng;
use vmm::virtio::vsock::Vsock;

use super::Choices;
use super::driver::{Driver, Request, Scene};

const DISK_SIZE: u64 = 64 << 10;
const GUEST_PORT: u32 = 1024;
const HOST_PORT: u32 = 1025;
const STREAMS_MAX: usize = 8;

pub fn rng(input: &[u8]) {
    struct Any;
    impl Scene<Rng> for Any {
        fn request(&mut self, choices: &mut Choices<'_>) -> Request {
            Request { writable: vec![choices.number() as u32, choices.number() as u32], ..Request::default() }
        }
    }
    Driver::new(Rng::default()).play(&mut Choices(input), &mut Any);
}

pub fn balloon(input: &[u8]) {
    struct Reports;
    impl Scene<Balloon> for Reports {
        fn request(&mut self, choices: &mut Choices<'_>) -> Request {
            let queue = choices.of(&[2_u32, 2, 2, 2, 1, 0]);
            let mut length = || choices.of(&[4096_u32, 4096, 8192, 4095, 1, 0, 1 << 20, 1 << 27, u32::MAX]);
            Request { queue, writable: vec![length(), length()], ..Request::default() }
        }
    }
    Driver::new(Balloon::default()).play(&mut Choices(input), &mut Reports);
}

pub fn blk(input: &[u8]) {
    struct Disk;
    impl Scene<Blk> for Disk {
        fn request(&mut self, choices: &mut Choices<'_>) -> Request {
            let kind = choices.of(&[0_u32, 0, 1, 1, 4, 8, 11, 13, 2, u32::MAX]);
            let mut header = [kind, 0].map(u32::to_le_bytes).concat();
            header.extend((choices.number() % 256).to_le_bytes());
            let data = usize::from(choices.of(&[0_u16, 16, 16, 32, 512, 512, 1024, 513]));
            let mut request = Request { readable: vec![header], ..Request::default() };
            match kind {
                1 | 11 | 13 => {
                    request.readable.push([choices.take(data), &vec![0; data]].concat()[..data].to_vec())
                }
                _ => request.writable.push(data as u32),
            }
            request.writable.push(1);
            request
        }
    }
    let mut choices = Choices(input);
    let file = tempfile::tempfile().expect("make a file");
    file.set_len(DISK_SIZE).expect("size it");
    let read_only = choices.byte().is_multiple_of(4);
    let same: File = file.try_clone().expect("another descriptor");
    let disk = Blk::new(config::Disk { file, read_only, keep_free: 0 }).expect("a disk of whole sectors");
    Driver::new(disk).play(&mut choices, &mut Disk);
    let data = same.metadata().expect("still open");
    assert_eq!(data.len(), DISK_SIZE, "a guest cannot change the size of its disk");
    assert!(!read_only || std::os::unix::fs::MetadataExt::blocks(&data) == 0, "nothing was written");
}

/// The worker and its queues; what requests do is the business of the target `share`.
pub fn fs(input: &[u8]) {
    /// The queue of what the host changes, and how long the table of tokens is that comes first.
    const CHANGES: u32 = 2;
    const TABLE: u32 = 0x8000;
    struct Folder(TempDir);
    impl Scene<Fs> for Folder {
        fn request(&mut self, choices: &mut Choices<'_>) -> Request {
            let queue = u32::from(choices.byte() % 4).min(CHANGES);
            if queue == CHANGES {
                let writable = vec![choices.of(&[TABLE, TABLE, 320, 32, TABLE + 8])];
                return Request { queue, writable, ..Request::default() };
            }
            let (opcode, body) = choices.of(&[
                (26_u32, &[7_u32, 40, 1 << 20, u32::MAX][..]),
                (3, &[0; 4]),
                (27, &[0; 2]),
                (17, &[]),
                (2, &[1, 0]),
                (99, &[1]),
            ]);
            let length = 40 + 4 * body.len() as u32;
            let header = [length, opcode, 1, 0, 1, 0, 1000, 1000, 1, 0];
            let bytes = header.iter().chain(body).flat_map(|word| word.to_le_bytes()).collect();
            let writable = vec![16, choices.number() as u32 & 0xfff];
            Request { queue, readable: vec![bytes], writable }
        }

        fn host(&mut self, _device: &mut Fs, choices: &mut Choices<'_>) {
            let file = self.0.path().join(["a", "b"][usize::from(choices.byte() % 2)]);
            std::fs::remove_file(&file).or_else(|_| std::fs::write(&file, "text")).expect("it is ours");
        }
    }
    let dir = TempDir::new().expect("make a folder");
    let root = File::open(dir.path()).expect("open it").into();
    let share = config::Share {
        tag: "ws0".into(),
        root,
        read_only: true,
        only: None,
        rules: config::Rules::default(),
    };
    Driver::new(Fs::new(share).expect("a share")).play(&mut Choices(input), &mut Folder(dir));
}

/// Programs of the host that talk to the guest's port, and the server that the guest can connect to.
struct Callers {
    dir: TempDir,
    server: UnixListener,
    streams: Vec<UnixStream>,
}

impl Scene<Vsock> for Callers {
    /// virtio 1.2, 5.10.6 "Device Operation": the header of a packet, and what follows.
    fn request(&mut self, choices: &mut Choices<'_>) -> Request {
        let queue = u32::from(choices.byte() % 4) / 2;
        if queue == 0 {
            return Request {
                queue,
                writable: vec![choices.of(&[4096_u32, 44, 45, 64, 43, 1]); 1],
                ..Request::default()
            };
        }
        let length = choices.of(&[0_u32, 0, 1, 64, 1024, 4096]);
        let mut packet = Vec::new();
        packet.extend(choices.of(&[3_u64, 3, 3, 3, 3, 3, 2, 1 << 32]).to_le_bytes());
        packet.extend(choices.of(&[2_u64, 2, 2, 2, 2, 2, 3, u64::MAX]).to_le_bytes());
        packet.extend(choices.of(&[GUEST_PORT, GUEST_PORT, GUEST_PORT, 7]).to_le_bytes());
        let of_callers = 0x4000_0000_u32 + u32::from(choices.byte() % 16);
        packet.extend(choices.of(&[of_callers, of_callers, HOST_PORT, HOST_PORT, 0]).to_le_bytes());
        packet.extend(choices.of(&[length, length, length, u32::MAX]).to_le_bytes());
        packet.extend(choices.of(&[1_u16, 1, 1, 1, 1, 1, 1, 2]).to_le_bytes());
        packet.extend(choices.of(&[1_u16, 1, 1, 2, 2, 5, 5, 5, 5, 4, 3, 6, 7, 0, 8]).to_le_bytes());
        packet.extend(
            [choices.number() as u32 % 4, choices.number() as u32, choices.number() as u32]
                .map(u32::to_le_bytes)
                .concat(),
        );
        Request { queue, readable: vec![packet, vec![0x55; length as usize]], writable: Vec::new() }
    }

    fn host(&mut self, device: &mut Vsock, choices: &mut Choices<'_>) {
        match choices.byte() % 8 {
            0 => device.release(),
            1 if choices.byte() == 0 => device.shutdown(),
            kind @ (2 | 3) if self.streams.len() < STREAMS_MAX => {
                let stream = match kind {
                    2 => UnixStream::connect(self.dir.path().join("socket")).expect("the listener is there"),
                    _ => match self.server.accept() {
                        Ok((stream, _)) => stream,
                        Err(_) => return,
                    },
                };
                stream.set_nonblocking(true).expect("it is a socket");
                self.streams.push(stream);
            }
            4 if !self.streams.is_empty() => drop(self.streams.swap_remove(0)),
            5 | 6 => {
                let length = usize::from(choices.word16());
                // They fail when the guest or the device has hung up, or when it is not its turn.
                self.streams.iter_mut().for_each(|it| drop(it.write(&vec![7; length])));
            }
            _ => self.streams.iter_mut().for_each(|it| drop(it.read(&mut [0; 4096]))),
        }
    }
}

pub fn vsock(input: &[u8]) {
    let dir = TempDir::new().expect("make a folder");
    let listener = UnixListener::bind(dir.path().join("socket")).expect("listen");
    let server = UnixListener::bind(dir.path().join("server")).expect("listen");
    server.set_nonblocking(true).expect("it is a socket");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(dir.path(), flags, Mode::empty()).expect("it is there");
    let config = config::Vsock {
        listeners: vec![(GUEST_PORT, listener)],
        outbound: vec![config::Outbound { port: HOST_PORT, folder, name: "server" }],
        idle_timeout: Some(Duration::from_secs(3600)),
        goodbye: (GUEST_PORT, b"goodbye".to_vec()),
    };
    let mut callers = Callers { dir, server, streams: Vec::new() };
    Driver::new(Vsock::new(config).expect("a device")).play(&mut Choices(input), &mut callers);
}
