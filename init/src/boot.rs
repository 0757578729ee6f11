//! The boot: from an empty initramfs to a listening exec server, in steps that can be read from top to bottom.
//! It owns their order. What is mounted is decided by `plan`, and done by `apply`.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use protocol::{BootConfig, PORT};
use rustix::fd::{AsRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;
use rustix::time::{ClockId, Timespec};

use crate::docker::Docker;
use crate::exec::server::Server;
use crate::housekeeping::Housekeeping;
use crate::mark::{Mark, Port};
use crate::network::Network;
use crate::reap::Container;
use crate::{apply, plan, power, sys, trust, vsock};

/// The boot config's place, `protocol::BOOT_FILE` in the initramfs.
const BOOT_FILE: &str = "/boot.bin";
/// Connections to the exec server that wait to be accepted: all of one session, and some more.
const BACKLOG: i32 = 64;
/// Open files of a process: what agents' tools need at once, and up to where they may raise it.
const OPEN_FILES: (u64, u64) = (1 << 16, 1 << 20);

/// A booted sandbox.
pub struct Sandbox {
    server: Server,
    disk: Rc<OwnedFd>,
}

impl Sandbox {
    /// Returns when the machine may be switched off.
    pub fn serve(self) {
        self.server.run();
        power::save(&self.disk);
    }
}

/// Everything that happens before the first command.
pub fn boot(port: Option<Port>) -> Result<Sandbox> {
    let config = read_config()?;
    set_clock(config.wall_clock_ns).context("set the clock")?;
    sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID)
        .context("new namespaces")?;
    rustix::system::sethostname(config.hostname.as_bytes()).context("set the host name")?;
    loopback_up().context("bring the loopback interface up")?;
    let disk = apply::apply_all(&plan::plan(&config)?)?;
    mark(port.as_ref(), Mark::WorkspaceMounted);
    if !config.authority.is_empty() {
        trust::install(Path::new("/"), &config.authority);
    }

    set_limits(&config).context("set resource limits")?;
    let container = Container::start().context("start the container")?;
    let network = if config.network {
        Network::new(config.agent).context("set up the network")?
    } else {
        Network::none()
    };
    let listener = vsock::listener(PORT, BACKLOG).context("listen on vsock")?;
    mark(port.as_ref(), Mark::Ready);

    // Not before the mark: meanwhile the host lets the first connection through.
    let disk = Rc::new(disk);
    let docker = if config.docker { Docker::new(Rc::clone(&disk)) } else { Docker::none() };
    let housekeeping = Housekeeping::new(config, Rc::clone(&disk), container.pid());
    Ok(Sandbox { server: Server::new(listener, Some(container), port, housekeeping, docker, network), disk })
}

/// Sets a mark, if this machine has any.
pub fn mark(port: Option<&Port>, mark: Mark) {
    if let Some(port) = port {
        port.mark(mark);
    }
}

/// fd 0 becomes /dev/null, 1 and 2 the kernel's log: without a console device the kernel may have opened none.
pub fn open_standard_streams() {
    // If anything here fails, there is no way to tell anybody; what needs /dev fails later, and says so by ending.
    let _ = rustix::mount::mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None);
    let open = |path, flags| rustix::fs::open(path, flags, Mode::empty());
    if let Ok(null) = open("/dev/null", OFlags::RDWR) {
        let _ = rustix::stdio::dup2_stdin(&null);
        keep_if_standard(null);
    }
    if let Ok(log) = open("/dev/kmsg", OFlags::WRONLY) {
        let _ = rustix::stdio::dup2_stdout(&log);
        let _ = rustix::stdio::dup2_stderr(&log);
        keep_if_standard(log);
    }
}

/// Closes what was only opened to be duplicated.
fn keep_if_standard(fd: OwnedFd) {
    if fd.as_raw_fd() <= rustix::stdio::raw_stderr() {
        let _ = fd.into_raw_fd();
    }
}

fn read_config() -> Result<BootConfig> {
    let bytes = std::fs::read(BOOT_FILE).context("read /boot.bin")?;
    protocol::decode(&bytes).context("read /boot.bin")
}

fn set_clock(wall_clock_ns: u64) -> rustix::io::Result<()> {
    const NS_PER_S: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: (wall_clock_ns / NS_PER_S).cast_signed(),
        tv_nsec: (wall_clock_ns % NS_PER_S).cast_signed(),
    };
    rustix::time::clock_settime(ClockId::Realtime, time)
}

fn loopback_up() -> rustix::io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(&socket)
}

/// Everything started from here on inherits them. The kernel has sized its limit on a user's processes for the boot
/// memory; what is added later counts as well. It keeps an unprivileged fork bomb from stopping the server.
fn set_limits(config: &BootConfig) -> rustix::io::Result<()> {
    let (current, maximum) = OPEN_FILES;
    rustix::process::setrlimit(Resource::Nofile, limit(current, maximum))?;
    let added: u64 = config.hot_memory.iter().map(|&(_, length)| length).fold(0, u64::saturating_add);
    if added > 0 {
        let booted = rustix::system::sysinfo().totalram.max(1);
        let processes = rustix::process::getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
        let scaled =
            processes.saturating_add(processes.saturating_mul(added / (1 << 20)) / (booted >> 20).max(1));
        rustix::process::setrlimit(Resource::Nproc, limit(scaled, scaled))?;
    }
    Ok(())
}

fn limit(current: u64, maximum: u64) -> Rlimit {
    Rlimit { current: Some(current), maximum: Some(maximum) }
}
