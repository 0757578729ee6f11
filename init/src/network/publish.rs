//! Published ports: one process, one loop over all connections that the host has with services of the guest.
//! It owns how many there may be, and how a service is found. Which ports are published is decided on the host.

use std::convert::Infallible;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use protocol::{Answer, PUBLISH_LEN, Publish};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, connect, getpeername, recv, socket_with, sockopt,
};

use super::link::{CHUNK, End, Fate, Link, Side, connecting, write};
use super::links::{Carried, Links};

/// Connections at once; the host has no more. More wait in the listener.
const LINKS_MAX: usize = 1024;
/// For a service to take a connection: one that is up does at once, but for one that lets too many wait.
const TAKE_TIMEOUT_MS: u32 = 5000;
/// Where a service may listen, or at all addresses: they are tried in this order.
const PLACES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Carries the host's connections to the services that they name.
///
/// # Errors
/// When the kernel has no more memory for it.
pub fn run(listener: &OwnedFd) -> Result<Infallible> {
    let mut links = Links::new(listener, LINKS_MAX).context("create an epoll instance")?;
    loop {
        links.turn(|host, _| Some(Visit::new(host)), |_, _| ()).context("watch for connections")?;
    }
}

/// A connection of the host's.
enum Visit {
    Arriving(Arrival),
    Open(Link),
    /// Nothing is left of it.
    Over,
}

/// One whose service is not found yet.
struct Arrival {
    host: End,
    head: [u8; PUBLISH_LEN],
    read: usize,
    /// Once it is known which; it is still connecting.
    program: Option<End>,
    /// How many places have been tried.
    tried: usize,
}

enum Step {
    Waits,
    Open,
    Over,
}

impl Visit {
    fn new(host: OwnedFd) -> Self {
        let (head, read) = ([0; PUBLISH_LEN], 0);
        Self::Arriving(Arrival { host: End::new(host), head, read, program: None, tried: 0 })
    }

    fn arrive(&mut self) {
        let Self::Arriving(arrival) = self else { return };
        match arrival.progress() {
            Step::Waits => {}
            Step::Over => *self = Self::Over,
            Step::Open => {
                if let Self::Arriving(Arrival { host, program: Some(program), .. }) =
                    mem::replace(self, Self::Over)
                {
                    *self = Self::Open(Link::joined(program, host));
                }
            }
        }
    }
}

impl Carried for Visit {
    fn progress(&mut self, chunk: &mut [u8; CHUNK]) -> Fate {
        self.arrive();
        match self {
            Self::Arriving(_) => Fate::Lives,
            Self::Open(link) => link.progress(chunk),
            Self::Over => Fate::Ended,
        }
    }

    fn watch(&mut self, epoll: &OwnedFd, token: impl Fn(Side) -> u64) -> rustix::io::Result<()> {
        match self {
            Self::Arriving(Arrival { host, program: None, .. }) => {
                host.watch(epoll, token(Side::Gateway), EventFlags::IN)
            }
            Self::Arriving(Arrival { host, program: Some(program), .. }) => {
                // What the host sends meanwhile waits, its end as well.
                host.watch(epoll, token(Side::Gateway), EventFlags::empty())?;
                program.watch(epoll, token(Side::Program), EventFlags::OUT)
            }
            Self::Open(link) => link.watch(epoll, token),
            Self::Over => Ok(()),
        }
    }

    fn reset(self) {
        if let Self::Open(link) = self {
            link.reset();
        }
    }
}

impl Arrival {
    fn progress(&mut self) -> Step {
        while self.read < PUBLISH_LEN {
            match recv(&self.host, &mut self.head[self.read..], RecvFlags::empty()) {
                Ok((count @ 1.., _)) => self.read += count,
                Err(Errno::AGAIN | Errno::INTR) => return Step::Waits,
                _ => return Step::Over,
            }
        }
        let Ok(Publish { port }) = Publish::decode(self.head) else { return Step::Over };
        loop {
            match self.program.as_ref().map(|it| is_connected(it.as_fd())) {
                Some(Ok(true)) => return Step::Open,
                Some(Ok(false)) => return Step::Waits,
                // Not yet tried, or not there.
                None | Some(Err(_)) => {}
            }
            let Some(place) = PLACES.get(self.tried) else {
                let _ = write(self.host.as_fd(), &[Answer::Refused as u8]);
                return Step::Over;
            };
            self.tried += 1;
            self.program = dial(SocketAddr::new(*place, port)).ok().map(End::new);
        }
    }
}

/// Begins to connect, without waiting.
fn dial(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Small messages are answers that somebody waits for.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_tcp_user_timeout(&socket, TAKE_TIMEOUT_MS);
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

fn is_connected(socket: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    connecting(socket)?;
    match getpeername(socket) {
        Ok(_) => {
            // How long it takes for what it is sent is its own business.
            sockopt::set_tcp_user_timeout(socket, 0)?;
            Ok(true)
        }
        Err(Errno::NOTCONN) => Ok(false),
        Err(errno) => Err(errno),
    }
}
