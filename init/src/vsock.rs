//! The vsock address family, which rustix cannot spell.
//! It owns the addresses of our listeners, and of the host. It accepts nothing: who serves them does.
#![expect(unsafe_code, reason = "a socket address is passed to the kernel as a pointer and a length")]

use rustix::fd::OwnedFd;
use rustix::io::{Errno, Result};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect as connect_to, listen, socket_with};

/// Listens on a port of this guest's, without blocking; so many connections may wait to be accepted.
pub fn listener(port: u32, backlog: i32) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    bind(&socket, &Address { cid: libc::VMADDR_CID_ANY, port })?;
    listen(&socket, backlog)?;
    Ok(socket)
}

/// Begins to connect to a port of the host's, without waiting.
pub fn connect(port: u32) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    match connect_to(&socket, &Address { cid: libc::VMADDR_CID_HOST, port }) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// A port, and whose it is: for a listener, of whichever context id the guest has.
struct Address {
    cid: u32,
    port: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "a constant, and the size of a small structure")]
// SAFETY: `f` is called with the address of a sockaddr_vm that lives until it returns, and its size.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let address = libc::sockaddr_vm {
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: self.port,
            svm_cid: self.cid,
            svm_zero: [0; 4],
        };
        f((&raw const address).cast(), size_of_val(&address) as SocketAddrLen)
    }
}
