//! The vsock device: listening Unix sockets of the host lead to ports of the guest, and ports of the host, for the guest, to
//! Unix sockets.
//! It owns the queues, the listeners, the timer and when the guest is asked to end. It has no thread: a kick
//! comes on a vCPU's, `ready` on the event loop's, and neither waits. What the bytes mean is not its business.
//! Source: virtio 1.2, 5.10 "Socket Device".

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use self::connection::PACKET_MAX;
use self::listeners::Listeners;
use self::outbound::Outbound;
use self::packet::{GUEST_CID, HEADER_SIZE, HOST_CID, Packet, Ports};
pub(crate) use self::quota::{GUEST_STREAMS_MAX, LISTENER_STREAMS_MAX};
use self::quota::{Origin, Quotas};
use self::streams::Streams;
use self::timer::Timer;
use super::{BrokenQueue, Device, Memory, Profile, Queue};
use crate::marks::now_ns;
use crate::{config, descriptors};

mod packet;

mod connection;
mod listeners;
mod outbound;
mod quota;
mod streams;
mod timer;

/// virtio 1.2, 5.10.1 "Device ID".
const DEVICE_ID: u32 = 19;
/// rx, tx, event (5.10.2 "Virtqueues"). The driver fills rx with pages while it starts, so more costs time there;
/// of events it has eight and we send none.
const QUEUE_SIZES: [u16; 3] = [64, 64, 8];
/// What one call moves in each direction before other devices have their turn.
const PACKETS_MAX: usize = 64;
const BYTES_MAX: usize = 8 * PACKET_MAX;
/// Events taken from epoll, and connections from a listener, in one call.
const EVENTS_MAX: usize = 64;
const ACCEPTS_MAX: usize = 64;
/// The goodbye has to fit into a socket that nobody reads yet.
const GOODBYE_MAX: usize = 16 << 10;
/// The timer's token; listeners count from 0, and streams have larger ones.
const TIMER: u64 = u32::MAX as u64;

