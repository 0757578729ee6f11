//! The daemons' processes: containerd, then dockerd on top of it, with what each is told.
//! It owns their command lines and how one waits for the other. When to start them is the keeper's.
//!
//! Left to itself, dockerd starts containerd, finds that it does not listen yet, and looks again after a second.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use protocol::HOST;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Access;
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::sys::{self, Fork};

/// Where an image may have it: as Debian packages it, and as Docker's own image has it.
const CONTAINERDS: [&CStr; 2] = [c"/usr/bin/containerd", c"/usr/local/bin/containerd"];
const FOLDER: &str = "/run/docker/containerd";
const CONFIG: &str = "/run/docker/containerd/coracle.toml";
const SOCKET: &str = "/run/docker/containerd/containerd.sock";
/// As dockerd would configure it: the same folders, and nothing for Kubernetes.
const CONFIGURATION: &str = r#"version = 2
root = "/var/lib/docker/containerd/daemon"
state = "/run/docker/containerd/daemon"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/docker/containerd/containerd.sock"
"#;
/// Where a user tells dockerd something, and the setting that it takes from there or from its arguments, but not from both.
const SETTINGS: &str = "/etc/docker/daemon.json";
const INSECURE: &str = "insecure-registries";
/// How often dockerd's process looks whether containerd listens.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A daemon's process, which has not been waited for.
pub struct Program {
    pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    since: Instant,
}

impl Program {
    /// Asks it to end.
    pub fn stop(&self) {
        let _ = sys::kill(self.pid.as_raw_pid(), libc::SIGTERM);
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits for its end, and says whether it ended with an error, rather than by a signal or as it was asked to.
    pub fn reap(self) -> bool {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        status.ok().flatten().and_then(|it| it.exit_status()).is_some_and(|code| code != 0)
    }
}

/// Starts containerd. An image that has none leaves that to dockerd.
pub fn start_containerd(output: &OwnedFd) -> Result<Option<Program>> {
    let is_there = |it: &&CStr| rustix::fs::access(*it, Access::EXEC_OK).is_ok();
    let Some(program) = CONTAINERDS.into_iter().find(is_there) else { return Ok(None) };
    fs::DirBuilder::new().recursive(true).mode(0o711).create(FOLDER).context(FOLDER)?;
    fs::write(CONFIG, CONFIGURATION).context(CONFIG)?;
    let arguments = [program.to_owned(), c"--config".to_owned(), CString::new(CONFIG)?];
    spawn(output, || become_program(&arguments, &[])).map(Some)
}

/// Starts dockerd on `listener`, which must be the first descriptor after the standard ones: that is where it looks.
pub fn start_dockerd(
    program: &CStr,
    listener: &OwnedFd,
    containerd: Option<&Program>,
    output: &OwnedFd,
) -> Result<Program> {
    let mut arguments = vec![program.to_owned(), c"-H".to_owned(), c"fd://".to_owned()];
    if containerd.is_some() {
        arguments.push(CString::new(format!("--containerd={SOCKET}"))?);
    }
    // One on the host is as near as one on this machine, to which dockerd speaks plain HTTP by itself.
    if !fs::read_to_string(SETTINGS).is_ok_and(|it| it.contains(INSECURE)) {
        arguments.push(CString::new(format!("--insecure-registry={HOST}/32"))?);
    }
    spawn(output, || {
        if let Some(containerd) = containerd {
            wait_for(containerd)?;
        }
        rustix::io::fcntl_setfd(listener, FdFlags::empty())?;
        // sd_listen_fds(3).
        become_program(&arguments, &["LISTEN_FDS=1", &format!("LISTEN_PID={}", std::process::id())])
    })
}

/// It listens, or it ends.
fn wait_for(containerd: &Program) -> Result<()> {
    while UnixStream::connect(SOCKET).is_err() {
        let ended = poll(&mut [PollFd::new(&containerd.pidfd, PollFlags::IN)], Some(&LOOK))?;
        ensure!(ended == 0, "containerd has ended");
    }
    Ok(())
}

/// A child that ends with this process. `run` returns only the reason why it could not become a program.
fn spawn(output: &OwnedFd, run: impl FnOnce() -> Result<()>) -> Result<Program> {
    match sys::fork()? {
        Fork::Child => {
            let prepare = || -> rustix::io::Result<()> {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                sys::default_sigpipe();
                rustix::process::setsid()?;
                rustix::stdio::dup2_stdout(output)?;
                rustix::stdio::dup2_stderr(output)
            };
            let failed = prepare().map_err(anyhow::Error::from).and_then(|()| run());
            if let Err(error) = failed {
                let _ = rustix::io::write(output, format!("init: {error:#}\n").as_bytes());
            }
            sys::exit(1)
        }
        Fork::Parent(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Program { pid, pidfd, since: Instant::now() })
        }
    }
}

fn become_program(arguments: &[CString], environment: &[&str]) -> Result<()> {
    let environment = ["HOME=/root", PATH].iter().chain(environment).map(|it| CString::new(*it));
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    let errno = sys::execve(&arguments[0], arguments, &environment);
    Err(anyhow!("{}: {errno}", arguments[0].to_string_lossy()))
}
