//! The relay: one process, one loop over all connections that leave the guest.
//! It owns how many there may be, and whose turn it is. It decides nothing: the gateway does.

use std::convert::Infallible;

use anyhow::{Context, Result};
use protocol::Stream;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{SocketAddrAny, SocketAddrV4, SocketFlags, acceptfrom_with, sockopt};

use super::link::{CHUNK, Fate, Link, Side};
use super::names::Names;
use super::rules::{ADDRESS, PORT};

/// Connections at once. More wait in the listener.
const LINKS_MAX: usize = 4000;
const EVENTS_MAX: usize = 256;
const ACCEPTS_MAX: usize = 64;

/// Tokens; those of links follow, two each.
const STREAMS: u64 = 0;
const NAMES: u64 = 1;
const WIRE: u64 = 2;
const AGENT: u64 = 3;
const FIRST: u64 = 4;

struct Relay<'a, C> {
    epoll: OwnedFd,
    streams: &'a OwnedFd,
    agent: Option<&'a OwnedFd>,
    accepting: bool,
    names: Names<'a>,
    /// By their tokens; `free` are the indices of those that are `None`.
    links: Vec<Option<Link>>,
    free: Vec<usize>,
    connect: C,
}

/// Carries connections and questions to where `connect` leads.
///
/// # Errors
/// When the kernel has no more memory for it.
pub fn run(
    streams: &OwnedFd,
    names: &OwnedFd,
    agent: Option<&OwnedFd>,
    connect: impl Fn() -> rustix::io::Result<OwnedFd>,
) -> Result<Infallible> {
    let epoll = epoll::create(CreateFlags::CLOEXEC).context("create an epoll instance")?;
    epoll::add(&epoll, names, EventData::new_u64(NAMES), EventFlags::IN).context("watch for questions")?;
    let mut relay = Relay {
        epoll,
        streams,
        agent,
        accepting: false,
        names: Names::new(names),
        links: Vec::new(),
        free: Vec::new(),
        connect,
    };
    let mut chunk = Box::new([0; CHUNK]);
    let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
    loop {
        relay.plan().context("watch for connections")?;
        // An error is a signal.
        let count = epoll::wait(&relay.epoll, &mut events[..], None).unwrap_or(0);
        let (mut accepts, mut agent) = (false, false);
        for event in &events[..count] {
            match event.data.u64() {
                STREAMS => accepts = true,
                AGENT => agent = true,
                NAMES => relay.questions(),
                WIRE => relay.answers(),
                token => relay.link(token, &mut chunk),
            }
        }
        // Last, so that no event of a link before it is taken for its own.
        if accepts {
            relay.accept(relay.streams, &mut chunk);
        }
        if let Some(socket) = relay.agent.filter(|_| agent) {
            relay.accept(socket, &mut chunk);
        }
    }
}

impl<C: Fn() -> rustix::io::Result<OwnedFd>> Relay<'_, C> {
    fn open(&self) -> usize {
        self.links.len() - self.free.len()
    }

    fn plan(&mut self) -> rustix::io::Result<()> {
        let wanted = self.open() < LINKS_MAX;
        if wanted != self.accepting {
            for (socket, token) in [(Some(self.streams), STREAMS), (self.agent, AGENT)] {
                match (socket, wanted) {
                    (None, _) => {}
                    (Some(socket), true) => {
                        epoll::add(&self.epoll, socket, EventData::new_u64(token), EventFlags::IN)?;
                    }
                    (Some(socket), false) => epoll::delete(&self.epoll, socket)?,
                }
            }
            self.accepting = wanted;
        }
        Ok(())
    }

    fn accept(&mut self, from: &OwnedFd, chunk: &mut [u8; CHUNK]) {
        for _ in 0..ACCEPTS_MAX.min(LINKS_MAX - self.open()) {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok((program, peer)) = acceptfrom_with(from, flags) else { return };
            let is_agent = self.agent.is_some_and(|agent| std::ptr::eq(agent, from));
            let begun = if is_agent { self.join(program, Stream::Agent) } else { self.begin(program, peer) };
            let Some(link) = begun else { continue };
            let index = self.free.pop().unwrap_or(self.links.len());
            if index == self.links.len() {
                self.links.push(None);
            }
            self.links[index] = Some(link);
            self.link(FIRST + 2 * index as u64, chunk);
        }
    }

    /// A program that cannot be served is reset, as all are that nobody serves.
    fn begin(&self, program: OwnedFd, from: Option<SocketAddrAny>) -> Option<Link> {
        let to = sockopt::ip_original_dst(&program).ok()?;
        // Small messages are answers that somebody waits for.
        let _ = sockopt::set_tcp_nodelay(&program, true);
        self.join(
            program,
            match to.port() {
                PORT => Stream::Dns,
                _ if is_own(from) => Stream::Tcp(to),
                _ => Stream::Container(to),
            },
        )
    }

    fn join(&self, program: OwnedFd, stream: Stream) -> Option<Link> {
        match (self.connect)() {
            Ok(gateway) => Some(Link::new(program, gateway, stream)),
            Err(_) => {
                let _ = sockopt::set_socket_linger(&program, Some(std::time::Duration::ZERO));
                None
            }
        }
    }

    fn link(&mut self, token: u64, chunk: &mut [u8; CHUNK]) {
        let index = usize::try_from((token - FIRST) / 2).unwrap_or(usize::MAX);
        let Some(slot) = self.links.get_mut(index) else { return };
        let Some(link) = slot else { return };
        let mut fate = link.progress(chunk);
        let token = |side| FIRST + 2 * index as u64 + u64::from(side == Side::Gateway);
        if fate == Fate::Lives && link.watch(&self.epoll, token).is_err() {
            fate = Fate::Broken;
        }
        if fate == Fate::Lives {
            return;
        }
        if let Some(link) = slot.take() {
            self.free.push(index);
            if fate == Fate::Broken {
                link.reset();
            }
        }
    }

    fn questions(&mut self) {
        if self.names.asked(&self.connect)
            && let Some((wire, _)) = self.names.wire()
        {
            let _ = epoll::add(&self.epoll, wire, EventData::new_u64(WIRE), EventFlags::IN | EventFlags::OUT);
        }
        self.watch_wire();
    }

    fn answers(&mut self) {
        if self.names.progress() {
            self.watch_wire();
        }
    }

    fn watch_wire(&self) {
        if let Some((wire, writes)) = self.names.wire() {
            let events = if writes { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let _ = epoll::modify(&self.epoll, wire.as_fd(), EventData::new_u64(WIRE), events);
        }
    }
}

/// Whether the program is one of the sandbox's own: all others have an address of another network, a container's.
fn is_own(from: Option<SocketAddrAny>) -> bool {
    let from = from.and_then(|it| SocketAddrV4::try_from(it).ok());
    from.is_some_and(|it| it.ip().is_loopback() || *it.ip() == ADDRESS)
}
