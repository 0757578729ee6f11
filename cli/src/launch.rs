//! Starting a sandbox's VMM, and connecting to it.
//! The listener is there before the process is, so a connection never has to be tried twice: it waits in the backlog.
//! The lock goes to the VMM by inheritance, so it is held without a gap. It does not wait for the guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use gateway::credentials::{Lent, variables};
use gateway::handover;
use gateway::ports::{Listener, Opening};
use rustix::fs::{AtFlags, FlockOperation, flock, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vmm::marks::{self, Mark};

use crate::config::{Network, SandboxConfig};
use crate::store::{Lock, Sandbox, file};
use crate::{credentials, output, ports};

/// Connections of the guest that may wait for the gateway.
const GATEWAY_BACKLOG: i32 = 4096;

/// This very program, even if its file has been replaced or removed since it was started.
pub const SELF: &str = "/proc/self/exe";

/// A VMM that this command has started.
#[derive(Debug)]
pub struct Launched {
    pub child: Child,
    pub marks: File,
    /// Its gateway, which is not started yet.
    pub gateway: Option<Gateway>,
}

/// What a gateway is started with.
#[derive(Debug)]
pub struct Gateway {
    listener: UnixListener,
    lent: OwnedFd,
    ports: Vec<Listener>,
}

impl Launched {
    /// Starts its gateway, if it has one and that is not started yet.
    pub fn start_gateway(&mut self, sandbox: &Sandbox) -> Result<()> {
        let Some(gateway) = self.gateway.take() else { return Ok(()) };
        let machine =
            pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).context("watch the VMM")?;
        start_gateway(sandbox, gateway, machine)
    }
}

/// Starts the VMM of a sandbox whose lock is ours; drop the lock then, for it is the VMM's.
pub fn start(
    sandbox: &Sandbox,
    lock: &Lock,
    console: bool,
    config: &SandboxConfig,
    lent: &[Lent],
) -> Result<Launched> {
    if !config.ports.is_empty() {
        ports::await_last_gateway(sandbox);
    }
    let has_gateway = config.network == Network::Gateway;
    let prepare = || prepare_gateway(sandbox, ports::open_for(sandbox, &config.ports)?, lent);
    let gateway = has_gateway.then(prepare).transpose()?;
    let listener = listen(sandbox, file::SOCKET)?;
    let marks = sandbox.create_file(file::MARKS)?;
    // Emptied now: what is in it later is from this start.
    sandbox.create_file(file::EXIT)?;
    let log = sandbox.create_file(file::LOG)?;
    credentials::leave_names(sandbox, lent)?;
    let mut command = Command::new(SELF);
    command.arg0("coracle").arg("vmm").arg("--dir").arg(&sandbox.path);
    if console {
        command.arg("--console");
    }
    remove_credentials(&mut command);
    // The two descriptors that it must inherit are its standard ones: nothing else has to be open across the exec. A
    // process group of its own keeps the terminal's signals away from it.
    let spawned_ns = marks::now_ns();
    let holder = lock.0.try_clone().context("duplicate the lock")?;
    let child = command
        .stdin(Stdio::from(holder))
        .stdout(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::from(log))
        .process_group(0)
        .spawn()
        .context("start the VMM")?;
    marks::record(&marks, Mark::VmmSpawned, spawned_ns);
    Ok(Launched { child, marks, gateway })
}

/// The VMM has no use for them, and is what a guest that gets out of its machine is in. The gateway has what is lent.
fn remove_credentials(command: &mut Command) {
    for variable in variables().filter(|variable| std::env::var_os(variable).is_some()) {
        command.env_remove(variable);
    }
}

/// The socket is there before the VMM is, which opens it.
fn prepare_gateway(sandbox: &Sandbox, ports: Vec<Listener>, lent: &[Lent]) -> Result<Gateway> {
    let listener = listen(sandbox, file::GATEWAY_SOCKET)?;
    rustix::net::listen(&listener, GATEWAY_BACKLOG).context("listen for the gateway")?;
    Ok(Gateway { listener, lent: Lent::seal(lent)?, ports })
}

