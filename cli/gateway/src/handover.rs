//! Messages between processes of ours that have descriptors with them: published ports on their way to who serves them.
//! It owns their form, and how much one may hold. Both ends are this program.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg,
    sendmsg, socket_with, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ports::PORTS_MAX;

/// Each published port can be open at two addresses; and one more.
const DESCRIPTORS_MAX: usize = 2 * PORTS_MAX + 1;
/// The addresses of so many take less than 10 KiB.
const TEXT_MAX: usize = 16 << 10;
/// Commands that wait for an answer.
const BACKLOG: i32 = 16;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Two ends for messages. Neither blocks.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// Where others can come with messages.
pub fn listener(path: &str) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// An end for messages to who listens there.
pub fn connection(path: &str) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends a message whole, or not at all.
pub fn send(socket: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > TEXT_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[io::IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message; `None` when the other end is closed.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; TEXT_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|it| if let RecvAncillaryMessage::ScmRights(them) = it { Some(them) } else { None })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&text[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use super::*;
    use crate::ports::Opening;

    #[test]
    fn as_many_as_there_can_be_fit_and_no_more() {
        let (ours, theirs) = pair().unwrap();
        let at = SocketAddr::new(Ipv6Addr::from([0xff; 16]).into(), u16::MAX);
        let openings = vec![Opening { at, guest: u16::MAX }; 2 * PORTS_MAX];
        send(&ours, &openings, &[ours.as_fd(); DESCRIPTORS_MAX]).unwrap();
        let (heard, descriptors) = receive::<Vec<Opening>>(&theirs).unwrap().unwrap();
        assert!(heard == openings && descriptors.len() == DESCRIPTORS_MAX);
        send(&ours, &"", &[ours.as_fd(); DESCRIPTORS_MAX + 1]).unwrap_err();
        drop((ours, descriptors));
        assert!(receive::<bool>(&theirs).unwrap().is_none());
    }
}
