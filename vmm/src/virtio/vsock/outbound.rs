//! The host's Unix sockets that the guest may connect to, each by a port of its own. There are no others for it.
//! It owns the way to a socket, which does not wait, and looks a name up only when nobody serves what it has led to so far. It does
//! not know what becomes of a connection.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{self, Errno};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::Error;
use crate::config;

#[derive(Debug)]
pub struct Outbound(Vec<Place>);

#[derive(Debug)]
pub struct Place {
    config: config::Outbound,
    /// Opened with `O_PATH`, when it was first needed.
    socket: Option<OwnedFd>,
}

impl Outbound {
    pub fn new(places: Vec<config::Outbound>) -> Result<Self, Error> {
        match places.iter().all(|place| place.port != 0 && !place.name.contains('/')) {
            true => Ok(Self(places.into_iter().map(|config| Place { config, socket: None }).collect())),
            false => Err(Error::Outbound),
        }
    }

    /// Where a port leads to.
    pub fn place(&mut self, port: u32) -> Option<&mut Place> {
        self.0.iter_mut().find(|place| place.config.port == port)
    }
}

impl Place {
    /// A connection, of which the host's kernel buffers about twice `buffer`. It fails at once when nobody listens and when too
    /// many wait to be accepted.
    pub fn connect(&mut self, buffer: u32) -> io::Result<UnixStream> {
        match self.socket.as_ref().map(|socket| connect_to(socket, buffer)) {
            None | Some(Err(Errno::CONNREFUSED)) => {}
            Some(other) => return other,
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = openat(&self.config.folder, self.config.name, flags, Mode::empty())?;
        connect_to(self.socket.insert(socket), buffer)
    }
}

fn connect_to(socket: &OwnedFd, buffer: u32) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_send_buffer_size(&stream, buffer as usize)?;
    connect(&stream, &SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?)?;
    Ok(stream.into())
}