/// Starts another gateway for a sandbox that runs, if its own was killed. What that one was lent is gone with it.
pub fn revive_gateway(sandbox: &Sandbox, lent: &[Lent]) -> Result<()> {
    if sandbox.has_gateway() || is_served(sandbox) {
        return Ok(());
    }
    // Another command does the same: one of the two sees to it.
    let lock = sandbox.create_file(file::GATEWAY_LOCK)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    // In this order: a command that starts the VMM has bound the socket before.
    match sandbox.process() {
        Some(machine) if !is_served(sandbox) => {
            // A port that somebody else has taken since costs the sandbox its ports, not its network.
            let ports = ports::open_for(sandbox, &sandbox.config()?.ports).unwrap_or_else(|error| {
                output::note(&format!("coracle: its published ports stay closed: {error:#}\n"));
                Vec::new()
            });
            start_gateway(sandbox, prepare_gateway(sandbox, ports, lent)?, machine)
        }
        _ => Ok(()),
    }
}

/// Whether some process has the gateway's socket, if only a command that is about to start it. It hears nothing of this: it is asked
/// for something that it is not.
fn is_served(sandbox: &Sandbox) -> bool {
    let found = || {
        let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        connect(&probe, &SocketAddrUnix::new(short_path(sandbox, file::GATEWAY_SOCKET))?)
    };
    !matches!(found(), Err(Errno::CONNREFUSED | Errno::NOENT))
}

/// Starts the gateway of a VMM, a pidfd. Nothing waits for it but the guest's connections, in its socket.
fn start_gateway(sandbox: &Sandbox, gateway: Gateway, machine: OwnedFd) -> Result<()> {
    let mut command = Command::new(SELF);
    command.arg0("coracle").arg("gateway").arg("--dir").arg(&sandbox.path);
    remove_credentials(&mut command);
    command
        .stdin(Stdio::from(OwnedFd::from(gateway.listener)))
        .stdout(Stdio::from(machine))
        .stderr(Stdio::from(door(&gateway.lent, &gateway.ports)?))
        .process_group(0)
        .spawn()
        .context("start the gateway; the sandbox has no network")?;
    Ok(())
}

/// What does not fit into three streams: a socket, on which it waits.
fn door(lent: &OwnedFd, ports: &[Listener]) -> Result<OwnedFd> {
    let openings: Vec<Opening> = ports.iter().map(|it| it.opening).collect();
    let sockets = ports.iter().map(|it| it.socket.as_fd());
    let descriptors: Vec<_> = std::iter::once(lent.as_fd()).chain(sockets).collect();
    let (ours, door) = handover::pair().context("create a socket for the gateway")?;
    handover::send(&ours, &openings, &descriptors).context("hand things to the gateway")?;
    Ok(door)
}

/// The path of a socket that is to be made.
pub fn free_path(sandbox: &Sandbox, name: &str) -> Result<String> {
    // One left by a VMM that is gone: the lock is ours.
    match unlinkat(&sandbox.dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).context("remove the old socket"),
    }
    Ok(short_path(sandbox, name))
}

pub fn listen(sandbox: &Sandbox, name: &str) -> Result<UnixListener> {
    UnixListener::bind(free_path(sandbox, name)?).with_context(|| format!("create {name}"))
}

/// Connects to a sandbox's VMM; does not wait for it.
pub fn connect_to(sandbox: &Sandbox) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&connection, &SocketAddrUnix::new(short_path(sandbox, file::SOCKET))?)?;
    Ok(connection)
}

/// The socket by way of the folder's descriptor: an address holds 108 bytes (Linux man-pages, unix(7)), which a state
/// folder's path easily exceeds; and it is this folder's socket, whatever it is called by now.
pub fn short_path(sandbox: &Sandbox, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", sandbox.dir.as_raw_fd())
}
