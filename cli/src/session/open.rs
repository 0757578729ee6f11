//! The connections of a session, and this side's streams that they are joined to.
//! It owns which connection is opened for what. It does not wait for anything.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use protocol::{Hello, Message, Role, Stdio, Token};
use rustix::fs::{Mode, OFlags};

use super::pump::{Pump, Way};

/// This side's streams. For a session on a terminal, input and output are that terminal.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'fd> {
    pub stdin: BorrowedFd<'fd>,
    pub stdout: BorrowedFd<'fd>,
    pub stderr: BorrowedFd<'fd>,
}

/// Nobody listens: the VMM has gone, or does not listen yet.
pub fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The terminal, opened anew: a description of our own may be non-blocking without others noticing. Not every terminal
/// can be (another user's, after su); the shared one then has to do.
pub fn private_terminal(terminal: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// A connection that has said what it is for. The hello fits into an empty socket, so writing it does not block.
pub fn open(connect: &dyn Fn() -> io::Result<OwnedFd>, token: Token, role: Role) -> io::Result<OwnedFd> {
    let connection = connect()?;
    let hello = Hello { token, role }.encode().expect("a hello has nothing that could be too long");
    // A sandbox that has already hung up is found out on the control connection.
    let _ = rustix::io::write(&connection, &hello);
    Ok(connection)
}

pub fn open_streams<'fd>(
    connect: &dyn Fn() -> io::Result<OwnedFd>,
    token: Token,
    stdio: Stdio,
    streams: Streams<'fd>,
) -> io::Result<Vec<Pump<'fd>>> {
    let (stdin, stdout, stderr) = match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => (stdin, stdout, stderr),
        Stdio::Tty(_) => {
            let connection = open(connect, token, Role::Tty)?;
            let other = connection.try_clone()?;
            return Ok(vec![
                Pump::new(Way::ToGuest, streams.stdin, connection, true),
                Pump::new(Way::ToHost, streams.stdout, other, true),
            ]);
        }
    };
    let wanted = [
        (stdin, Role::Stdin, Way::ToGuest, streams.stdin),
        (stdout, Role::Stdout, Way::ToHost, streams.stdout),
        (stderr, Role::Stderr, Way::ToHost, streams.stderr),
    ];
    let wanted = wanted.into_iter().filter(|(wanted, ..)| *wanted);
    wanted.map(|(_, role, way, host)| Ok(Pump::new(way, host, open(connect, token, role)?, false))).collect()
}
