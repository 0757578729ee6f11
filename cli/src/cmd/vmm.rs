//! `coracle vmm`: the process that is a running sandbox. For Coracle itself; `run` and `exec` start it.
//! It opens what the sandbox is made of, runs the VM, leaves a report, and removes the sandbox where that was wanted. It
//! inherits the sandbox's lock as its input and the listening socket as its output (see `launch`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use argh::{ArgsInfo, FromArgs};
use gateway::intercept;
use protocol::{BootConfig, Hello, Message, Mount, Request, Role};
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, openat2};
use vmm::config::{Disk, Outbound, Rules, Share, Vsock};
use vmm::{Config, End, Exit, Vm, layout};

use crate::config::{Network, SandboxConfig};
use crate::disk::Room;
use crate::report::Report;
use crate::store::{Lock, Sandbox, file, is_same, is_trash};
use crate::sys;
use crate::text::{Raw, plain, quoted};
use crate::workspace::Workspace;
use crate::{git, launch, parts, templates};

/// Not for the VMM: it ends when it is told to by SIGTERM, whatever becomes of the terminal it was started from, and a
/// file size limit is the guest's problem, as EFBIG.
const IGNORED: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTOU,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXFSZ,
];
/// Connections for published ports that wait to be accepted.
const PORTS_BACKLOG: i32 = 1024;
/// Nobody will come back to a sandbox that is removed with its first session: if none is open, its command was killed.
const EPHEMERAL_IDLE: Duration = Duration::from_secs(2);

#[derive(FromArgs, ArgsInfo)]
#[argh(help_triggers("-h", "--help"))]
/// The process that is a running sandbox. For Coracle itself.
pub struct Args {
    /// the sandbox's folder
    #[argh(option)]
    pub dir: Raw,
    /// every kernel message goes to the console log
    #[argh(switch)]
    pub console: bool,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        sys::close_from(3);
        sys::ignore(&IGNORED);
        let listener = take_standard_streams().context("take over the lock and the socket")?;
        // Whatever folder the command was given in, nothing is kept from being unmounted.
        rustix::process::chdir("/").context("change to /")?;
        // The guest's own umask applies to what it creates in a workspace; ours must not.
        rustix::process::umask(Mode::empty());
        let sandbox = open(&self.dir)?;
        let ephemeral = sandbox.is_ephemeral();
        let exit_file = sandbox.create_file(file::EXIT)?;
        let (report, at_rest) = match run(&sandbox, listener, self.console, ephemeral) {
            Ok(End { exit, at_rest }) => (report(exit), at_rest),
            Err(error) => (Report::Failed { message: format!("{error:#}") }, false),
        };
        let written = report.write(&exit_file);
        remove_if_unwanted(&sandbox, ephemeral)?;
        if at_rest {
            // It would go with the process, but a thread that hangs in a share's file system can hold that up for ever.
            rustix::fs::flock(io::stdin(), FlockOperation::Unlock).context("release the lock")?;
        }
        written?;
        Ok(u8::from(report != Report::PoweredOff))
    }
}

/// Input is the lock, which stays where it is; output is the listening socket, which moves away from where a stray
/// `print` would write into it.
fn take_standard_streams() -> io::Result<UnixListener> {
    let listener = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(UnixListener::from(listener))
}

