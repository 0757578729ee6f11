//! The listening sockets of the host, each with the guest port it leads to.
//! It owns when they are watched: not while there is no place or no guest for a connection, so that clients wait in
//! the sockets' backlogs at no cost. It does not know what becomes of a connection.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::Error;
use crate::marks::now_ns;

/// How long no connection is accepted after the host had no descriptor or memory for one.
const PAUSE_NS: u64 = 100_000_000;

#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<Listener>,
    /// The host could not accept; not to be tried before then.
    paused_until: Option<u64>,
}

#[derive(Debug)]
struct Listener {
    port: u32,
    socket: UnixListener,
    watched: bool,
}

impl Listeners {
    pub fn new(sockets: Vec<(u32, UnixListener)>) -> Result<Self, Error> {
        let prepare = |(port, socket): (u32, UnixListener)| {
            socket.set_nonblocking(true).map_err(|source| Error::Listener { port, source })?;
            Ok(Listener { port, socket, watched: false })
        };
        Ok(Self { sockets: sockets.into_iter().map(prepare).collect::<Result<_, _>>()?, paused_until: None })
    }

    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    pub fn paused_until(&self) -> Option<u64> {
        self.paused_until
    }

    /// Ends the pause if it is over.
    pub fn expire(&mut self, now: u64) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
    }

    /// Has epoll watch the wanted sockets, by their index, and no others.
    pub fn watch(&mut self, epoll: &OwnedFd, is_wanted: impl Fn(usize) -> bool) {
        for (index, listener) in self.sockets.iter_mut().enumerate() {
            match (listener.watched, self.paused_until.is_none() && is_wanted(index)) {
                (false, true) => {
                    let token = EventData::new_u64(index as u64);
                    listener.watched = epoll::add(epoll, &listener.socket, token, EventFlags::IN).is_ok();
                    if !listener.watched {
                        self.paused_until = Some(now_ns() + PAUSE_NS);
                    }
                }
                (true, false) => {
                    listener.watched = false;
                    // It cannot fail for one that is there.
                    let _ = epoll::delete(epoll, &listener.socket);
                }
                _ => {}
            }
        }
    }

    /// The next client of a socket, with the guest port it is for.
    pub fn accept(&mut self, index: usize) -> Option<(u32, UnixStream)> {
        let Listener { port, socket, .. } = self.sockets.get(index)?;
        match accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(host) => Some((*port, host.into())),
            // The client did not wait.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => None,
            Err(_) => {
                self.pause();
                None
            }
        }
    }

    /// What does not work now would be tried again at once, and again.
    pub(super) fn pause(&mut self) {
        self.paused_until = Some(now_ns() + PAUSE_NS);
    }
}
