//! The vsock address family, which rustix cannot spell.
//! It owns the listener's address. It accepts nothing: the exec server does.
#![expect(unsafe_code, reason = "a socket address is passed to the kernel as a pointer and a length")]

use rustix::fd::OwnedFd;
use rustix::io::Result;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted: all of one session, and some more.
const BACKLOG: i32 = 64;

/// Listens on a port of this guest's, without blocking.
pub fn listener(port: u32) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    bind(&socket, &AnyCid { port })?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A port of whichever context id the guest has.
struct AnyCid {
    port: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "a constant, and the size of a small structure")]
// SAFETY: `f` is called with the address of a sockaddr_vm that lives until it returns, and its size.
unsafe impl SocketAddrArg for AnyCid {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let address = libc::sockaddr_vm {
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: self.port,
            svm_cid: libc::VMADDR_CID_ANY,
            svm_zero: [0; 4],
        };
        f((&raw const address).cast(), size_of_val(&address) as SocketAddrLen)
    }
}
