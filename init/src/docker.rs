//! The private Docker: a socket from the start, and a daemon behind it from the first connection on.
//! It owns the socket, and the process that keeps the daemon (`keeper`) as far as the server sees it. Until somebody
//! connects nothing of Docker runs and nothing is mounted for it. It accepts nothing: who connects waits for the daemon.

mod keeper;
mod log;
mod programs;

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, Gid, Mode, Uid};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

use crate::exec::user;
use crate::sys::{self, Fork};

/// Where an image may have the daemon: as Debian packages it, as Docker does, and as Docker's own image has it.
const DAEMONS: [&CStr; 3] = [c"/usr/sbin/dockerd", c"/usr/bin/dockerd", c"/usr/local/bin/dockerd"];
/// Where clients look.
const SOCKET: &str = "/run/docker.sock";
/// Connections that wait while the daemon starts; the kernel allows no more. A client that finds it full is refused.
const BACKLOG: i32 = 4096;
/// What is read of /etc/group: more than any real one has.
const GROUP_MAX: u64 = 1 << 20;

/// The private Docker of a sandbox, which may have none.
pub struct Docker(Option<Socket>);

struct Socket {
    listener: OwnedFd,
    daemon: &'static CStr,
    /// The sandbox's disk: Docker's data lies beside the root's upper layer, as an overlay cannot lie on another.
    disk: Rc<OwnedFd>,
    keeper: Option<Keeper>,
}

/// The keeper, from its start to its end.
struct Keeper {
    pidfd: OwnedFd,
    /// Closed, it asks the keeper to stop the daemon and to end.
    stop: Option<OwnedFd>,
}

impl Docker {
    /// Binds the socket, if the container has a daemon to put behind it.
    pub fn new(disk: Rc<OwnedFd>) -> Self {
        let is_there = |it: &&CStr| rustix::fs::access(*it, Access::EXEC_OK).is_ok();
        let Some(daemon) = DAEMONS.into_iter().find(is_there) else { return Self::none() };
        match listen() {
            Ok(listener) => Self(Some(Socket { listener, daemon, disk, keeper: None })),
            Err(errno) => {
                crate::log(format_args!("listen on {SOCKET}: {errno}"));
                Self::none()
            }
        }
    }

    /// No socket, and never a daemon.
    pub fn none() -> Self {
        Self(None)
    }

    /// What to wait for before `ready`: the first connection, or the keeper's end.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        let socket = self.0.as_ref()?;
        Some(socket.keeper.as_ref().map_or(socket.listener.as_fd(), |it| it.pidfd.as_fd()))
    }

    /// Somebody has connected, or the keeper has ended.
    pub fn ready(&mut self) {
        let Some(socket) = &mut self.0 else { return };
        if let Some(keeper) = socket.keeper.take() {
            let _ = rustix::process::waitid(WaitId::PidFd(keeper.pidfd.as_fd()), WaitIdOptions::EXITED);
            if keeper.stop.is_none() {
                self.0 = None;
            } else {
                // It ends by itself when it cannot work, or is killed: for those who wait, the next could do no better.
                refuse(&socket.listener);
            }
            return;
        }
        match socket.start() {
            Ok(keeper) => socket.keeper = Some(keeper),
            Err(errno) => {
                crate::log(format_args!("start Docker: {errno}"));
                refuse(&socket.listener);
            }
        }
    }

    /// Whether there is a keeper, and perhaps a daemon.
    pub fn runs(&self) -> bool {
        self.0.as_ref().is_some_and(|it| it.keeper.is_some())
    }

    /// The sandbox ends: so shall the daemon, with its containers. It is not started again.
    pub fn stop(&mut self) {
        match &mut self.0 {
            Some(Socket { keeper: Some(keeper), .. }) => keeper.stop = None,
            _ => self.0 = None,
        }
    }
}

impl Socket {
    fn start(&self) -> Result<Keeper> {
        let (stopped, stop) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        match sys::fork()? {
            Fork::Child => {
                // The server's connections must not be held open by a process that outlives them.
                match sys::keep_only([&self.listener, &self.disk, &stopped]) {
                    Ok([listener, disk, stopped]) => keeper::run(&listener, &disk, &stopped, self.daemon),
                    Err(_) => sys::exit(1),
                }
            }
            Fork::Parent(pid) => {
                let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                Ok(Keeper { pidfd, stop: Some(stop) })
            }
        }
    }
}

fn listen() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(SOCKET)?)?;
    rustix::fs::chown(SOCKET, Some(Uid::ROOT), Some(Gid::from_raw(group())))?;
    rustix::fs::chmod(SOCKET, Mode::from_raw_mode(0o660))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Who may use the socket besides root; root's own group where the container has no such group.
fn group() -> u32 {
    let mut text = Vec::new();
    let read = File::open("/etc/group").and_then(|file| file.take(GROUP_MAX).read_to_end(&mut text));
    read.ok().and_then(|_| user::resolve("0:docker", b"", &text).ok()).map_or(0, |it| it.gid)
}

/// Closes the connections that wait. Their clients are told so, instead of waiting for a daemon that does not come.
fn refuse(listener: &OwnedFd) {
    for _ in 0..BACKLOG {
        match rustix::net::accept(listener) {
            Ok(_) | Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
