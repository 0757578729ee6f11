//! The process that keeps the daemons: starts them when somebody connects, writes down what they say, and stops them.
//! It owns where their data lies, and what is done when one has ended. It exists from the first connection on.

use std::ffi::CStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, statat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::pipe::PipeFlags;

use super::log::Log;
use super::programs::{self, Program};
use super::refuse;
use crate::{housekeeping, sys};

/// Docker's data, as it sees it, and as the sandbox's disk has it.
const DATA: &str = "/var/lib/docker";
const DATA_ON_DISK: &str = "docker";
const LOG: &str = "/var/log/docker.log";
const LOG_MAX: u64 = 1 << 20;
/// A daemon that ends sooner than this has not started well.
const BRIEF: Duration = Duration::from_secs(10);
/// Starts that may fail, one after the other, before whoever waits is refused: a machine may be too busy for a daemon's
/// own deadlines.
const TRIES: u32 = 3;

/// Keeps the daemons until `stopped` is closed by the server.
pub fn run(listener: &OwnedFd, disk: &OwnedFd, stopped: &OwnedFd, program: &CStr) -> ! {
    housekeeping::as_usual();
    let mut log = Log::open(Path::new(LOG), LOG_MAX);
    let kept = attach(disk).context("mount Docker's data").and_then(|()| {
        let (output, output_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let daemons = Daemons { containerd: None, dockerd: None };
        Keeper { listener, stopped, program, output, output_end, log: &mut log, daemons, failures: 0 }.keep()
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
    /// Both ends are held open, so that what outlives a daemon (a container's shim) has somebody to write to.
    output: OwnedFd,
    output_end: OwnedFd,
    log: &'a mut Log,
    daemons: Daemons,
    /// Starts that have failed since one went well.
    failures: u32,
}

/// What runs. A containerd whose dockerd was killed keeps the containers for the next one.
struct Daemons {
    containerd: Option<Program>,
    dockerd: Option<Program>,
}

/// What has happened.
#[derive(Clone, Copy)]
struct Wake {
    stop: bool,
    connection: bool,
    containerd: bool,
    dockerd: bool,
}

impl Keeper<'_> {
    fn keep(mut self) -> Result<()> {
        loop {
            let wake = self.wait()?;
            if wake.stop {
                return self.stop();
            }
            if wake.containerd {
                self.replace_containerd()?;
            }
            if wake.dockerd {
                self.reap_dockerd();
            }
            if wake.connection {
                self.start()?;
            }
        }
    }

    /// Waits, writing down what is said, until there is something to do.
    fn wait(&mut self) -> Result<Wake> {
        loop {
            let Daemons { containerd, dockerd } = &self.daemons;
            let mut fds =
                vec![PollFd::new(&self.output, PollFlags::IN), PollFd::new(self.stopped, PollFlags::IN)];
            let work = dockerd.as_ref().map_or(self.listener.as_fd(), |it| it.pidfd.as_fd());
            fds.push(PollFd::from_borrowed_fd(work, PollFlags::IN));
            fds.extend(containerd.iter().map(|it| PollFd::new(&it.pidfd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait"),
            }
            let ready = |index: usize| fds.get(index).is_some_and(|it| !it.revents().is_empty());
            let (output, runs) = (ready(0), dockerd.is_some());
            let wake = Wake {
                stop: ready(1),
                connection: ready(2) && !runs,
                dockerd: ready(2) && runs,
                containerd: ready(3),
            };
            if output {
                self.log.copy(&self.output);
            }
            if wake.stop || wake.connection || wake.containerd || wake.dockerd {
                return Ok(wake);
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        let Daemons { containerd, dockerd } = &mut self.daemons;
        if containerd.is_none() {
            *containerd = programs::start_containerd(&self.output_end).context("start containerd")?;
        }
        let started =
            programs::start_dockerd(self.program, self.listener, containerd.as_ref(), &self.output_end);
        *dockerd = Some(started.context("start dockerd")?);
        Ok(())
    }

    /// dockerd goes on with another one, but not for ever.
    fn replace_containerd(&mut self) -> Result<()> {
        let Some(ended) = self.daemons.containerd.take() else { return Ok(()) };
        let lasted = ended.age() >= BRIEF;
        ended.reap();
        match &self.daemons.dockerd {
            Some(_) if lasted => self.daemons.containerd = programs::start_containerd(&self.output_end)?,
            Some(dockerd) => dockerd.stop(),
            None => {}
        }
        Ok(())
    }

    /// Who waits for a daemon that does not come is told; who connects while one that worked is ending waits for the next.
    fn reap_dockerd(&mut self) {
        let Some(ended) = self.daemons.dockerd.take() else { return };
        let brief = ended.age() < BRIEF;
        self.failures = if ended.reap() || brief { self.failures + 1 } else { 0 };
        if self.failures == TRIES {
            self.failures = 0;
            refuse(self.listener);
        }
    }

    /// dockerd ends its containers, for which it needs containerd. The server does not wait for ever.
    fn stop(self) -> Result<()> {
        let Daemons { containerd, dockerd } = self.daemons;
        for daemon in [dockerd, containerd].into_iter().flatten() {
            daemon.stop();
            let mut fds =
                [PollFd::new(&daemon.pidfd, PollFlags::IN), PollFd::new(&self.output, PollFlags::IN)];
            while fds[0].revents().is_empty() && poll(&mut fds, None).is_ok() {
                self.log.copy(&self.output);
            }
            daemon.reap();
        }
        self.log.copy(&self.output);
        Ok(())
    }
}
