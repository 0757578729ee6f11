//! The process that keeps the daemon: starts it when somebody connects, writes down what it says, and stops it.
//! It owns the daemon's process, its data's place and its log. It exists from the first connection on; the daemon inherits
//! the socket from it, by systemd's protocol, sd_listen_fds(3).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, statat};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::refuse;
use crate::housekeeping;
use crate::sys::{self, Fork};

/// Docker's data, as it sees it, and as the sandbox's disk has it.
const DATA: &str = "/var/lib/docker";
const DATA_ON_DISK: &str = "docker";
/// What the daemon says. With the older one beside it, it takes twice the limit.
const LOG: &str = "/var/log/docker.log";
const LOG_MAX: u64 = 1 << 20;
/// A daemon that is killed sooner than this has not started well.
const BRIEF: Duration = Duration::from_secs(10);
/// Starts that may fail, one after the other, before whoever waits is refused. Not one: the daemon gives containerd 15 seconds,
/// which a busy machine can exceed.
const TRIES: u32 = 3;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Keeps the daemon until `stopped` is closed by the server.
pub fn run(listener: &OwnedFd, disk: &OwnedFd, stopped: &OwnedFd, program: &CStr) -> ! {
    housekeeping::as_usual();
    let mut log = Log::open(Path::new(LOG), LOG_MAX);
    let kept = attach(disk).context("mount Docker's data").and_then(|()| {
        let (output, output_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        Keeper { listener, stopped, program, output, output_end, log: &mut log, failures: 0 }.keep()
    });
    if let Err(error) = kept {
        log.write(format!("init: {error:#}\n").as_bytes());
        refuse(listener);
        sys::exit(1);
    }
    sys::exit(0)
}

/// Docker's storage is made of overlays, whose upper layers cannot lie on an overlay, as the root is.
fn attach(disk: &OwnedFd) -> Result<()> {
    match rustix::fs::mkdirat(disk, DATA_ON_DISK, Mode::from_raw_mode(0o710)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).context("make its folder on the disk"),
    }
    fs::create_dir_all(DATA).context(DATA)?;
    let place = |it: rustix::fs::Stat| (it.st_dev, it.st_ino);
    let there = place(statat(CWD, DATA, AtFlags::empty())?);
    if there == place(statat(disk, DATA_ON_DISK, AtFlags::SYMLINK_NOFOLLOW)?) {
        // By a keeper before this one.
        return Ok(());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let data = rustix::mount::open_tree(disk, DATA_ON_DISK, flags).context("open its folder on the disk")?;
    rustix::mount::move_mount(&data, "", CWD, DATA, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(DATA)
}

struct Keeper<'a> {
    listener: &'a OwnedFd,
    stopped: &'a OwnedFd,
    program: &'a CStr,
    /// Both ends are held open, so that what outlives a daemon (containerd) has somebody to write to.
    output: OwnedFd,
    output_end: OwnedFd,
    log: &'a mut Log,
    /// Starts that have failed since one went well.
    failures: u32,
}

/// A running daemon.
struct Daemon {
    pid: Pid,
    pidfd: OwnedFd,
    since: Instant,
}

impl Keeper<'_> {
    fn keep(mut self) -> Result<()> {
        let mut daemon: Option<Daemon> = None;
        let mut stopping = false;
        while !(stopping && daemon.is_none()) {
            let [stop, work] = self.wait(daemon.as_ref(), stopping)?;
            match daemon.take() {
                Some(ended) if work => self.reap(&ended),
                Some(running) => daemon = Some(running),
                None if work && !stop => daemon = Some(self.start().context("start the daemon")?),
                None => {}
            }
            if stop {
                stopping = true;
                if let Some(daemon) = &daemon {
                    let _ = sys::kill(daemon.pid.as_raw_pid(), libc::SIGTERM);
                }
            }
        }
        Ok(())
    }

    /// Waits, writing down what is said, until it shall stop, or else its work is to be done: to start a daemon for a
    /// connection, or to reap it. Says which.
    fn wait(&mut self, daemon: Option<&Daemon>, stopping: bool) -> Result<[bool; 2]> {
        loop {
            let work = daemon.map_or(self.listener.as_fd(), |it| it.pidfd.as_fd());
            let mut fds = [
                PollFd::new(&self.output, PollFlags::IN),
                PollFd::from_borrowed_fd(work, PollFlags::IN),
                PollFd::new(self.stopped, PollFlags::IN),
            ];
            // Once closed, it would be ready for ever.
            let count = if stopping { 2 } else { 3 };
            match poll(&mut fds[..count], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait"),
            }
            let [output, work, stop] = fds.map(|it| !it.revents().is_empty());
            if output {
                self.log.copy(&self.output);
            }
            if work || stop {
                return Ok([stop, work]);
            }
        }
    }

    fn start(&self) -> rustix::io::Result<Daemon> {
        match sys::fork()? {
            Fork::Child => self.become_daemon(),
            Fork::Parent(pid) => {
                let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                Ok(Daemon { pid, pidfd, since: Instant::now() })
            }
        }
    }

    fn become_daemon(&self) -> ! {
        let environment = ["HOME=/root", PATH, "LISTEN_FDS=1", &format!("LISTEN_PID={}", std::process::id())]
            .map(|it| CString::new(it).unwrap_or_default());
        let arguments = [self.program.to_owned(), c"-H".to_owned(), c"fd://".to_owned()];
        let prepared = || {
            // Nobody could stop it any more.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            sys::default_sigpipe();
            rustix::process::setsid()?;
            rustix::stdio::dup2_stdout(&self.output_end)?;
            rustix::stdio::dup2_stderr(&self.output_end)?;
            // `keep_only` has made it the first descriptor after the standard ones, where the daemon looks.
            rustix::io::fcntl_setfd(self.listener, FdFlags::empty())
        };
        let errno = match prepared() {
            Ok(()) => sys::execve(self.program, &arguments, &environment),
            Err(errno) => errno,
        };
        let message = format!("init: {}: {errno}\n", self.program.to_string_lossy());
        let _ = rustix::io::write(&self.output_end, message.as_bytes());
        sys::exit(1)
    }

    /// The daemon ends with an error when it cannot start. Who waits for one that does not come is told; who connects
    /// while one that worked is ending waits for the next.
    fn reap(&mut self, daemon: &Daemon) {
        let status = rustix::process::waitid(WaitId::PidFd(daemon.pidfd.as_fd()), WaitIdOptions::EXITED);
        self.log.copy(&self.output);
        let failed = |it: WaitIdStatus| it.exit_status().is_some_and(|code| code != 0);
        let failed = status.ok().flatten().is_some_and(failed) || daemon.since.elapsed() < BRIEF;
        self.failures = if failed { self.failures + 1 } else { 0 };
        if self.failures == TRIES {
            self.failures = 0;
            refuse(self.listener);
        }
    }
}

