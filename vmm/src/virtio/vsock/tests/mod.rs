//! The device against guests that behave, that do little, and that do everything wrong, through real queues and
//! real sockets. There are no threads: the test is guest, client and event loop in turn.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use super::packet::{Credit, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND, STREAM};
use super::quota::{BUF_ALLOC, BUF_ALLOC_MIN, BUFFERED_MAX};
use super::*;
use crate::virtio::driver::{self, Driver};

mod data;
mod hostile;
mod life;
mod outbound;

const SIZE: u16 = 128;
const PORT: u32 = 1024;
/// Another port of the guest, with a socket of its own.
const PUBLISHED_PORT: u32 = 1026;
/// A port of the host that the guest can connect to.
const HOST_PORT: u32 = 1025;
/// The socket that it leads to.
const SERVER: &str = "server";
const GUEST_BUFFER: u32 = 256 << 10;
const RX_BUFFER: u32 = 4096;

/// A guest with its device, the folder with the socket that clients connect to, and a server that the guest can connect to.
struct Guest {
    vsock: Vsock,
    rx: Driver,
    tx: Driver,
    memory: Memory,
    folder: TempDir,
    server: UnixListener,
    /// What the guest says it has taken; its credit.
    taken: u32,
    buf_alloc: u32,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self::silent(None);
        guest.fill_rx();
        guest.vsock.release();
        guest
    }

    /// Not released, and without room for packets.
    fn silent(idle_timeout: Option<Duration>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
        let published = UnixListener::bind(folder.path().join("published")).unwrap();
        let (server, outbound) = server(folder.path(), HOST_PORT);
        let config = config::Vsock {
            listeners: vec![(PORT, listener), (PUBLISHED_PORT, published)],
            outbound: vec![outbound],
            idle_timeout,
            goodbye: (PORT, b"goodbye".to_vec()),
        };
        let memory = driver::memory(3, SIZE);
        let mut vsock = Vsock::new(config).unwrap();
        let (rx, tx) = start(&mut vsock, &memory);
        Self { vsock, rx, tx, memory, folder, server, taken: 0, buf_alloc: GUEST_BUFFER }
    }

    fn client(&self) -> UnixStream {
        self.client_of("sock")
    }

    fn client_of(&self, socket: &str) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join(socket)).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A client whose connection the guest has accepted.
    fn connect(&mut self) -> (UnixStream, Ports) {
        let client = self.client();
        self.turn();
        let ports = self.expect(Op::Request);
        assert_eq!(ports.guest, PORT);
        self.send(ports, Op::Response);
        (client, ports)
    }

    /// A connection that the guest has asked for, with the server's end of it.
    fn open(&mut self, guest: u32) -> (UnixStream, Ports) {
        let ports = Ports { host: HOST_PORT, guest };
        self.send(ports, Op::Request);
        assert_eq!(self.expect(Op::Response), ports);
        (self.served().expect("it has connected"), ports)
    }

    /// What the server accepts now.
    fn served(&self) -> Option<UnixStream> {
        let (stream, _) = self.server.accept().ok()?;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    }

    fn fill_rx(&mut self) {
        while self.rx.free() > 0 {
            self.rx.offer(&[], &[RX_BUFFER]);
        }
        if self.rx.wants_kick() {
            self.vsock.kick(0).unwrap();
        }
    }

    fn credit(&self) -> Credit {
        Credit { buf_alloc: self.buf_alloc, fwd_cnt: self.taken }
    }

    fn packet(&self, ports: Ports, op: Op) -> Packet {
        Packet {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            ..Packet::to_guest(ports, op, self.credit())
        }
    }

    fn send(&mut self, ports: Ports, op: Op) {
        self.send_packet(self.packet(ports, op), &[]);
    }

    fn send_data(&mut self, ports: Ports, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        self.send_packet(Packet { len, ..self.packet(ports, Op::Data) }, bytes);
    }

    fn shut(&mut self, ports: Ports, flags: u32) {
        self.send_packet(Packet { flags, ..self.packet(ports, Op::Shutdown) }, &[]);
    }

    fn send_packet(&mut self, packet: Packet, payload: &[u8]) {
        self.offer_packet(packet, payload);
        if self.tx.wants_kick() {
            self.vsock.kick(1).unwrap();
        }
        while self.tx.take_used().is_some() {}
    }

    fn offer_packet(&mut self, packet: Packet, payload: &[u8]) {
        let header = packet.encode();
        if payload.is_empty() {
            self.tx.offer(&[&header], &[]);
        } else {
            self.tx.offer(&[&header, payload], &[]);
        }
    }

    /// The next packet for the guest, without giving its buffer back.
    fn take(&mut self) -> Option<(Packet, Vec<u8>)> {
        let (_, bytes) = self.rx.take_used()?;
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let packet = Packet::decode(header);
        assert_eq!((packet.src_cid, packet.dst_cid, packet.kind), (HOST_CID, GUEST_CID, STREAM));
        assert_eq!(packet.len as usize, payload.len());
        Some((packet, payload.to_vec()))
    }

    fn receive(&mut self) -> Option<(Packet, Vec<u8>)> {
        let received = self.take()?;
        self.fill_rx();
        Some(received)
    }

    /// The next packet is this; returns its ports.
    fn expect(&mut self, op: Op) -> Ports {
        let (packet, _) = self.receive().expect("a packet");
        assert_eq!(Op::decode(packet.op), Some(op));
        Ports { host: packet.src_port, guest: packet.dst_port }
    }

    fn expect_any(&mut self) -> Op {
        let (packet, _) = self.receive().expect("a packet");
        Op::decode(packet.op).unwrap()
    }

    fn expect_shutdown(&mut self, flags: u32) {
        let (packet, _) = self.receive().expect("a packet");
        assert_eq!((Op::decode(packet.op), packet.flags), (Some(Op::Shutdown), flags));
    }

    fn expect_nothing(&mut self) {
        assert_eq!(self.receive(), None);
    }

    /// The event loop would call `ready`.
    fn is_awake(&self, timeout: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
        poll(&mut [PollFd::new(&self.vsock.epoll, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    /// One turn of the event loop, if there is anything to do.
    fn turn(&mut self) {
        if self.is_awake(Duration::ZERO) {
            self.vsock.ready().unwrap();
        }
    }

    /// The event loop until the device is content. A device that spins never is.
    fn settle(&mut self) {
        for _ in 0..100 {
            if !self.is_awake(Duration::ZERO) {
                return;
            }
            self.vsock.ready().unwrap();
        }
        panic!("the device wakes the event loop again and again");
    }

    fn connections(&self) -> usize {
        self.vsock.streams.len()
    }
}

/// A server that does not wait, and the way to it that the device is given.
fn server(folder: &Path, port: u32) -> (UnixListener, config::Outbound) {
    let server = UnixListener::bind(folder.join(SERVER)).unwrap();
    server.set_nonblocking(true).unwrap();
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    (server, config::Outbound { port, folder, name: SERVER })
}

fn start(vsock: &mut Vsock, memory: &Memory) -> (Driver, Driver) {
    let (rx, rx_queue) = Driver::new(memory, 0, SIZE);
    let (tx, tx_queue) = Driver::new(memory, 1, SIZE);
    let (_, event_queue) = Driver::new(memory, 2, SIZE);
    vsock.activate(memory.clone(), vec![rx_queue, tx_queue, event_queue]);
    (rx, tx)
}

/// What a client can read now.
fn read_all(client: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

fn is_at_end(client: &mut UnixStream) -> bool {
    matches!(client.read(&mut [0]), Ok(0))
}

/// Bytes that are not the same anywhere near.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}
