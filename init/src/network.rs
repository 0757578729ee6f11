//! The network that the guest has: none but a relay to the host's gateway, which decides.
//! It owns the relay's sockets, from the start, and its process, from the first connection on. What the guest does to all this
//! costs the guest its network, and opens nothing: the gateway is the only way out.

mod link;
mod names;
mod netlink;
mod relay;
mod rules;

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use protocol::{AGENT_SOCKET, GATEWAY_PORT};
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
pub struct Network(Option<Sockets>);

struct Sockets {
    streams: OwnedFd,
    names: OwnedFd,
    /// Of the user's SSH agent.
    agent: Option<OwnedFd>,
    /// Readable when the relay has ended.
    relay: Option<OwnedFd>,
}

impl Network {
    /// Leads everything to the relay's sockets, and those nowhere yet; with one for the user's SSH agent or without.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(agent: bool) -> Result<Self> {
        rules::apply()?;
        let address = SocketAddrV4::new(rules::ADDRESS, rules::PORT);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let streams = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        bind(&streams, &address).and_then(|()| listen(&streams, BACKLOG)).context("listen for streams")?;
        let names = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        bind(&names, &address).context("listen for questions")?;
        let agent = agent.then(listen_for_agent).transpose().context("listen for SSH")?;
        Ok(Self(Some(Sockets { streams, names, agent, relay: None })))
    }

    /// No way out at all.
    pub fn none() -> Self {
        Self(None)
    }

    /// What to wait for before `ready`: the first connection or question, or the relay's end.
    pub fn waits_for(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.0.iter();
        sockets
            .flat_map(|it| match &it.relay {
                Some(relay) => [Some(relay.as_fd()), None, None],
                None => {
                    [Some(it.streams.as_fd()), Some(it.names.as_fd()), it.agent.as_ref().map(OwnedFd::as_fd)]
                }
            })
            .flatten()
    }

    /// Somebody has connected or asked, or the relay has ended: the next connection starts another.
    pub fn ready(&mut self) {
        let Some(sockets) = &mut self.0 else { return };
        if let Some(relay) = &sockets.relay {
            // Both sockets may have woken the server: then it has only just been started.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Ok(Some(_)) = rustix::process::waitid(WaitId::PidFd(relay.as_fd()), options) {
                crate::log("the relay ended");
                sockets.relay = None;
            }
            return;
        }
        match sockets.start() {
            Ok(relay) => sockets.relay = Some(relay),
            Err(errno) => {
                crate::log(format_args!("start the relay: {errno}"));
                self.0 = None;
            }
        }
    }
}

impl Sockets {
    fn start(&self) -> rustix::io::Result<OwnedFd> {
        match sys::fork()? {
            Fork::Child => {
                // The server's connections must not be held open by a process that outlives them.
                let connect = || vsock::connect(GATEWAY_PORT);
                let agent = self.agent.as_ref().unwrap_or(&self.names);
                if let Ok([streams, names, agent]) = sys::keep_only([&self.streams, &self.names, agent])
                    && let Err(error) =
                        relay::run(&streams, &names, self.agent.as_ref().map(|_| &agent), connect)
                {
                    crate::log(format_args!("the relay: {error:#}"));
                }
                sys::exit(1)
            }
            Fork::Parent(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty()),
        }
    }
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
