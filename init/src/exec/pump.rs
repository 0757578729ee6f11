//! Moves bytes one way, from a pipe or terminal to a connection or back, without blocking.
//! It owns the bytes in between and the half-close at the end. It does not wait: it says what must be waited for.

use std::rc::Rc;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::Shutdown;

/// What is read at once: a pipe's capacity, and a vsock packet's.
const BUFFER_LEN: usize = 64 << 10;
/// Reads in one go before other streams get their turn.
const READS_PER_TURN: usize = 16;
/// What is still read after the command has ended: the largest capacity that a pipe can have (pipe-max-size). More
/// can only come from a process that it left behind, which must not hold up the exit.
const DRAIN_MAX: usize = 1 << 20;

/// How far a pump is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It can go on once its file descriptor is ready.
    Waiting,
    /// The source has ended and everything has been passed on, or the destination takes no more.
    Finished,
}

/// One direction of one stream.
pub struct Pump {
    from: Rc<OwnedFd>,
    to: Rc<OwnedFd>,
    /// Filled from `start` to `end`; taken at the first read, so an unused stream costs nothing.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that may still be read, once the end is near.
    budget: Option<usize>,
}

impl Pump {
    /// Both must be non-blocking.
    pub fn new(from: Rc<OwnedFd>, to: Rc<OwnedFd>) -> Self {
        Self { from, to, buffer: Vec::new(), start: 0, end: 0, budget: None }
    }

    /// What must happen before `run` has anything to do.
    pub fn waits_for(&self) -> (BorrowedFd<'_>, PollFlags) {
        if self.start == self.end {
            (self.from.as_fd(), PollFlags::IN)
        } else {
            (self.to.as_fd(), PollFlags::OUT)
        }
    }

    /// Nobody that matters writes any more: what is there now is the rest.
    pub fn drain(&mut self) {
        self.budget.get_or_insert(DRAIN_MAX);
    }

    /// Moves what can be moved now. Once finished, the destination has been told if it is a connection; a pipe is
    /// told by dropping the pump.
    pub fn run(&mut self) -> Progress {
        for _ in 0..READS_PER_TURN {
            match self.write().and_then(|()| self.read()) {
                Ok(0) | Err(Errno::IO) => return self.finish(),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.start == self.end && self.budget.is_some() => return self.finish(),
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(_) => return Progress::Finished,
            }
        }
        Progress::Waiting
    }

    fn write(&mut self) -> Result<(), Errno> {
        while self.start < self.end {
            self.start += rustix::io::write(&self.to, &self.buffer[self.start..self.end])?;
        }
        Ok(())
    }

    /// How much came; 0 at the end. EIO is a terminal's way to say that nobody has it open any more.
    fn read(&mut self) -> Result<usize, Errno> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_LEN];
        }
        let limit = self.budget.unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
        let count = rustix::io::read(&self.from, &mut self.buffer[..limit])?;
        self.budget = self.budget.map(|it| it - count);
        (self.start, self.end) = (0, count);
        Ok(count)
    }

    fn finish(&self) -> Progress {
        // It fails for what is no connection, or for one that is already closed.
        let _ = rustix::net::shutdown(&self.to, Shutdown::Write);
        Progress::Finished
    }
}
