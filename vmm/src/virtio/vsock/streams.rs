//! All connections of the device, and the order in which they may speak to the guest.
//! It owns which connections there are and may be, the round robin between them, and the resets the guest is still owed.
//! It does not know of queues or listeners: it takes packets from the guest and fills buffers for it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::connection::{Connection, Verdict};
use super::outbound::Outbound;
use super::packet::{Credit, HEADER_SIZE, Op, Packet, Ports, STREAM};
use super::quota::{Origin, Quotas};
use crate::virtio::{BrokenQueue, Reader, Writer};

/// With so many resets the guest has not made room for, no more of its packets are looked at (virtio 1.2, 5.10.6.1
/// "Virtqueue Flow Control").
const RESETS_MAX: usize = 256;
/// Host ports of what the host opens count up from here, so one is not used again while the guest may remember it.
const PORT_FIRST: u32 = 1 << 30;

impl Ports {
    /// The pair as one number, for epoll. It is never less than 2^32, as no host port is 0.
    pub fn token(self) -> u64 {
        u64::from(self.host) << 32 | u64::from(self.guest)
    }

    /// `None` for a number that `token` does not return.
    pub fn from_token(token: u64) -> Option<Self> {
        let low = |n: u64| u32::try_from(n & 0xffff_ffff).expect("masked to 32 bits");
        Some(Self { host: low(token >> 32), guest: low(token) }).filter(|ports| ports.host != 0)
    }
}

#[derive(Debug)]
pub struct Streams {
    epoll: Arc<OwnedFd>,
    outbound: Outbound,
    quotas: Quotas,
    connections: BTreeMap<Ports, Entry>,
    /// Connections that may have a packet for the guest, the next one first. Each is in it once at most.
    turns: VecDeque<Ports>,
    resets: VecDeque<Packet>,
    port_next: u32,
    /// Not later than the first deadline of a connection.
    deadline: Option<u64>,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    origin: Origin,
    /// It is in `turns`.
    queued: bool,
}

impl Streams {
    /// `epoll` is where the sockets are watched, by the token of their ports; `outbound` are those that the guest may open.
    pub fn new(epoll: Arc<OwnedFd>, outbound: Outbound, quotas: Quotas) -> Self {
        Self {
            epoll,
            outbound,
            quotas,
            connections: BTreeMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            port_next: PORT_FIRST,
            deadline: None,
        }
    }

    /// No client of the host's is connected. What the guest has opened does not count.
    pub fn is_without_clients(&self) -> bool {
        self.quotas.is_without_clients()
    }

