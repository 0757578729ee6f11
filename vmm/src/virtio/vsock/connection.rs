//! One stream between a host socket and a guest port, whoever has opened it.
//! It owns the socket, the bytes that the host has not taken yet, and all that the two ends know of each other.
//! It does not know of queues or of other connections: it is given packets and asked for packets.
//! Source: virtio 1.2, 5.10.6.3 "Buffer Space Management" and 5.10.6.5 "Stream Sockets".

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::packet::{Credit, Op, Packet, Ports, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use crate::marks::now_ns;
use crate::virtio::{Reader, Writer};

/// The largest payload of a packet, either way.
pub const PACKET_MAX: usize = 64 << 10;
/// How long the guest has to answer a REQUEST, or a SHUTDOWN of both directions.
const ANSWER_TIMEOUT_NS: u64 = 10_000_000_000;

/// What has become of a connection by a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// The guest has closed it, and is told so by a reset; what it sent before still goes to the host.
    Closed,
    /// The guest broke the rules.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not heard of it.
    New,
    Requested,
    /// The guest has requested it, and not heard that it has it.
    Accepted,
    Established,
    /// The guest has forgotten it.
    Gone,
}

#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    host: UnixStream,
    phase: Phase,
    /// When the guest must have answered, in nanoseconds of the monotonic clock.
    deadline: Option<u64>,
    /// What epoll watches the socket for; `None` when it does not have it.
    watched: Option<EventFlags>,

    /// The host socket has data, as far as is known.
    readable: bool,
    /// Bytes sent to the guest, ever; wraps.
    sent: u32,
    guest_credit: Credit,

    /// What the guest may send before the host socket takes any of it.
    buf_alloc: u32,
    /// What the guest has sent and the host not taken, at most `buf_alloc` bytes.
    buffer: VecDeque<u8>,
    /// Bytes from the guest that have left the buffer, ever, and how many of them the guest knows of; both wrap.
    forwarded: u32,
    told: u32,
    update_due: bool,

    /// Directions closed by the guest, by the host, and those by the host that the guest knows of.
    guest_shut: u32,
    host_shut: u32,
    told_shut: u32,
    /// The host socket is closed both ways, which epoll would report for ever.
    hung_up: bool,
}

impl Connection {
    /// The guest is going to be asked for it. `host` must not block.
    pub fn new(ports: Ports, host: UnixStream, buf_alloc: u32) -> Self {
        Self {
            ports,
            host,
            phase: Phase::New,
            deadline: Some(now_ns() + ANSWER_TIMEOUT_NS),
            watched: None,
            readable: false,
            sent: 0,
            guest_credit: Credit::default(),
            buf_alloc,
            buffer: VecDeque::new(),
            forwarded: 0,
            told: 0,
            update_due: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            hung_up: false,
        }
    }

    /// The guest has asked for it, by a packet with this credit.
    pub fn accepted(ports: Ports, host: UnixStream, buf_alloc: u32, guest_credit: Credit) -> Self {
        let new = Self::new(ports, host, buf_alloc);
        Self { phase: Phase::Accepted, deadline: None, guest_credit, ..new }
    }

    pub fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// The guest does not know the connection any more.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    #[cfg(test)]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Nothing is left to be done for either end.
    pub fn is_finished(&self) -> bool {
        self.is_gone() && self.buffer.is_empty()
    }

    /// There may be a packet for the guest.
    pub fn wants_turn(&self) -> bool {
        match self.phase {
            Phase::New | Phase::Accepted => true,
            Phase::Established => {
                self.readable && self.may_read() || self.owes_shutdown() || self.owes_credit()
            }
            Phase::Requested | Phase::Gone => false,
        }
    }

    /// Takes a packet from the guest; `payload` is what follows its header in the chain.
    pub fn receive(&mut self, packet: &Packet, op: Op, payload: &mut Reader<'_>) -> Verdict {
        self.guest_credit = packet.credit;
        match (self.phase, op) {
            (_, Op::Reset) => self.guest_is_gone(),
            (Phase::Requested, Op::Response) => {
                self.phase = Phase::Established;
                self.deadline = None;
                // Clients speak first and do not wait: there is something to read more often than not.
                self.readable = true;
            }
            (Phase::Established, Op::Data) => return self.take(payload, packet.len),
            (Phase::Established, Op::Shutdown) => return self.shut(packet.flags),
            (Phase::Established, Op::CreditUpdate) => {}
            (Phase::Established, Op::CreditRequest) => self.update_due = true,
            _ => return Verdict::Broken,
        }
        Verdict::Fine
    }

