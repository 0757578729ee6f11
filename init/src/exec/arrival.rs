//! A connection that has been accepted and has not found its session yet.
//! It owns the reading of hellos and first requests, with a deadline. It starts nothing.

use std::time::{Duration, Instant};

use protocol::{Decoder, Error, Exec, HELLO_LEN, Hello, Message, Reply, Request, Role, VERSION};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// How long a connection may take to become part of a session.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// What is read of a control connection at once.
pub const READ_LEN: usize = 16 << 10;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be, so far.
    Keep,
    /// It broke off, or broke the rules.
    Drop,
    /// The sandbox is to end.
    Shutdown,
    /// The disk has this many bytes; whoever asked waits for an answer.
    GrowDisk(u64),
}

/// A connection without a session.
pub struct Arrival {
    /// Non-blocking.
    pub socket: OwnedFd,
    /// When it is given up.
    pub deadline: Instant,
    /// What it is for, once it has said so.
    pub hello: Option<Hello>,
    /// The command, once a control connection has asked for it.
    pub exec: Option<Exec>,
    /// What has been read of a control connection beyond that.
    pub decoder: Decoder,
}

impl Arrival {
    /// A connection that was just accepted.
    pub fn new(socket: OwnedFd, now: Instant) -> Self {
        Self { socket, deadline: now + DEADLINE, hello: None, exec: None, decoder: Decoder::default() }
    }

    /// Whether there is anything left to be read here. What follows belongs to the session.
    pub fn reads(&self) -> bool {
        match self.hello {
            None => true,
            Some(Hello { role, .. }) => role == Role::Control && self.exec.is_none(),
        }
    }

    /// Reads what has come.
    pub fn receive(&mut self) -> Outcome {
        let mut buffer = [0; READ_LEN];
        while self.reads() {
            // Not a byte beyond the hello: what follows on a bulk connection is the command's.
            let limit = if self.hello.is_none() { HELLO_LEN - self.decoder.pending() } else { READ_LEN };
            let count = match rustix::io::read(&self.socket, &mut buffer[..limit]) {
                Ok(0) => return Outcome::Drop,
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => return Outcome::Keep,
                Err(_) => return Outcome::Drop,
            };
            self.decoder.feed(&buffer[..count]);
            match self.understand() {
                Ok(Outcome::Keep) => {}
                Ok(outcome) => return outcome,
                Err(error) => return self.refuse(error),
            }
        }
        Outcome::Keep
    }

    fn understand(&mut self) -> Result<Outcome, Error> {
        if self.hello.is_none() {
            self.hello = self.decoder.take()?;
            return Ok(Outcome::Keep);
        }
        match self.decoder.take()? {
            None => {}
            Some(Request::Exec(exec)) => self.exec = Some(exec),
            Some(Request::GrowDisk(bytes)) => return Ok(Outcome::GrowDisk(bytes)),
            Some(Request::Shutdown) => return Ok(Outcome::Shutdown),
            Some(Request::Resize(_) | Request::Signal(_)) => return Ok(Outcome::Drop),
        }
        Ok(Outcome::Keep)
    }

    fn refuse(&self, error: Error) -> Outcome {
        if let Error::Version { .. } = error
            && let Ok(reply) = (Reply::VersionMismatch { init: VERSION }).encode()
        {
            // A connection that has taken nothing yet takes a few bytes; if not, its peer is gone.
            let _ = rustix::io::write(&self.socket, &reply);
        }
        Outcome::Drop
    }
}
