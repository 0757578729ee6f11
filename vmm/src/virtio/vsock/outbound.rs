//! The host's Unix sockets that the guest may connect to, each by a port of its own. There are no others for it.
//! It owns the way to a socket, which looks up no name and does not wait. It does not know what becomes of a connection.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::Error;

#[derive(Debug)]
pub struct Outbound(Vec<(u32, OwnedFd)>);

impl Outbound {
    pub fn new(sockets: Vec<(u32, OwnedFd)>) -> Result<Self, Error> {
        match sockets.iter().all(|(port, _)| *port != 0) {
            true => Ok(Self(sockets)),
            false => Err(Error::Outbound),
        }
    }

    /// The socket that a port leads to.
    pub fn socket(&self, port: u32) -> Option<&OwnedFd> {
        self.0.iter().find(|(other, _)| *other == port).map(|(_, socket)| socket)
    }
}

/// A connection to `socket`, of which the host's kernel buffers about twice `buffer`. It fails at once when nobody listens and
/// when too many wait to be accepted.
pub fn connect_to(socket: &OwnedFd, buffer: u32) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_send_buffer_size(&stream, buffer as usize)?;
    connect(&stream, &SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?)?;
    Ok(stream.into())
}