fn open(dir: &Raw) -> Result<Sandbox> {
    let sandbox = Sandbox::open(PathBuf::from(&dir.0)).context("--dir")?;
    // Who runs this by hand has no lock to give, and must not run a second VM on the disk.
    let lock = sandbox.open_file(file::LOCK)?.metadata()?;
    let ours = Lock(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let same = is_same(&lock, &ours.0.metadata()?);
    anyhow::ensure!(same, "this is for Coracle itself; start a sandbox with coracle run");
    ours.write_pid(std::process::id()).context("write the lock")?;
    Ok(sandbox)
}

fn run(sandbox: &Sandbox, listener: UnixListener, console: bool, ephemeral: bool) -> Result<End> {
    let config = sandbox.config()?;
    let vm = Vm::new(machine(sandbox, &config, listener, console, ephemeral)?)?;
    Ok(vm.run()?)
}

/// The machine for a sandbox: every file opened, nothing left to be looked up by name.
fn machine(
    sandbox: &Sandbox,
    config: &SandboxConfig,
    listener: UnixListener,
    console: bool,
    ephemeral: bool,
) -> Result<Config> {
    let disk_flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let disk =
        rustix::fs::openat(&sandbox.dir, file::DISK, disk_flags, Mode::empty()).context("open the disk")?;
    let keep_free = Room::of(&disk).context("look at the space for the disk")?.keep_free;
    let idle = match config.idle_timeout_s {
        _ if ephemeral => Some(EPHEMERAL_IDLE),
        0 => None,
        seconds => Some(Duration::from_secs(seconds)),
    };
    let mut listeners = vec![(protocol::PORT, listener)];
    if config.network == Network::Gateway {
        listeners.push((protocol::PUBLISH_PORT, listen_for_ports(sandbox)?));
    }
    let layers =
        templates::layers(&config.image)?.iter().map(|path| open_part(path)).collect::<Result<Vec<_>>>()?;
    let count = u8::try_from(layers.len()).context("count the template's layers")?;
    Ok(Config {
        cpus: config.cpus,
        memory_mib: config.memory_mib,
        kernel: open_part(&parts::kernel()?)?,
        initramfs: open_part(&parts::initramfs()?)?,
        boot_file: boot_config(sandbox, config, count)?.encode().context("encode the boot configuration")?,
        verbose_console: console,
        disks: vec![Disk { file: disk.into(), read_only: false, keep_free }],
        layers,
        shares: shares(config)?,
        vsock: Vsock {
            listeners,
            outbound: outbound(sandbox, config)?,
            idle_timeout: idle,
            goodbye: (protocol::PORT, goodbye()?),
        },
        console: sandbox.create_file(file::CONSOLE)?,
        marks: sandbox.open_marks()?,
    })
}

/// Where the gateway connects for clients of published ports.
fn listen_for_ports(sandbox: &Sandbox) -> Result<UnixListener> {
    let listener = launch::listen(sandbox, file::PORTS_SOCKET)?;
    rustix::net::listen(&listener, PORTS_BACKLOG).context("listen for published ports")?;
    Ok(listener)
}

/// The way to the gateway, where there is one.
fn outbound(sandbox: &Sandbox, config: &SandboxConfig) -> Result<Vec<Outbound>> {
    if config.network == Network::None {
        return Ok(Vec::new());
    }
    let folder = sandbox.dir.try_clone().context("duplicate the folder's descriptor")?;
    Ok(vec![Outbound { port: protocol::GATEWAY_PORT, folder, name: file::GATEWAY_SOCKET }])
}

fn open_part(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", quoted(path)))
}

fn tag(index: usize) -> String {
    format!("w{index}")
}

fn shares(config: &SandboxConfig) -> Result<Vec<Share>> {
    let numbered = config.workspaces.iter().enumerate();
    numbered.map(|(index, workspace)| share(index, workspace, config.hide())).collect()
}

fn share(index: usize, workspace: &Workspace, hide: Vec<Vec<u8>>) -> Result<Share> {
    let missing = || format!("workspace {} is no longer what it was; put it back", plain(&workspace.path));
    let (folder, only) = match (workspace.file, workspace.path.parent(), workspace.path.file_name()) {
        (true, Some(parent), Some(name)) => (parent, Some(name.as_bytes().to_vec())),
        _ => (workspace.path.as_path(), None),
    };
    // The path had no symbolic links when it was stored. One that has appeared since could lead anywhere.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let root: OwnedFd =
        openat2(rustix::fs::CWD, folder, flags, Mode::empty(), resolve).with_context(missing)?;
    let rules = match workspace {
        // Who names a file wants it shown.
        Workspace { file: true, .. } => Rules::default(),
        Workspace { worktrees, .. } if !worktrees.is_empty() => git::rules(worktrees),
        _ => Rules { hidden: hide, ..Rules::default() },
    };
    Ok(Share { tag: tag(index), root, read_only: workspace.read_only, only, rules })
}

fn boot_config(sandbox: &Sandbox, config: &SandboxConfig, layers: u8) -> Result<BootConfig> {
    let mount = |(index, workspace): (usize, &Workspace)| Mount {
        tag: tag(index),
        path: workspace.path.as_os_str().as_bytes().to_vec(),
        read_only: workspace.read_only && workspace.worktrees.is_empty(),
        file: workspace.path.file_name().filter(|_| workspace.file).map(|name| name.as_bytes().to_vec()),
    };
    let mut mounts: Vec<Mount> = config.workspaces.iter().enumerate().map(mount).collect();
    // A folder in another's is mounted over it.
    mounts.sort_by_key(|mount| mount.path.iter().filter(|&&byte| byte == b'/').count());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(BootConfig {
        hostname: sandbox.name.clone(),
        layers,
        mounts,
        hot_memory: layout::hot_ranges(config.memory_mib),
        docker: !config.no_docker,
        network: config.network == Network::Gateway,
        agent: !config.ssh_agent.is_empty(),
        late_device: layout::slot(layout::LATE_SLOT),
        authority: intercept::certificate(&sandbox.path)?.unwrap_or_default().into_bytes(),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    })
}

/// What the VMM sends to init to end the guest, without knowing what it means.
fn goodbye() -> Result<Vec<u8>> {
    let mut token = [0; 16];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())
        .context("draw a random token")?;
    let hello = Hello { token, role: Role::Control }.encode().context("encode hello")?;
    let shutdown = Request::Shutdown.encode().context("encode shutdown")?;
    Ok([hello, shutdown].concat())
}

fn report(exit: Exit) -> Report {
    match exit {
        Exit::PoweredOff => Report::PoweredOff,
        Exit::Forced => Report::Forced,
        Exit::Reset => Report::Reset,
        Exit::NotReady { console } => Report::NotReady { console },
        Exit::Panicked { console } => Report::Panicked { console },
        Exit::Crashed { reason, console } => Report::Crashed { reason, console },
        Exit::UnsupportedKvm { reason } => Report::UnsupportedKvm { reason },
    }
}

/// An ephemeral sandbox goes with its VM; so does one that `rm` has put in the trash, under whatever name it is there.
fn remove_if_unwanted(sandbox: &Sandbox, ephemeral: bool) -> Result<()> {
    use std::os::fd::AsRawFd;
    let path = fs::read_link(format!("/proc/self/fd/{}", sandbox.dir.as_raw_fd()))
        .context("find the sandbox's folder")?;
    if !ephemeral && !path.file_name().is_some_and(is_trash) {
        return Ok(());
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("remove the sandbox"),
        _ => Ok(()),
    }
}
