//! Published ports: ports of this machine that lead to services of a sandbox.
//! It owns how one is written, when two are in each other's way, and how it is opened. Who serves it is the worker's business.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};
use serde::{Deserialize, Serialize};

/// Of one sandbox.
pub const PORTS_MAX: usize = 64;
/// Clients that wait to be taken.
const BACKLOG: i32 = 1024;
/// A number that is free on one address may be in use on the other.
const TRIES: usize = 16;
/// What stands for both addresses of this machine's loopback.
const LOCALHOST: &str = "localhost";

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Of this machine; `None` is loopback, by IPv4 and IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Of this machine; 0 when none has been chosen yet.
    pub host: u16,
    /// Of the sandbox.
    pub guest: u16,
    /// Any port of this machine will do. The one that it had is kept as long as it is free.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any: bool,
}

/// Where a published port is open, and what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Opening {
    pub at: SocketAddr,
    pub guest: u16,
}

/// A socket that listens there.
#[derive(Debug)]
pub struct Listener {
    pub opening: Opening,
    pub socket: OwnedFd,
}

/// Why a port is not published, as the rest of a sentence that begins with what was typed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("is empty; write a port of the sandbox, such as 3000, or 8080:3000")]
    Empty,
    #[error(
        "is not a published port; write [[IP:]HOST:]PORT, such as 3000, 8080:3000 or 127.0.0.1:8080:3000"
    )]
    Form,
    #[error("has {0:?}, which is not a port from 1 to 65535")]
    Number(String),
    #[error("has {0:?}, which is not an IP address of this machine, nor localhost")]
    Address(String),
    #[error("has an IPv6 address without brackets; write it like [::1]:8080:3000")]
    Brackets,
    #[error("names an address and one port; write both, such as {0}:{1}:{1}, or {0}:0:{1} for any free one")]
    OnePort(String, String),
    #[error("is a range; write each of its ports by itself")]
    Range,
    #[error("is for UDP, which has no way into a sandbox: only TCP can be published")]
    Udp,
    #[error("is for {0:?}, and only TCP can be published")]
    Protocol(String),
}

/// Why a port cannot be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("port {} of {} is in use", .0.port(), .0.ip())]
    Busy(SocketAddr),
    #[error("port {} is reserved: on this machine only root may use ports below {}", .0.port(), unprivileged())]
    Privileged(SocketAddr),
    #[error("{} is not an address of this machine", .0.ip())]
    NoAddress(SocketAddr),
    #[error("port {} of {} cannot be opened: {errno}", .0.port(), .0.ip(), errno = .1)]
    Other(SocketAddr, Errno),
}

impl FromStr for Port {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        match protocol {
            "tcp" => {}
            "udp" => return Err(Fault::Udp),
            other => return Err(Fault::Protocol(other.into())),
        }
        let (address, ports) = split_address(text)?;
        if ports.contains('-') {
            return Err(Fault::Range);
        }
        let (host, guest) = match (address, ports.split_once(':')) {
            (None, None) => (ports, ports),
            (Some(address), None) => return Err(Fault::OnePort(address.into(), ports.into())),
            // As Docker has it: no number is any.
            (Some(_), Some(("", guest))) => ("0", guest),
            (_, Some(both)) => both,
        };
        let guest = number(guest).filter(|port| *port != 0).ok_or_else(|| Fault::Number(guest.into()))?;
        let host = number(host).ok_or_else(|| Fault::Number(host.into()))?;
        let address = address.filter(|it| *it != LOCALHOST).map(parse_address).transpose()?;
        Ok(Self { address, host, guest, any: host == 0 })
    }
}

