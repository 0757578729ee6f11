//! A question to init that is no session: one request, one reply.
//! It owns how long that may take. It does not know what the reply means.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use protocol::{Message, Reply, Request, Role};
use rustix::event::{PollFd, Timespec, poll};

use super::control::Control;
use super::new_token;
use super::open::open;

/// Sends `request` by a connection from `connect` and waits for the reply.
pub fn ask(connect: &dyn Fn() -> io::Result<OwnedFd>, request: &Request, timeout: Duration) -> Result<Reply> {
    let frame = request.encode().context("encode the request")?;
    let connection = open(connect, new_token()?, Role::Control).context("connect to it")?;
    let mut control = Control::new(connection, &frame);
    let deadline = Instant::now() + timeout;
    loop {
        let is_open = control.progress();
        if let Some(reply) = control.reply().context("it answers nonsense")? {
            return Ok(reply);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !is_open || left.is_zero() {
            bail!(if is_open { "it does not answer" } else { "it hung up" });
        }
        let timeout = Timespec::try_from(left).context("wait for the reply")?;
        // Interrupted or not, what there is to do is seen above.
        let _ = poll(&mut [PollFd::from_borrowed_fd(control.as_fd(), control.interest())], Some(&timeout));
    }
}
