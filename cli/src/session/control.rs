//! The control connection of a session: requests out, replies in, neither of which ever blocks.
//! What comes in is decoded with the protocol's limits. It does not know what a reply means for the session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::{Decoder, Message, Reply, Request};
use rustix::event::PollFlags;
use rustix::io::Errno;

/// Resizes and signals that a guest does not take are dropped beyond this, so that it cannot make us grow.
const BACKLOG_MAX: usize = 64 << 10;
const READ_MAX: usize = 4096;

#[derive(Debug)]
pub struct Control {
    connection: OwnedFd,
    replies: Decoder,
    /// What the socket has not taken yet.
    backlog: Vec<u8>,
}

impl Control {
    /// A control connection whose first request is the frame `first`.
    pub fn new(connection: OwnedFd, first: &[u8]) -> Self {
        let mut control = Self { connection, replies: Decoder::default(), backlog: first.to_vec() };
        control.flush();
        control
    }

    pub fn send(&mut self, request: &Request) {
        let Ok(frame) = request.encode() else { return };
        if self.backlog.len() + frame.len() <= BACKLOG_MAX {
            self.backlog.extend(frame);
            self.flush();
        }
    }

    pub fn interest(&self) -> PollFlags {
        if self.backlog.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Moves what can be moved; false once the other side has hung up.
    pub fn progress(&mut self) -> bool {
        self.flush();
        let mut bytes = [0; READ_MAX];
        match rustix::io::read(&self.connection, &mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.replies.feed(&bytes[..count]);
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// The next complete reply.
    pub fn reply(&mut self) -> Result<Option<Reply>, protocol::Error> {
        self.replies.take()
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.connection, &self.backlog) {
                Ok(count) => drop(self.backlog.drain(..count)),
                // A broken connection is noticed by reading it.
                Err(_) => break,
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
