//! Waiting for processes that nobody else waits for: PID 1 of the guest, and PID 1 of the container.
//! It owns both loops, and what the server knows of the container. It starts no commands.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Mode;
use rustix::io::{Errno, Result};
use rustix::mount::MountFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use crate::sys::{self, Fork, SignalQueue};

/// Reaps whatever ends, until `child` does.
pub fn until(child: Pid) -> Option<WaitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => return Some(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The container's PID 1, as its parent sees it.
pub struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    ended: bool,
}

impl Container {
    /// Starts it, as the first process of the PID namespace that this process has made for its children. Returns when
    /// /proc is mounted.
    pub fn start() -> Result<Self> {
        let (ready, ready_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pid = match sys::fork()? {
            Fork::Child => first_process(ready_end),
            Fork::Parent(pid) => pid,
        };
        drop(ready_end);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        match rustix::io::read(&ready, &mut [0])? {
            0 => Err(Errno::CHILD),
            _ => Ok(Self { pid, pidfd, ended: false }),
        }
    }

    /// In the numbers of the guest's own PID namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when all of the container's processes have ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether they have.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes note that they have.
    pub fn reap(&mut self) {
        let ended = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        self.ended = !matches!(ended, Ok(None) | Err(Errno::INTR));
    }

    /// Stops waiting for them.
    pub fn give_up(&mut self) {
        self.ended = true;
    }

    /// SIGTERM: everybody shall end, and when they have, so does this. SIGKILL: everybody ends.
    pub fn signal(&self, number: i32) {
        if !self.ended {
            let _ = sys::kill(self.pid.as_raw_pid(), number);
        }
    }
}

/// Reaps orphans. SIGTERM counts only when it comes from outside of the container: inside, PID 1 cannot be killed.
fn first_process(ready: OwnedFd) -> ! {
    // Without the server nobody could reach the container any more.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let signals = SignalQueue::new(&[libc::SIGCHLD, libc::SIGTERM]);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mount_proc = || rustix::mount::mount("proc", "/proc", "proc", flags, None);
    let mounted = match mount_proc() {
        // An image need not have the folder.
        Err(Errno::NOENT) => {
            rustix::fs::mkdir("/proc", Mode::from_raw_mode(0o555)).and_then(|()| mount_proc())
        }
        other => other,
    };
    if let Err(errno) = mounted {
        crate::log(format_args!("mount proc on /proc: {errno}"));
        sys::exit(1);
    }
    let _ = rustix::io::write(&ready, &[0]);
    drop(ready);
    let mut ending = false;
    while !(ending && alone()) {
        let asked = signals.wait(None).is_some_and(|it| it.signal == libc::SIGTERM && it.from_outside);
        if asked && !ending {
            ending = true;
            let _ = sys::kill(EVERYBODY, libc::SIGTERM);
            // A stopped process would never get to its SIGTERM.
            let _ = sys::kill(EVERYBODY, libc::SIGCONT);
        }
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
    sys::exit(0)
}

/// All processes of the PID namespace but the caller and its PID 1.
const EVERYBODY: i32 = -1;

fn alone() -> bool {
    sys::kill(EVERYBODY, 0) == Err(Errno::SRCH)
}
