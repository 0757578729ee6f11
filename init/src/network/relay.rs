//! The relay: one process, one loop over all connections that leave the guest.
//! It owns how many there may be, and what each is for. It decides nothing: the gateway does.

use std::convert::Infallible;

use anyhow::{Context, Result};
use protocol::Stream;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{SocketAddrAny, SocketAddrV4, sockopt};

use super::link::Link;
use super::links::Links;
use super::names::Names;
use super::rules::{ADDRESS, PORT};

/// Connections at once. More wait in the listener.
const LINKS_MAX: usize = 4000;
const AGENT_LINKS_MAX: usize = 64;

/// Tokens of ours.
const NAMES: u64 = 1;
const WIRE: u64 = 2;

/// Carries connections and questions to where `connect` leads.
///
/// # Errors
/// When the kernel has no more memory for it.
pub fn run(
    streams: &OwnedFd,
    names: &OwnedFd,
    connect: impl Fn() -> rustix::io::Result<OwnedFd>,
) -> Result<Infallible> {
    let mut links = Links::new(streams, LINKS_MAX).context("create an epoll instance")?;
    epoll::add(&links.epoll, names, EventData::new_u64(NAMES), EventFlags::IN)
        .context("watch for questions")?;
    let mut names = Names::new(names);
    loop {
        let other = |epoll: &OwnedFd, token| match token {
            NAMES => ask(&mut names, epoll, &connect),
            _ => answer(&mut names, epoll),
        };
        links.turn(|program, from| begin(program, from, &connect), other).context("watch for connections")?;
    }
}

/// Carries conversations with the user's SSH agent to where `connect` leads.
///
/// # Errors
/// When the kernel has no more memory for it.
pub fn run_agent(
    listener: &OwnedFd,
    connect: impl Fn() -> rustix::io::Result<OwnedFd>,
) -> Result<Infallible> {
    let mut links = Links::new(listener, AGENT_LINKS_MAX).context("create an epoll instance")?;
    loop {
        let begin = |program, _| join(program, Stream::Agent, &connect);
        links.turn(begin, |_, _| ()).context("watch for connections")?;
    }
}

fn begin(
    program: OwnedFd,
    from: Option<SocketAddrAny>,
    connect: impl Fn() -> rustix::io::Result<OwnedFd>,
) -> Option<Link> {
    let to = sockopt::ip_original_dst(&program).ok()?;
    // Small messages are answers that somebody waits for.
    let _ = sockopt::set_tcp_nodelay(&program, true);
    let stream = match to.port() {
        PORT => Stream::Dns,
        _ if is_own(from) => Stream::Tcp(to),
        _ => Stream::Container(to),
    };
    join(program, stream, connect)
}

/// Whether the program is one of the sandbox's own: all others have an address of another network, a container's.
fn is_own(from: Option<SocketAddrAny>) -> bool {
    let from = from.and_then(|it| SocketAddrV4::try_from(it).ok());
    from.is_some_and(|it| it.ip().is_loopback() || *it.ip() == ADDRESS)
}

/// A program that cannot be served is reset, as all are that nobody serves.
fn join(program: OwnedFd, stream: Stream, connect: impl Fn() -> rustix::io::Result<OwnedFd>) -> Option<Link> {
    match connect() {
        Ok(gateway) => Some(Link::new(program, gateway, stream)),
        Err(_) => {
            let _ = sockopt::set_socket_linger(&program, Some(std::time::Duration::ZERO));
            None
        }
    }
}

fn ask(names: &mut Names<'_>, epoll: &OwnedFd, connect: impl Fn() -> rustix::io::Result<OwnedFd>) {
    if names.asked(connect)
        && let Some((wire, _)) = names.wire()
    {
        let _ = epoll::add(epoll, wire, EventData::new_u64(WIRE), EventFlags::IN | EventFlags::OUT);
    }
    watch_wire(names, epoll);
}

fn answer(names: &mut Names<'_>, epoll: &OwnedFd) {
    if names.progress() {
        watch_wire(names, epoll);
    }
}

fn watch_wire(names: &Names<'_>, epoll: &OwnedFd) {
    if let Some((wire, writes)) = names.wire() {
        let events = if writes { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let _ = epoll::modify(epoll, wire.as_fd(), EventData::new_u64(WIRE), events);
    }
}
