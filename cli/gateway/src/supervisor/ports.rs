//! The published ports of a sandbox that runs: their sockets, which outlive the workers that serve them, and what commands change.
//! It owns that what is closed is closed at once, whatever a worker does. It takes no client.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use serde::{Deserialize, Serialize};

use super::wait;
use crate::handover::{receive, send};
use crate::ports::{Listener, Opening};

/// For a command that has connected to send its message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a command would have changed. Sockets for what is added come along, in that order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub remove: Vec<SocketAddr>,
    pub add: Vec<Opening>,
}

/// See the module.
#[derive(Debug)]
pub struct Ports {
    control: OwnedFd,
    listeners: Vec<Listener>,
    /// To the worker that lives.
    channel: Option<OwnedFd>,
}

impl Ports {
    /// `control` listens for commands.
    pub fn new(control: OwnedFd, listeners: Vec<Listener>) -> Self {
        Self { control, listeners, channel: None }
    }

    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().map(|it| it.socket.as_fd())
    }

    /// The end for a new worker of a channel by which it is told all of them, now and after each change.
    pub fn channel(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = crate::handover::pair()?;
        self.tell(&ours)?;
        self.channel = Some(ours);
        Ok(theirs)
    }

    /// A command has come. One that says nothing, or nonsense, changes nothing.
    pub fn serve(&mut self) {
        let Ok(command) = accept_with(&self.control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
            return;
        };
        if wait(&[command.as_fd()], Some(MESSAGE_TIMEOUT)).is_ok_and(|ready| ready == [true])
            && let Ok(Some((change, sockets))) = receive::<Change>(&command)
            && change.add.len() == sockets.len()
        {
            self.change(change, sockets);
            // That it has gone meanwhile is its own business.
            let _ = send(&command, &true, &[]);
        }
    }

    fn change(&mut self, change: Change, sockets: Vec<OwnedFd>) {
        self.listeners.retain(|it| {
            let stays = !change.remove.contains(&it.opening.at);
            if !stays {
                close(it);
            }
            stays
        });
        let added = change.add.into_iter().zip(sockets);
        self.listeners.extend(added.map(|(opening, socket)| Listener { opening, socket }));
        if let Some(channel) = self.channel.take()
            && self.tell(&channel).is_ok()
        {
            // A worker that cannot be told ends, as it has lost its channel; the next one knows.
            self.channel = Some(channel);
        }
    }

    fn tell(&self, channel: &OwnedFd) -> io::Result<()> {
        let openings: Vec<Opening> = self.listeners.iter().map(|it| it.opening).collect();
        let sockets: Vec<BorrowedFd<'_>> = self.listeners().collect();
        send(channel, &openings, &sockets)
    }
}

impl Drop for Ports {
    /// The next start may want them before the last worker has ended.
    fn drop(&mut self) {
        self.listeners.iter().for_each(close);
    }
}

/// The socket is no listener any more, in no process that has it.
fn close(listener: &Listener) {
    let _ = shutdown(&listener.socket, Shutdown::Both);
}