/// What stands before the ports, and those.
fn split_address(text: &str) -> Result<(Option<&str>, &str), Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if text.starts_with('[') {
        let (address, ports) = text.split_once(']').ok_or(Fault::Form)?;
        return Ok((Some(&text[..=address.len()]), ports.strip_prefix(':').ok_or(Fault::Form)?));
    }
    match text.matches(':').count() {
        0 => Ok((None, text)),
        1 => match text.split_once(':') {
            Some((address, ports)) if address.contains('.') || address == LOCALHOST => {
                Ok((Some(address), ports))
            }
            _ => Ok((None, text)),
        },
        2 => text.split_once(':').map(|(address, ports)| (Some(address), ports)).ok_or(Fault::Form),
        _ => Err(Fault::Brackets),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, Fault> {
    let fault = || Fault::Address(text.into());
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(address) => Ok(address.parse::<Ipv6Addr>().map_err(|_| fault())?.to_canonical()),
        None => Ok(text.parse::<Ipv4Addr>().map_err(|_| fault())?.into()),
    }
}

/// Digits alone: no sign, no more than there are in a port.
fn number(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The host's side, as in a URL.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => f.write_str(LOCALHOST)?,
            Some(IpAddr::V4(address)) => write!(f, "{address}")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}", self.host)
    }
}

impl Port {
    pub fn addresses(&self) -> Vec<IpAddr> {
        let loopback = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        self.address.map_or_else(loopback, |address| vec![address])
    }

    /// Where it is open.
    pub fn openings(&self) -> Vec<Opening> {
        let opening = |address| Opening { at: SocketAddr::new(address, self.host), guest: self.guest };
        self.addresses().into_iter().map(opening).collect()
    }

    /// Both cannot be open.
    pub fn is_in_the_way_of(&self, other: &Self) -> bool {
        let same = |one: IpAddr, other: IpAddr| {
            let all = one.is_unspecified() || other.is_unspecified();
            one == other || all && one.is_ipv4() == other.is_ipv4()
        };
        let (ours, theirs) = (self.addresses(), other.addresses());
        self.host != 0
            && self.host == other.host
            && ours.iter().any(|ours| theirs.iter().any(|it| same(*ours, *it)))
    }

    /// It asks for nothing that the other is not.
    pub fn is_met_by(&self, other: &Self) -> bool {
        let host = if self.any { other.any } else { self.host == other.host };
        host && (self.address, self.guest) == (other.address, other.guest)
    }

    /// Opens it, and notes the number that was chosen where any would do.
    ///
    /// # Errors
    /// When that is not possible; then nothing is open.
    pub fn open(&mut self) -> Result<Vec<Listener>, Refusal> {
        if !self.any {
            return self.open_at(self.host);
        }
        if self.host != 0
            && let Ok(listeners) = self.open_at(self.host)
        {
            return Ok(listeners);
        }
        let mut tries = 1..;
        loop {
            match self.open_at(0) {
                Err(Refusal::Busy(_)) if tries.next() < Some(TRIES) => {}
                Err(refusal) => return Err(refusal),
                Ok(listeners) => {
                    self.host = listeners.first().map_or(0, |it| it.opening.at.port());
                    return Ok(listeners);
                }
            }
        }
    }

    fn open_at(&self, mut number: u16) -> Result<Vec<Listener>, Refusal> {
        let mut listeners = Vec::new();
        for address in self.addresses() {
            let at = SocketAddr::new(address, number);
            match listen_at(at) {
                Ok((at, socket)) => {
                    number = at.port();
                    listeners.push(Listener { opening: Opening { at, guest: self.guest }, socket });
                }
                // A machine without IPv6 has no such loopback.
                Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) if !listeners.is_empty() => {}
                Err(errno) => return Err(Refusal::new(at, errno)),
            }
        }
        Ok(listeners)
    }
}

impl Refusal {
    fn new(at: SocketAddr, errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::Busy(at),
            Errno::ACCESS => Self::Privileged(at),
            Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Self::NoAddress(at),
            other => Self::Other(at, other),
        }
    }
}

fn listen_at(at: SocketAddr) -> rustix::io::Result<(SocketAddr, OwnedFd)> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections that have ended are in nobody's way; a socket that listens still is.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((bound, socket))
}

/// The first port that all may use.
fn unprivileged() -> u16 {
    let set = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    set.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests;
