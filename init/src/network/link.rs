//! One connection of a program, joined to a stream to the gateway or of it: bytes both ways, each way's end on its own.
//! It owns both sockets and what the slower one has not taken yet. It waits for nothing: it is told what is ready, and says
//! what to wait for.

use std::time::Duration;

use protocol::{Answer, STREAM_LEN, Stream};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::links::Carried;

/// What is read in one go, and the most that is kept of it while the other side is slow.
pub const CHUNK: usize = 64 << 10;
/// Chunks of one way before other connections have their turn.
const TURNS: usize = 4;

/// Which of the two sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Program,
    Gateway,
}

/// What to do with a connection after it has moved bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// Both ways have ended.
    Ended,
    /// The program is told by a reset.
    Broken,
}

/// See the module.
pub struct Link {
    program: End,
    gateway: End,
    outward: Way,
    inward: Way,
    answered: bool,
}

pub(super) struct End {
    socket: OwnedFd,
    /// What epoll watches it for; `None` when it does not have it.
    watched: Option<EventFlags>,
}

/// What is under way in one direction.
#[derive(Default)]
struct Way {
    kept: Vec<u8>,
    /// The sender has ended it; so has the receiver been told.
    ended: bool,
    told: bool,
    /// The receiver takes no more.
    deaf: bool,
}

impl Link {
    /// `gateway` may still be connecting. Neither blocks.
    pub fn new(program: OwnedFd, gateway: OwnedFd, stream: Stream) -> Self {
        let mut kept = Vec::with_capacity(STREAM_LEN);
        kept.extend(stream.encode());
        Self {
            program: End::new(program),
            gateway: End::new(gateway),
            outward: Way { kept, ..Way::default() },
            inward: Way::default(),
            answered: false,
        }
    }

    /// A program that the host has asked for, and which is told so.
    pub fn joined(program: End, host: End) -> Self {
        let outward = Way { kept: vec![Answer::Connected as u8], ..Way::default() };
        Self { program, gateway: host, outward, inward: Way::default(), answered: true }
    }

    /// The gateway has ended both ways, and the program none. A good end comes one way first, and this must not look like one.
    fn is_cut(&self) -> bool {
        let nothing_follows = !self.answered || self.inward.is_over();
        let takes_more = || send(&self.gateway.socket, &[], SendFlags::NOSIGNAL) != Err(Errno::PIPE);
        nothing_follows
            && (self.outward.deaf
                || self.inward.is_over() && !self.inward.told && !self.outward.told && !takes_more())
    }

    fn inward(&mut self, chunk: &mut [u8; CHUNK]) -> rustix::io::Result<()> {
        let (program, gateway) = (self.program.socket.as_fd(), self.gateway.socket.as_fd());
        if !self.answered {
            let mut byte = [0];
            match recv(gateway, &mut byte[..], RecvFlags::empty()) {
                Err(Errno::NOTCONN) => return connecting(gateway),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Ok((1, _)) if Answer::decode(byte[0]) == Ok(Answer::Connected) => self.answered = true,
                _ => return Err(Errno::CONNREFUSED),
            }
        }
        self.inward.pump(gateway, program, chunk)
    }
}

impl Carried for Link {
    fn progress(&mut self, chunk: &mut [u8; CHUNK]) -> Fate {
        let (program, gateway) = (self.program.socket.as_fd(), self.gateway.socket.as_fd());
        let outward = self.outward.pump(program, gateway, chunk);
        // Who takes no more may have said something before.
        let inward = self.inward(chunk);
        if outward.and(inward).is_err() || self.inward.deaf {
            return Fate::Broken;
        }
        self.outward.tell(self.gateway.socket.as_fd());
        if self.is_cut() {
            return Fate::Broken;
        }
        self.inward.tell(self.program.socket.as_fd());
        if self.outward.told && self.inward.told { Fate::Ended } else { Fate::Lives }
    }

    /// The program's connection.
    fn reset(self) {
        let _ = sockopt::set_socket_linger(&self.program.socket, Some(Duration::ZERO));
    }

    fn watch(&mut self, epoll: &OwnedFd, token: impl Fn(Side) -> u64) -> rustix::io::Result<()> {
        let program = interest(&self.outward, &self.inward);
        let gateway = interest(&self.inward, &self.outward);
        self.program.watch(epoll, token(Side::Program), program)?;
        self.gateway.watch(epoll, token(Side::Gateway), gateway)
    }
}

/// For a socket that is read for one way and written for the other.
fn interest(read: &Way, written: &Way) -> EventFlags {
    let mut events = EventFlags::empty();
    events.set(EventFlags::IN, !read.ended && !read.deaf && read.kept.is_empty());
    events.set(EventFlags::OUT, !written.kept.is_empty());
    events
}

impl End {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, watched: None }
    }

    pub fn watch(&mut self, epoll: &OwnedFd, token: u64, events: EventFlags) -> rustix::io::Result<()> {
        // Even without any of them, a socket that is closed both ways would be reported for ever.
        let wanted = (!events.is_empty()).then_some(events);
        if wanted == self.watched {
            return Ok(());
        }
        let token = EventData::new_u64(token);
        match (self.watched, wanted) {
            (None, Some(events)) => epoll::add(epoll, &self.socket, token, events)?,
            (Some(_), Some(events)) => epoll::modify(epoll, &self.socket, token, events)?,
            (_, None) => epoll::delete(epoll, &self.socket)?,
        }
        self.watched = wanted;
        Ok(())
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Way {
    /// Moves what there is. The error is the sender's.
    fn pump(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        chunk: &mut [u8; CHUNK],
    ) -> rustix::io::Result<()> {
        for _ in 0..TURNS {
            if !self.kept.is_empty() {
                let mut kept = std::mem::take(&mut self.kept);
                kept.drain(..self.give(to, &kept));
                if !kept.is_empty() {
                    self.kept = kept;
                    return Ok(());
                }
                // Most connections never need it again.
            }
            if self.ended || self.deaf {
                return Ok(());
            }
            match recv(from, &mut chunk[..], RecvFlags::empty()) {
                Ok((0, _)) => self.ended = true,
                Ok((count, _)) => {
                    let given = self.give(to, &chunk[..count]);
                    self.kept.extend_from_slice(&chunk[given..count]);
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// How much the receiver takes: of one that takes no more, all is lost.
    fn give(&mut self, to: BorrowedFd<'_>, bytes: &[u8]) -> usize {
        write(to, bytes).unwrap_or_else(|_| {
            self.deaf = true;
            bytes.len()
        })
    }

    /// All of it has been sent and taken.
    fn is_over(&self) -> bool {
        self.ended && self.kept.is_empty()
    }

    fn tell(&mut self, to: BorrowedFd<'_>) {
        if self.is_over() && !self.told && !self.deaf {
            // A socket that is closed already is as good.
            let _ = shutdown(to, Shutdown::Write);
            self.told = true;
        }
    }
}

/// A vsock that is not connected says no more than that, whether it is still connecting or was refused.
pub fn connecting(socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    sockopt::socket_error(socket)?
}

/// As much as goes without waiting. A socket that still connects takes nothing.
pub fn write(to: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    match send(to, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::NOTCONN) => connecting(to).map(|()| 0),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        other => other,
    }
}
