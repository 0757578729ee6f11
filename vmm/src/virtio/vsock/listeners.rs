//! The listening sockets of the host, each with the guest port it leads to.
//! It owns when they are watched: all of them, or none while there is no place or no guest for a connection, so
//! that clients wait in the sockets' backlogs at no cost. It does not know what becomes of a connection.

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
    sockets: Vec<(u32, UnixListener)>,
    watched: bool,
    /// The host could not accept; not to be tried before then.
    paused_until: Option<u64>,
}

impl Listeners {
    pub fn new(sockets: Vec<(u32, UnixListener)>) -> Result<Self, Error> {
        for (port, socket) in &sockets {
            socket.set_nonblocking(true).map_err(|source| Error::Listener { port: *port, source })?;
        }
        Ok(Self { sockets, watched: false, paused_until: None })
    }

    pub fn paused_until(&self) -> Option<u64> {
        self.paused_until
    }

    /// Ends the pause if it is over.
    pub fn expire(&mut self, now: u64) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
    }

    /// Has epoll watch the sockets, by their index, or not.
    pub fn watch(&mut self, epoll: &OwnedFd, wanted: bool) {
        match (self.watched, wanted && self.paused_until.is_none()) {
            (false, true) => self.add(epoll),
            (true, false) => self.delete(epoll),
            _ => {}
        }
    }

    /// The next client of a socket, with the guest port it is for.
    pub fn accept(&mut self, index: usize) -> Option<(u32, UnixStream)> {
        let (port, socket) = self.sockets.get(index)?;
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

    fn add(&mut self, epoll: &OwnedFd) {
        self.watched = true;
        let add = |(index, (_, socket)): (u64, &(u32, UnixListener))| {
            epoll::add(epoll, socket, EventData::new_u64(index), EventFlags::IN)
        };
        if (0..).zip(&self.sockets).try_for_each(add).is_err() {
            self.delete(epoll);
            self.pause();
        }
    }

    fn delete(&mut self, epoll: &OwnedFd) {
        self.watched = false;
        for (_, socket) in &self.sockets {
            // Fails for one that `add` did not get to.
            let _ = epoll::delete(epoll, socket);
        }
    }
}
