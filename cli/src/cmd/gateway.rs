//! `coracle gateway`: the processes that a running sandbox's network is. For Coracle itself; `run` and `exec` start it.
//! The first is small, has the sandbox's gateway socket as its input, the VMM's pidfd as its output and, as its error stream, a
//! socket on which what is lent and the published ports wait. It starts the second, which does the work (see `gateway::supervisor`,
//! `gateway::worker`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use argh::{ArgsInfo, FromArgs};
use gateway::agent::Agent;
use gateway::credentials::Lent;
use gateway::handover;
use gateway::ports::{Listener, Opening};
use gateway::supervisor::{self, Ports};
use gateway::worker::{self, Place};
use rustix::fs::Mode;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use crate::launch::{self, SELF};
use crate::places;
use crate::store::{Sandbox, file};
use crate::sys;
use crate::text::Raw;

/// As for the VMM: it ends when that does, whatever becomes of the terminal.
const IGNORED: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGTTOU, libc::SIGUSR1, libc::SIGUSR2];

#[derive(FromArgs, ArgsInfo)]
#[argh(help_triggers("-h", "--help"))]
/// The processes that a running sandbox's network is. For Coracle itself.
pub struct Args {
    /// the sandbox's folder
    #[argh(option)]
    pub dir: Raw,
    /// do the work, for the process with this number
    #[argh(option, arg_name = "PID")]
    pub worker: Option<i32>,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        supervisor::confine().context("confine the gateway")?;
        sys::close_from(3);
        sys::ignore(&IGNORED);
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let path = PathBuf::from(&self.dir.0);
        let sandbox = if self.worker.is_some() { Sandbox::open_current(&path) } else { Sandbox::open(path) };
        let sandbox = sandbox.context("--dir")?;
        rustix::process::chdir("/").context("change to /")?;
        match self.worker {
            Some(parent) => work(&sandbox, parent)?,
            None => supervise(&sandbox)?,
        }
        Ok(0)
    }
}

fn supervise(sandbox: &Sandbox) -> Result<()> {
    let [listener, machine, door] = inherited()?;
    let (lent, listeners) = take(&door)?;
    let lock = sandbox.create_file(file::GATEWAY_LOCK)?;
    if !supervisor::lock(&lock, machine.as_fd())? {
        return Ok(());
    }
    let control = launch::free_path(sandbox, file::GATEWAY_CONTROL)?;
    let control = handover::listener(&control).context("listen for commands")?;
    let start = |channel: OwnedFd| -> io::Result<Child> {
        let mut command = Command::new(SELF);
        command.arg0("coracle").arg("gateway").arg("--dir").arg(&sandbox.path);
        command.arg("--worker").arg(getpid().as_raw_pid().to_string());
        // Its path leads to another sandbox when this one is being removed and its name is used again.
        command.current_dir(format!("/proc/self/fd/{}", sandbox.dir.as_raw_fd()));
        let (listener, lent) = (listener.try_clone()?, lent.try_clone()?);
        command.stdin(listener).stdout(channel).stderr(lent).spawn()
    };
    supervisor::run(listener.as_fd(), machine.as_fd(), Ports::new(control, listeners), start)
}

/// What waits in the door: what is lent, and the published ports.
fn take(door: &OwnedFd) -> Result<(OwnedFd, Vec<Listener>)> {
    let message = handover::receive::<Vec<Opening>>(door).context("take over what is inherited")?;
    let (openings, descriptors) = message.context("nothing is inherited")?;
    let mut descriptors = descriptors.into_iter();
    let lent = descriptors.next().context("nothing is lent")?;
    let listeners = openings.into_iter().zip(descriptors);
    Ok((lent, listeners.map(|(opening, socket)| Listener { opening, socket }).collect()))
}

fn work(sandbox: &Sandbox, parent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("end with the supervisor")?;
    let lives = getppid().map(Pid::as_raw_pid) == Some(parent);
    ensure!(lives, "this is for Coracle itself; start a sandbox with coracle run");
    let [listener, ports, lent] = inherited()?;
    // What cannot be read names no keys.
    let keys = sandbox.config().map(|config| config.ssh_agent).unwrap_or_default();
    let place = Place {
        agent: Agent { socket: places::ssh_agent(), keys },
        settings: places::settings()?,
        folder: sandbox.path.clone(),
        sandbox: sandbox.name.clone(),
        lent: Lent::read(lent)?,
        path: None,
        ports: Some(ports),
    };
    worker::run(UnixListener::from(listener), place)
}

/// The standard streams, moved away from where a stray `print` would write into them.
fn inherited() -> Result<[OwnedFd; 3]> {
    let take = || -> io::Result<[OwnedFd; 3]> {
        let taken = [
            io::stdin().as_fd().try_clone_to_owned()?,
            io::stdout().as_fd().try_clone_to_owned()?,
            io::stderr().as_fd().try_clone_to_owned()?,
        ];
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(taken)
    };
    take().context("take over what is inherited")
}
