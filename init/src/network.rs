//! The network that the guest has: none but a relay to the host's gateway, which decides, and what the gateway brings to published
//! ports, and the way to the user's SSH agent.
//! It owns the sockets of all, from the start, and their processes, from the first connection on. What the guest does to all this
//! costs the guest its network, and opens nothing: the gateway is the only way out.

mod link;
mod links;
mod names;
mod netlink;
mod publish;
mod relay;
mod rules;

use std::convert::Infallible;
use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use protocol::{AGENT_SOCKET, GATEWAY_PORT, PUBLISH_PORT};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

use crate::sys::{self, Fork};
use crate::vsock;

pub use rules::ADDRESS;

/// Connections that wait to be taken.
const BACKLOG: i32 = 4096;

/// The network of a sandbox, which may have none.
pub struct Network(Option<Services>);

struct Services {
    relay: Service<2>,
    publish: Service<1>,
    /// Of the user's SSH agent.
    agent: Option<Service<1>>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    Relay,
    Publish,
    Agent,
}

/// Some sockets, and a process that serves them when there is something to serve.
struct Service<const N: usize> {
    name: &'static str,
    /// `None` when there can be no process.
    sockets: Option<[OwnedFd; N]>,
    run: fn(&[OwnedFd; N]) -> Result<Infallible>,
    /// Readable when it has ended.
    process: Option<OwnedFd>,
}

impl Network {
    /// Leads everything to the relay's sockets, and those nowhere yet; with one for the user's SSH agent or without.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(agent: bool) -> Result<Self> {
        let relay = Service::new("the relay", relay_sockets()?, |[streams, names]| {
            relay::run(streams, names, || vsock::connect(GATEWAY_PORT))
        });
        let host = vsock::listener(PUBLISH_PORT, BACKLOG).context("listen for the host")?;
        let publish = Service::new("the published ports", [host], |[host]| publish::run(host));
        let agent = agent.then(listen_for_agent).transpose().context("listen for SSH")?;
        let agent = agent.map(|socket| {
            Service::new("the way to the SSH agent", [socket], |[socket]| {
                relay::run_agent(socket, || vsock::connect(GATEWAY_PORT))
            })
        });
        Ok(Self(Some(Services { relay, publish, agent })))
    }

    /// No way out at all, and none in.
    pub fn none() -> Self {
        Self(None)
    }

    /// What to wait for before `ready`: something to serve, or the end of the process that serves it.
    pub fn waits_for(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Which)> {
        self.0.iter().flat_map(|it| {
            let relay = it.relay.waits_for().map(|fd| (fd, Which::Relay));
            let publish = it.publish.waits_for().map(|fd| (fd, Which::Publish));
            let agent = it.agent.iter().flat_map(Service::waits_for).map(|fd| (fd, Which::Agent));
            relay.chain(publish).chain(agent)
        })
    }

    /// There is something to serve, or the process has ended: what comes next starts another.
    pub fn ready(&mut self, which: Which) {
        match (&mut self.0, which) {
            (Some(it), Which::Relay) => it.relay.ready(),
            (Some(it), Which::Publish) => it.publish.ready(),
            (Some(Services { agent: Some(agent), .. }), Which::Agent) => agent.ready(),
            (Some(_), Which::Agent) | (None, _) => {}
        }
    }
}

impl<const N: usize> Service<N> {
    fn new(name: &'static str, sockets: [OwnedFd; N], run: fn(&[OwnedFd; N]) -> Result<Infallible>) -> Self {
        Self { name, sockets: Some(sockets), run, process: None }
    }

    fn waits_for(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.sockets.iter().flatten().filter(|_| self.process.is_none());
        self.process.iter().chain(sockets).map(AsFd::as_fd)
    }

    fn ready(&mut self) {
        if let Some(process) = &self.process {
            // Two sockets may have woken the server: then it has only just been started.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Ok(Some(_)) = rustix::process::waitid(WaitId::PidFd(process.as_fd()), options) {
                crate::log(format_args!("{} ended", self.name));
                self.process = None;
            }
            return;
        }
        let Some(sockets) = &self.sockets else { return };
        match self.start(sockets) {
            Ok(process) => self.process = Some(process),
            Err(errno) => {
                crate::log(format_args!("start {}: {errno}", self.name));
                self.sockets = None;
            }
        }
    }

    fn start(&self, sockets: &[OwnedFd; N]) -> rustix::io::Result<OwnedFd> {
        match sys::fork()? {
            Fork::Child => {
                // The server's connections must not be held open by a process that outlives them.
                if let Ok(sockets) = sys::keep_only(sockets.each_ref())
                    && let Err(error) = (self.run)(&sockets)
                {
                    crate::log(format_args!("{}: {error:#}", self.name));
                }
                sys::exit(1)
            }
            Fork::Parent(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty()),
        }
    }
}

/// Where everything is led: streams, and questions for names.
fn relay_sockets() -> Result<[OwnedFd; 2]> {
    rules::apply()?;
    let address = SocketAddrV4::new(rules::ADDRESS, rules::PORT);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let streams = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    bind(&streams, &address).and_then(|()| listen(&streams, BACKLOG)).context("listen for streams")?;
    let names = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    bind(&names, &address).context("listen for questions")?;
    Ok([streams, names])
}

/// For whoever has a shell in the sandbox: it is the sandbox that may use the keys.
fn listen_for_agent() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(AGENT_SOCKET)?)?;
    rustix::fs::chmod(AGENT_SOCKET, Mode::from_raw_mode(0o666))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