/// Why a device cannot be made; all of it is the host's or the configuration's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("create an epoll instance")]
    Epoll(#[source] io::Error),
    #[error("create a timer")]
    Timer(#[source] io::Error),
    #[error("prepare the listener of guest port {port}")]
    Listener { port: u32, source: io::Error },
    #[error("0 is not a port that the guest can connect to")]
    Outbound,
    #[error("the goodbye has {0} bytes, at most {GOODBYE_MAX} are sent")]
    Goodbye(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Vsock {
    config_space: [u8; 8],
    /// The listeners, the timer and the host sockets of all streams.
    epoll: Arc<OwnedFd>,
    timer: Timer,
    listeners: Listeners,
    streams: Streams,
    rings: Option<Rings>,
    /// The guest serves its ports.
    released: bool,
    idle_timeout_ns: Option<u64>,
    /// Since when no client of the host's has been connected.
    idle_since: Option<u64>,
    goodbye: Goodbye,
    before_delivery: BeforeDelivery,
}

/// What is done before the guest sees anything from the host.
struct BeforeDelivery(Box<dyn Fn() + Send>);

impl fmt::Debug for BeforeDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeforeDelivery")
    }
}

impl Vsock {
    /// # Errors
    /// When the host has no descriptors left, or the goodbye is too long.
    pub fn new(config: config::Vsock) -> Result<Self, Error> {
        let (port, bytes) = config.goodbye;
        if bytes.len() > GOODBYE_MAX {
            return Err(Error::Goodbye(bytes.len()));
        }
        let listeners = Listeners::new(config.listeners)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| Error::Epoll(errno.into()))?;
        let epoll = Arc::new(epoll);
        let timer = Timer::new().map_err(|errno| Error::Timer(errno.into()))?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)
            .map_err(|errno| Error::Epoll(errno.into()))?;
        let outbound = Outbound::new(config.outbound)?;
        let quotas = Quotas::new(descriptors::for_guest_streams(), listeners.count());
        let timeout_ns = |timeout: std::time::Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            config_space: GUEST_CID.to_le_bytes(),
            timer,
            listeners,
            streams: Streams::new(Arc::clone(&epoll), outbound, quotas),
            epoll,
            rings: None,
            released: false,
            idle_timeout_ns: config.idle_timeout.map(timeout_ns),
            idle_since: None,
            goodbye: Goodbye { port, bytes, said: false, near_end: None },
            before_delivery: BeforeDelivery(Box::new(|| ())),
        })
    }

    /// Has `act` done each time, after bytes were taken from the host and before the guest can see them. It must not wait.
    pub fn before_delivery(&mut self, act: impl Fn() + Send + 'static) {
        self.before_delivery = BeforeDelivery(Box::new(act));
    }

    /// The guest serves its ports from now on. Until then connections wait in their listeners.
    pub fn release(&mut self) {
        self.released = true;
        if self.goodbye.said {
            self.goodbye.send(&mut self.streams);
        }
        self.plan(self.streams.has_turn());
    }

    /// Asks the guest to end, as soon as it serves its ports.
    pub fn shutdown(&mut self) {
        if self.goodbye.said {
            return;
        }
        self.goodbye.said = true;
        if self.released {
            self.goodbye.send(&mut self.streams);
            self.plan(self.streams.has_turn());
        }
    }

    /// The guest has been asked to end, because of `shutdown` or because it was idle.
    #[must_use]
    pub fn goodbye_said(&self) -> bool {
        self.goodbye.said
    }

    /// Moves packets both ways as far as the budget goes.
    fn progress(&mut self) -> Result<(), BrokenQueue> {
        let Some(rings) = &mut self.rings else { return Ok(()) };
        let tx_left = rings.receive(&mut self.streams)?;
        let rx_left = rings.send(&mut self.streams, &self.before_delivery)?;
        self.streams.park();
        // If the guest has not even made room for its resets, it will kick when it does.
        self.plan(rx_left || tx_left && !self.streams.is_backed_up());
        Ok(())
    }

    /// Decides what the device is woken for next; `at_once` if it has not finished.
    fn plan(&mut self, at_once: bool) {
        let live = self.rings.is_some() && self.released;
        let may_accept = live && !self.streams.is_backed_up();
        self.listeners
            .watch(&self.epoll, |index| may_accept && self.streams.has_place(Origin::Listener(index)));
        if self.rings.is_none() {
            return self.timer.clear();
        }
        self.idle_since = match self.idle_since {
            since if live && self.streams.is_without_clients() => since.or_else(|| Some(now_ns())),
            _ => None,
        };
        let times = [
            at_once.then_some(0),
            self.idle_deadline(),
            self.listeners.paused_until(),
            self.streams.deadline(),
        ];
        if let Some(first) = times.into_iter().flatten().min() {
            self.timer.wake_by(first);
        }
    }

    fn idle_deadline(&self) -> Option<u64> {
        let timeout = self.idle_timeout_ns.filter(|_| !self.goodbye.said)?;
        Some(self.idle_since?.saturating_add(timeout))
    }

    /// The timer has run out: looks for everything that is due.
    fn expire(&mut self) {
        let now = now_ns();
        self.timer.clear();
        self.streams.expire(now);
        self.listeners.expire(now);
        if self.streams.is_without_clients() && self.idle_deadline().is_some_and(|deadline| deadline <= now) {
            self.shutdown();
        }
    }

    /// Takes what waits in a listener, and leaves the rest for the next call.
    fn accept(&mut self, index: usize) {
        for _ in 0..ACCEPTS_MAX {
            if !self.streams.has_place(Origin::Listener(index)) {
                return;
            }
            match self.listeners.accept(index) {
                Some((port, host)) => self.streams.open(host, port, Origin::Listener(index)),
                None => return,
            }
        }
    }
}

impl Device for Vsock {
    fn profile(&self) -> Profile {
        Profile { id: DEVICE_ID, features: 0, queue_sizes: &QUEUE_SIZES }
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        let [rx, tx, _event] = <[Queue; 3]>::try_from(queues).expect("as many as in the profile");
        self.rings = Some(Rings { memory, rx, tx });
        self.plan(self.streams.has_turn());
    }