    pub fn has_place(&self, origin: Origin) -> bool {
        self.quotas.has_place(origin)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    #[cfg(test)]
    pub fn buffered(&self) -> usize {
        self.connections.values().map(|entry| entry.connection.buffered()).sum()
    }

    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// There may be a packet for the guest.
    pub fn has_turn(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// The guest has to take packets before more of its own are looked at.
    pub fn is_backed_up(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// Begins a connection from the host, if there is a place for it. `host` must not block.
    pub fn open(&mut self, host: UnixStream, guest_port: u32, origin: Origin) {
        let Some(buf_alloc) = self.quotas.take(origin) else { return };
        let ports = self.unused_ports(guest_port);
        self.begin(ports, Connection::new(ports, host, buf_alloc), origin);
    }

    /// Begins a connection that the guest asks for; false if it cannot have it.
    fn admit(&mut self, packet: &Packet) -> bool {
        let ports = packet.ports();
        let Some(place) = self.outbound.place(ports.host) else { return false };
        // The guest may have closed one with these ports of which the host has not taken all yet.
        if self.connections.contains_key(&ports) {
            return false;
        }
        let Some(buf_alloc) = self.quotas.take(Origin::Guest) else { return false };
        match place.connect(buf_alloc) {
            Ok(host) => {
                let connection = Connection::accepted(ports, host, buf_alloc, packet.credit);
                self.begin(ports, connection, Origin::Guest);
                true
            }
            Err(_) => {
                self.quotas.give_back(Origin::Guest, buf_alloc);
                false
            }
        }
    }

    fn begin(&mut self, ports: Ports, connection: Connection, origin: Origin) {
        self.note_deadline(connection.deadline());
        self.connections.insert(ports, Entry { connection, origin, queued: false });
        self.settle(ports);
    }

    /// Ends all connections without a word to the guest.
    pub fn clear(&mut self) {
        for entry in std::mem::take(&mut self.connections).into_values() {
            self.quotas.give_back(entry.origin, entry.connection.buf_alloc());
        }
        self.turns.clear();
        self.resets.clear();
        self.deadline = None;
    }

    /// epoll has seen `events` on the socket of `ports`.
    pub fn wake(&mut self, ports: Ports, events: EventFlags) {
        if let Some(entry) = self.connections.get_mut(&ports) {
            entry.connection.wake(events);
            self.settle(ports);
        }
    }

    /// Takes a packet that the guest has addressed to the host; `payload` is what follows the header.
    pub fn receive(&mut self, packet: &Packet, payload: &mut Reader<'_>) {
        let ports = packet.ports();
        let op = Op::decode(packet.op);
        let known = self.connections.get_mut(&ports).map(|entry| &mut entry.connection);
        let Some(connection) = known.filter(|known| packet.kind == STREAM && !known.is_gone()) else {
            // A REQUEST that leads nowhere is refused like all the rest.
            let is_request = op == Some(Op::Request) && packet.kind == STREAM;
            if op != Some(Op::Reset) && !(is_request && self.admit(packet)) {
                let reset = Packet::to_guest(ports, Op::Reset, Credit::default());
                self.resets.push_back(Packet { kind: packet.kind, ..reset });
            }
            return;
        };
        match op.map_or(Verdict::Broken, |op| connection.receive(packet, op, payload)) {
            Verdict::Fine => {}
            Verdict::Closed => self.resets.push_back(Packet::to_guest(ports, Op::Reset, Credit::default())),
            Verdict::Broken => return self.reset(ports),
        }
        self.settle(ports);
    }

    /// Takes a packet to an address that nobody has: who tries to connect there is told at once.
    pub fn refuse(&mut self, packet: &Packet) {
        if Op::decode(packet.op) == Some(Op::Request) {
            let reset = Packet::to_guest(packet.ports(), Op::Reset, Credit::default());
            self.resets.push_back(Packet { src_cid: packet.dst_cid, kind: packet.kind, ..reset });
        }
    }

    /// Writes the next packet for the guest; false if there was none after all.
    pub fn fill(&mut self, payload: &mut Writer<'_>) -> Result<bool, BrokenQueue> {
        let header = payload.split(HEADER_SIZE).filter(|_| payload.remaining() > 0);
        let mut header = header.ok_or(BrokenQueue("receive buffer has no room for a packet"))?;
        let packet = self.resets.pop_front().or_else(|| self.next_packet(payload));
        let Some(packet) = packet else { return Ok(false) };
        assert!(header.write(&packet.encode()), "it was made for a header");
        payload.join(&header);
        Ok(true)
    }

    /// To be called when the guest takes no more for now: those whose turn has not come are not watched for what
    /// they are known to have.
    pub fn park(&mut self) {
        for _ in 0..self.turns.len() {
            let Some(ports) = self.turns.pop_front() else { return };
            let Some(entry) = self.connections.get_mut(&ports) else { continue };
            match entry.connection.watch(&self.epoll) {
                Ok(()) => self.turns.push_back(ports),
                Err(_) => self.reset(ports),
            }
        }
    }

    /// Resets the connections whose guest has not answered in time.
    pub fn expire(&mut self, now: u64) {
        if self.deadline.is_none_or(|first| first > now) {
            return;
        }
        let deadlines = self.connections.iter().map(|(ports, entry)| (*ports, entry.connection.deadline()));
        let (late, pending): (Vec<_>, Vec<_>) =
            deadlines.filter_map(|(ports, at)| Some((ports, at?))).partition(|(_, at)| *at <= now);
        self.deadline = pending.into_iter().map(|(_, at)| at).min();
        for (ports, _) in late {
            self.reset(ports);
        }
    }

    /// The packet of the first connection in turn that has one.
    fn next_packet(&mut self, payload: &mut Writer<'_>) -> Option<Packet> {
        while let Some(ports) = self.turns.pop_front() {
            let Some(entry) = self.connections.get_mut(&ports) else { continue };
            entry.queued = false;
            let packet = entry.connection.next_packet(payload);
            let deadline = entry.connection.deadline();
            self.note_deadline(deadline);
            self.settle(ports);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Draws the consequences of what has happened to a connection: it ends, it gets a turn, or it is watched.
    fn settle(&mut self, ports: Ports) {
        let Some(entry) = self.connections.get_mut(&ports) else { return };
        if entry.connection.is_finished() {
            self.remove(ports);
        } else if entry.connection.wants_turn() {
            if !entry.queued {
                entry.queued = true;
                self.turns.push_back(ports);
            }
        } else if entry.connection.watch(&self.epoll).is_err() {
            self.reset(ports);
        }
    }

    /// Ends a connection at once and tells the guest, if it has not ended it itself.
    fn reset(&mut self, ports: Ports) {
        if self.remove(ports).is_some_and(|connection| !connection.is_gone()) {
            self.resets.push_back(Packet::to_guest(ports, Op::Reset, Credit::default()));
        }
    }

    fn remove(&mut self, ports: Ports) -> Option<Connection> {
        let entry = self.connections.remove(&ports)?;
        self.quotas.give_back(entry.origin, entry.connection.buf_alloc());
        if entry.queued {
            self.turns.retain(|other| *other != ports);
        }
        Some(entry.connection)
    }

    fn note_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = [self.deadline, deadline].into_iter().flatten().min();
    }

    fn unused_ports(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: self.port_next, guest };
            self.port_next = self.port_next.checked_add(1).unwrap_or(PORT_FIRST);
            if !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }
}