/// A file that does not grow beyond a limit: the older half moves aside.
struct Log {
    path: std::path::PathBuf,
    limit: u64,
    /// `None` when it cannot be written; nothing depends on it.
    file: Option<File>,
    length: u64,
}

impl Log {
    fn open(path: &Path, limit: u64) -> Self {
        let file = File::options().append(true).create(true).open(path).ok();
        let length = file.as_ref().and_then(|it| it.metadata().ok()).map_or(0, |it| it.len());
        Self { path: path.to_owned(), limit, file, length }
    }

    /// What is in a pipe that does not block.
    fn copy(&mut self, pipe: &OwnedFd) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = rustix::io::read(pipe, &mut buffer) {
            self.write(&buffer[..count]);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.length > self.limit {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            *self = Self::open(&self.path, self.limit);
            self.length += bytes.len() as u64;
        }
        let _ = self.file.as_mut().map(|it| it.write_all(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_takes_twice_its_limit_at_most_and_keeps_the_newest() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("docker.log");
        for round in 0..10 {
            // Opened anew each time, as after a restart.
            let mut log = Log::open(&path, 100);
            for line in 0..10 {
                log.write(format!("{round} {line} {}\n", "x".repeat(25)).as_bytes());
            }
        }
        let sizes =
            ["docker.log", "docker.log.1"].map(|it| fs::metadata(scratch.path().join(it)).unwrap().len());
        assert!(sizes.iter().all(|&size| size <= 100), "{sizes:?}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
        let newest = fs::read_to_string(path).unwrap();
        assert!(newest.contains("9 9 "), "{newest}");
    }
}