    /// Which queue it is makes no difference: packets one way make packets the other way possible.
    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        self.progress().inspect_err(|_| self.reset())
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn ready(&mut self) -> Result<(), BrokenQueue> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        // An error is a signal; what is ready stays so.
        let count = epoll::wait(&self.epoll, &mut events, Some(&AT_ONCE)).unwrap_or(0);
        let mut expired = false;
        for event in &events[..count] {
            let (flags, token) = (event.flags, event.data.u64());
            match (Ports::from_token(token), token) {
                (Some(ports), _) => self.streams.wake(ports, flags),
                (None, TIMER) => expired = true,
                (None, index) => self.accept(usize::try_from(index).expect("less than 2^32")),
            }
        }
        // Last, so that a client that came in time is not told that the machine was idle.
        if expired {
            self.expire();
        }
        self.kick(0)
    }

    fn reset(&mut self) {
        self.rings = None;
        self.streams.clear();
        self.goodbye.near_end = None;
        self.plan(false);
    }
}

/// The bytes that ask the guest to end.
#[derive(Debug)]
struct Goodbye {
    port: u32,
    bytes: Vec<u8>,
    said: bool,
    /// Where the bytes were written: a client of our own, which stays to the end.
    near_end: Option<UnixStream>,
}

impl Goodbye {
    /// A failure is ignored: a guest that does not end is ended anyway, and a host without descriptors has worse
    /// problems.
    fn send(&mut self, streams: &mut Streams) {
        let pair = UnixStream::pair().and_then(|(mut near, far)| {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            near.write_all(&self.bytes)?;
            Ok((near, far))
        });
        if let Ok((near, far)) = pair {
            streams.open(far, self.port, Origin::Device);
            self.near_end = Some(near);
        }
    }
}

/// The queues in use, and the memory they are in.
#[derive(Debug)]
struct Rings {
    memory: Memory,
    rx: Queue,
    tx: Queue,
}

impl Rings {
    /// Takes packets from the guest. True if there may be more.
    fn receive(&mut self, streams: &mut Streams) -> Result<bool, BrokenQueue> {
        let mut bytes = 0;
        let mut left = true;
        self.tx.mute_kicks(&self.memory)?;
        for _ in 0..PACKETS_MAX {
            if bytes > BYTES_MAX || streams.is_backed_up() {
                break;
            }
            let Some(mut chain) = self.tx.pop(&self.memory)? else {
                left = self.tx.unmute_kicks(&self.memory)?;
                if left {
                    continue;
                }
                break;
            };
            let mut header = [0; HEADER_SIZE];
            if !chain.reader.read(&mut header) {
                return Err(BrokenQueue("packet has no header"));
            }
            let packet = Packet::decode(&header);
            bytes += chain.reader.remaining();
            // Others than these two do not exist.
            match (packet.src_cid, packet.dst_cid) {
                (GUEST_CID, HOST_CID) => streams.receive(&packet, &mut chain.reader),
                (GUEST_CID, _) => streams.refuse(&packet),
                _ => {}
            }
            self.tx.complete(&self.memory, chain)?;
        }
        self.tx.notify(&self.memory)?;
        Ok(left)
    }

    /// Gives packets to the guest. True if there may be more, and room for them.
    fn send(&mut self, streams: &mut Streams, before: &BeforeDelivery) -> Result<bool, BrokenQueue> {
        let mut bytes = 0;
        let mut left = true;
        for _ in 0..PACKETS_MAX {
            left = streams.has_turn();
            if bytes > BYTES_MAX || !left {
                break;
            }
            let Some(mut chain) = self.rx.pop(&self.memory)? else {
                left = self.rx.unmute_kicks(&self.memory)?;
                if left {
                    continue;
                }
                break;
            };
            if streams.fill(&mut chain.writer)? {
                bytes += chain.writer.written() as usize;
                (before.0)();
                self.rx.complete(&self.memory, chain)?;
            } else {
                self.rx.put_back(chain);
            }
        }
        self.rx.notify(&self.memory)?;
        Ok(left)
    }
}

#[cfg(test)]
mod tests;
