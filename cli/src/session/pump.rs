//! One direction of one stream: from a descriptor to another through a buffer, never losing a byte.
//! It owns the order "read, then write all of it, then read again", so a reader that does not read stops its writer. It
//! does not wait: the session polls for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

const BUFFER: usize = 64 << 10;
/// A host descriptor's description is shared with other programs, so it cannot be made non-blocking. A pipe that polls
/// writable takes this much at once without blocking: POSIX.1-2017, write, PIPE_BUF.
const HOST_WRITE_MAX: usize = 4096;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToGuest,
    ToHost,
}

#[derive(Debug)]
pub struct Pump<'fd> {
    way: Way,
    host: BorrowedFd<'fd>,
    guest: OwnedFd,
    buffer: Vec<u8>,
    /// What of the buffer is still to be written.
    rest: std::ops::Range<usize>,
    state: State,
    /// End of input shuts only one direction of the connection: the other has a pump of its own.
    half_close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Done,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes went on, or nothing was there.
    Moved,
    /// The source has ended, or nobody reads any more; the pump is done.
    Ended,
}

impl<'fd> Pump<'fd> {
    pub fn new(way: Way, host: BorrowedFd<'fd>, guest: OwnedFd, half_close: bool) -> Self {
        Self { way, host, guest, buffer: vec![0; BUFFER], rest: 0..0, state: State::Open, half_close }
    }

    pub fn way(&self) -> Way {
        self.way
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// It waits for bytes, and holds none.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What to wait for.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let (from, to) = match self.way {
            Way::ToGuest => (self.host, self.guest.as_fd()),
            Way::ToHost => (self.guest.as_fd(), self.host),
        };
        if self.is_empty() { (from, PollFlags::IN) } else { (to, PollFlags::OUT) }
    }

    /// Does what was waited for. The error is the host's: the guest's end breaking is an end like any other.
    pub fn step(&mut self) -> Result<Step, Errno> {
        let moved = if self.is_empty() { self.fill() } else { self.drain() };
        let at_guest = (self.way == Way::ToHost) == self.is_empty();
        match moved {
            Ok(0) if self.is_empty() => self.end(),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Ok(Step::Moved),
            Err(Errno::PIPE | Errno::CONNRESET) => self.end(),
            Err(_) if at_guest => self.end(),
            Err(error) => {
                self.end();
                return Err(error);
            }
        }
        Ok(Step::Ended)
    }

    fn fill(&mut self) -> Result<usize, Errno> {
        let count = match self.way {
            Way::ToGuest => rustix::io::read(self.host, &mut self.buffer)?,
            Way::ToHost => rustix::io::read(&self.guest, &mut self.buffer)?,
        };
        self.rest = 0..count;
        Ok(count)
    }

    fn drain(&mut self) -> Result<usize, Errno> {
        let bytes = &self.buffer[self.rest.clone()];
        let count = match self.way {
            Way::ToGuest => rustix::io::write(&self.guest, bytes)?,
            Way::ToHost => rustix::io::write(self.host, &bytes[..bytes.len().min(HOST_WRITE_MAX)])?,
        };
        self.rest.start += count;
        Ok(count)
    }

    /// No more of this direction: the guest sees end of file, or its writer an error.
    fn end(&mut self) {
        self.state = State::Done;
        self.rest = 0..0;
        let how = match (self.half_close, self.way) {
            (false, _) => Shutdown::Both,
            (true, Way::ToGuest) => Shutdown::Write,
            (true, Way::ToHost) => Shutdown::Read,
        };
        let _ = rustix::net::shutdown(&self.guest, how);
    }
}