    /// The next packet for the guest. Its payload, if any, has been read into `payload`, which has room.
    pub fn next_packet(&mut self, payload: &mut Writer<'_>) -> Option<Packet> {
        match self.phase {
            Phase::New => {
                self.phase = Phase::Requested;
                return Some(self.packet(Op::Request));
            }
            Phase::Accepted => {
                self.phase = Phase::Established;
                return Some(self.packet(Op::Response));
            }
            Phase::Requested | Phase::Gone => return None,
            Phase::Established => {}
        }
        if let Some(len) = self.read(payload) {
            return Some(Packet { len, ..self.packet(Op::Data) });
        }
        if self.owes_shutdown() {
            self.told_shut = self.host_shut;
            if self.told_shut == SHUT_BOTH {
                self.deadline = Some(now_ns() + ANSWER_TIMEOUT_NS);
            }
            return Some(Packet { flags: self.told_shut, ..self.packet(Op::Shutdown) });
        }
        self.owes_credit().then(|| self.packet(Op::CreditUpdate))
    }

    /// epoll has seen `events` on the host socket.
    pub fn wake(&mut self, events: EventFlags) {
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.hung_up = true;
            self.host_is_deaf();
            self.readable = true;
        }
        if events.contains(EventFlags::IN) {
            self.readable = true;
        }
        if events.contains(EventFlags::OUT) {
            self.flush();
        }
    }

    /// Has epoll watch for what can change something, and nothing else: what is reported and not acted on would
    /// be reported again at once.
    pub fn watch(&mut self, epoll: &OwnedFd) -> rustix::io::Result<()> {
        let wanted = self.interest();
        if wanted == self.watched {
            return Ok(());
        }
        let token = EventData::new_u64(self.ports.token());
        match (self.watched, wanted) {
            (None, Some(events)) => epoll::add(epoll, &self.host, token, events)?,
            (Some(_), Some(events)) => epoll::modify(epoll, &self.host, token, events)?,
            (_, None) => epoll::delete(epoll, &self.host)?,
        }
        self.watched = wanted;
        Ok(())
    }

    fn interest(&self) -> Option<EventFlags> {
        let mut events = EventFlags::empty();
        events.set(EventFlags::IN, self.may_read() && !self.readable);
        events.set(EventFlags::OUT, !self.buffer.is_empty());
        // Without any of them epoll still reports that the socket is closed both ways.
        let waits_for_guest = matches!(self.phase, Phase::New | Phase::Requested | Phase::Accepted);
        let useless = waits_for_guest || self.hung_up && events.is_empty();
        (!useless).then_some(events)
    }

    /// The host may have more to say, and the guest has room for it.
    fn may_read(&self) -> bool {
        self.phase == Phase::Established
            && self.host_shut & SHUT_SEND == 0
            && self.guest_shut & SHUT_RECEIVE == 0
            && self.guest_room() > 0
    }

    /// What the guest can take. A guest that claims to have taken more than it was sent stalls itself.
    fn guest_room(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_credit.fwd_cnt);
        self.guest_credit.buf_alloc.saturating_sub(in_flight)
    }

    fn owes_shutdown(&self) -> bool {
        self.host_shut != self.told_shut
    }

    /// The guest asked, or may soon stop for want of credit.
    fn owes_credit(&self) -> bool {
        self.update_due || self.forwarded.wrapping_sub(self.told) >= self.buf_alloc / 2
    }

    /// Every packet carries the credit.
    fn packet(&mut self, op: Op) -> Packet {
        self.told = self.forwarded;
        self.update_due = false;
        Packet::to_guest(self.ports, op, Credit { buf_alloc: self.buf_alloc, fwd_cnt: self.forwarded })
    }

    fn read(&mut self, payload: &mut Writer<'_>) -> Option<u32> {
        if !self.readable || !self.may_read() {
            return None;
        }
        let room = payload.remaining().min(PACKET_MAX).min(self.guest_room() as usize);
        match payload.read_from_stream(self.host.as_fd(), room) {
            Ok(0) => {
                self.readable = false;
                self.host_shut |= SHUT_SEND;
                // Closed as a whole, the guest hears so at once: one direction alone would look like a good end.
                if is_closed(&self.host) {
                    self.host_is_deaf();
                }
            }
            Ok(count) => {
                // Less than there was room for is all there was; if not, epoll will say so.
                self.readable = count == room;
                let count = bytes(count);
                self.sent = self.sent.wrapping_add(count);
                return Some(count);
            }
            Err(error) if is_transient(&error) => self.readable = false,
            Err(_) => {
                self.readable = false;
                self.host_shut |= SHUT_SEND;
                self.host_is_deaf();
            }
        }
        None
    }

    /// Takes `len` bytes from the guest: the socket as many as it will, the buffer the rest.
    fn take(&mut self, payload: &mut Reader<'_>, len: u32) -> Verdict {
        let mut left = len as usize;
        let room = self.buf_alloc as usize - self.buffer.len();
        if self.guest_shut & SHUT_SEND != 0 || left > payload.remaining().min(PACKET_MAX).min(room) {
            return Verdict::Broken;
        }
        if self.buffer.is_empty() && self.host_shut & SHUT_RECEIVE == 0 {
            match payload.write_to_stream(self.host.as_fd(), left) {
                Ok(count) => {
                    self.forwarded = self.forwarded.wrapping_add(bytes(count));
                    left -= count;
                }
                Err(error) if is_transient(&error) => {}
                Err(_) => self.host_is_deaf(),
            }
        }
        if self.host_shut & SHUT_RECEIVE == 0 {
            self.keep(payload, left);
        } else {
            self.forwarded = self.forwarded.wrapping_add(bytes(left));
        }
        Verdict::Fine
    }

    fn keep(&mut self, payload: &mut Reader<'_>, mut left: usize) {
        let mut chunk = [0; 4096];
        while left > 0 {
            let part = &mut chunk[..left.min(4096)];
            assert!(payload.read(part), "the caller has seen that it is there");
            self.buffer.extend(&*part);
            left -= part.len();
        }
    }

    /// The guest will not receive, or not send, any more.
    fn shut(&mut self, flags: u32) -> Verdict {
        self.guest_shut |= flags & SHUT_BOTH;
        if self.guest_shut == SHUT_BOTH {
            self.guest_is_gone();
            return Verdict::Closed;
        }
        if self.guest_shut & SHUT_RECEIVE != 0 {
            // Fails for a socket that is closed already, which is as good.
            let _ = shutdown(&self.host, Shutdown::Read);
        }
        self.flush();
        Verdict::Fine
    }

    fn guest_is_gone(&mut self) {
        self.phase = Phase::Gone;
        self.deadline = None;
        // A client that writes and does not read learns of it too.
        let _ = shutdown(&self.host, Shutdown::Read);
    }

    /// Gives the host what is in the buffer, and then the end of it if the guest has said that it was all.
    fn flush(&mut self) {
        while !self.buffer.is_empty() && self.host_shut & SHUT_RECEIVE == 0 {
            match send(&self.host, self.buffer.as_slices().0, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(bytes(count));
                }
                Err(error) if is_transient(&error.into()) => return,
                Err(_) => self.host_is_deaf(),
            }
        }
        // Most connections never need it again.
        self.buffer = VecDeque::new();
        if self.guest_shut & SHUT_SEND != 0 {
            let _ = shutdown(&self.host, Shutdown::Write);
        }
    }

    /// Nobody reads the host's end: what was meant for it counts as taken.
    fn host_is_deaf(&mut self) {
        self.host_shut |= SHUT_RECEIVE;
        self.forwarded = self.forwarded.wrapping_add(bytes(self.buffer.len()));
        self.buffer = VecDeque::new();
    }
}

/// Nobody has the other end any more.
fn is_closed(host: &UnixStream) -> bool {
    let mut polled = [PollFd::new(host, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A number of bytes in the unit of the credit counters.
fn bytes(count: usize) -> u32 {
    u32::try_from(count).expect("at most a buffer or a packet")
}
