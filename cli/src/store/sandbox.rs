//! One sandbox's folder: its files, its lock, and the process that holds it.
//! It owns the files' names, and how a signal finds the right process. It knows no other sandbox.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, accessat, flock, openat, renameat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::SandboxConfig;
use crate::text::quoted;

/// The files of a sandbox.
pub mod file {
    pub const CONFIG: &str = "config.json";
    /// What takes the place of the one above.
    pub const NEW_CONFIG: &str = "config.json.new";
    pub const DISK: &str = "disk.img";
    pub const LOCK: &str = "lock";
    pub const SOCKET: &str = "exec.sock";
    /// Where the guest's connections to the network come out.
    pub const GATEWAY_SOCKET: &str = "gateway.sock";
    /// Where the gateway is told of changes to published ports.
    pub const GATEWAY_CONTROL: &str = "gateway.ctl";
    /// Where the VMM takes connections for published ports.
    pub const PORTS_SOCKET: &str = gateway::worker::publish::SOCKET;
    /// Held by the gateway.
    pub const GATEWAY_LOCK: &str = "gateway.lock";
    pub const CONSOLE: &str = "console.log";
    pub const MARKS: &str = "marks";
    pub const EXIT: &str = "exit.json";
    /// What the VMM process itself had to say, before it could do better.
    pub const LOG: &str = "vmm.log";
    /// Of which services this command's environment, or another's, has lent the running sandbox secrets.
    pub const LENT: &str = "lent";
    /// There: the sandbox goes when its VM does.
    pub const EPHEMERAL: &str = "ephemeral";
}

const CONFIG_MAX: u64 = 8 << 20;
/// How a sandbox's folder is opened.
pub const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A file that is ours alone.
pub const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A sandbox's folder, opened: it stays the same one when it is renamed, and nothing is read from it yet.
#[derive(Debug)]
pub struct Sandbox {
    pub name: String,
    pub path: PathBuf,
    pub dir: OwnedFd,
}

/// What a VMM's process has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of all its threads, guest and host.
    pub cpu_ticks: u64,
    /// Bytes that are resident, and its own.
    pub memory: u64,
}

/// The right to start or remove a sandbox. It is the open file that counts: a child that inherits it keeps the lock.
#[derive(Debug)]
pub struct Lock(pub File);

impl Sandbox {
    /// The one in a folder, for a process that was told which.
    pub fn open(path: PathBuf) -> Result<Self> {
        let name = path.file_name().context("it names no folder")?.to_string_lossy().into_owned();
        let dir = rustix::fs::open(&path, OFlags::RDONLY | DIRECTORY, Mode::empty())
            .with_context(|| format!("open {}", quoted(&path)))?;
        Ok(Self { name, path, dir })
    }

    /// The one in the folder that a process was started in, whatever its path leads to by now.
    pub fn open_current(path: &Path) -> Result<Self> {
        let name = path.file_name().context("it names no folder")?.to_string_lossy().into_owned();
        let dir = rustix::fs::open(".", OFlags::RDONLY | DIRECTORY, Mode::empty()).context("open it")?;
        Ok(Self { name, path: format!("/proc/self/fd/{}", dir.as_raw_fd()).into(), dir })
    }

    pub fn config(&self) -> Result<SandboxConfig> {
        let file = self.open_file(file::CONFIG)?;
        let mut json = Vec::new();
        file.take(CONFIG_MAX + 1).read_to_end(&mut json).context("config.json cannot be read")?;
        ensure!(json.len() as u64 <= CONFIG_MAX, "config.json is too long");
        SandboxConfig::parse(&json)
    }

    /// Whether it got as far as to have one; a draft that was cut short did not.
    pub fn has_config(&self) -> bool {
        accessat(&self.dir, file::CONFIG, rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether somebody holds the lock. A test for people: by the time it returns, it may be otherwise.
    pub fn is_running(&self) -> bool {
        self.is_held(file::LOCK)
    }

    /// Whether a process keeps the sandbox's gateway. The same holds for this test.
    pub fn has_gateway(&self) -> bool {
        self.is_held(file::GATEWAY_LOCK)
    }

    fn is_held(&self, name: &str) -> bool {
        let Ok(lock) = self.open_file(name) else { return false };
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }

    pub fn is_ephemeral(&self) -> bool {
        accessat(&self.dir, file::EPHEMERAL, rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The VMM's process, if there is one.
    pub fn process(&self) -> Option<OwnedFd> {
        // Opened in between, the process cannot have changed from one that has the lock to one that has not.
        let process = self.pid().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        process.filter(|_| self.pid().is_some())
    }

    /// Sends a signal to the VMM; false when there is none.
    pub fn signal(&self, signal: Signal) -> bool {
        self.process().is_some_and(|process| pidfd_send_signal(process, signal).is_ok())
    }

    /// What the VMM has taken so far; `None` when there is none.
    pub fn usage(&self) -> Option<Usage> {
        let path = format!("/proc/{}", self.pid()?.as_raw_pid());
        let process = rustix::fs::open(path, OFlags::PATH | DIRECTORY, Mode::empty()).ok()?;
        // As for a signal: opened in between, it is that process's folder for good.
        self.pid()?;
        let read = |name| {
            let file = openat(&process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            std::io::read_to_string(File::from(file)).ok()
        };
        Usage::parse(&read("stat")?, &read("status")?)
    }

    /// Makes the disk this long, if it is not yet.
    pub fn lengthen_disk(&self, bytes: u64) -> Result<()> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let disk = File::from(openat(&self.dir, file::DISK, flags, Mode::empty()).context("open the disk")?);
        if disk.metadata().context("look at the disk")?.len() < bytes {
            disk.set_len(bytes).and_then(|()| disk.sync_all()).context("lengthen the disk")?;
        }
        Ok(())
    }

    /// Puts another config.json into the place of the one that is there, at once or not at all.
    pub fn replace_config(&self, config: &SandboxConfig) -> Result<()> {
        let json = serde_json::to_vec_pretty(config).context("encode config.json")?;
        let mut new = create(&self.dir, file::NEW_CONFIG)?;
        new.write_all(&json).and_then(|()| new.sync_all()).context("write config.json")?;
        renameat(&self.dir, file::NEW_CONFIG, &self.dir, file::CONFIG).context("replace config.json")
    }

    /// Keeps other commands from changing config.json, until dropped.
    pub fn alone(&self) -> Result<OwnedFd> {
        let folder = openat(&self.dir, ".", OFlags::RDONLY | DIRECTORY, Mode::empty());
        let folder = folder.context("open the sandbox's folder")?;
        flock(&folder, FlockOperation::LockExclusive).context("lock config.json")?;
        Ok(folder)
    }

    /// How much the disk takes on the host, and its size.
    pub fn disk_sizes(&self) -> Result<(u64, u64)> {
        const BLOCK: u64 = 512;
        let disk = self.open_file(file::DISK)?.metadata().context("look at the disk")?;
        Ok((disk.blocks() * BLOCK, disk.len()))
    }

    /// The VMM's process, as it wrote itself into the lock. The number may be an older VMM's, and by now anybody's, while
    /// another command holds the lock: a VMM has the lock as its input.
    fn pid(&self) -> Option<Pid> {
        let lock = self.open_file(file::LOCK).ok()?;
        let mut text = String::new();
        (&lock).take(16).read_to_string(&mut text).ok()?;
        let pid = Pid::from_raw(text.trim_end().parse().ok().filter(|&pid| pid > 1)?)?;
        let input = std::fs::metadata(format!("/proc/{}/fd/0", pid.as_raw_pid())).ok()?;
        is_same(&lock.metadata().ok()?, &input).then_some(pid)
    }

    /// Opens one of the sandbox's files to read. A regular file: a FIFO put there would block us.
    pub fn open_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => bail!("{name} is missing"),
            Err(error) => return Err(error).with_context(|| format!("{name} cannot be opened")),
        };
        ensure!(file.metadata().is_ok_and(|it| it.is_file()), "{name} is not a file");
        Ok(file)
    }

    /// The marks of a start, made empty by the command that started the VMM.
    pub fn open_marks(&self) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(&self.dir, file::MARKS, flags, Mode::empty()).context("open marks")?.into())
    }

    /// Creates or empties one of the sandbox's files.
    pub fn create_file(&self, name: &str) -> Result<File> {
        create(&self.dir, name)
    }
}

impl Usage {
    /// Linux Documentation/filesystems/proc.rst, tables 1-2 "status" and 1-4 "stat".
    fn parse(stat: &str, status: &str) -> Option<Self> {
        const USER: usize = 11;
        // The name may hold anything, even brackets; what follows it are numbers.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(USER);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let cpu_ticks = ticks()? + ticks()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(Self { cpu_ticks, memory: kib << 10 })
    }
}

impl Lock {
    /// Says which process has the lock as its input, so that others can send it signals.
    pub fn write_pid(&self, pid: u32) -> std::io::Result<()> {
        self.0.write_all_at(format!("{pid:<15}\n").as_bytes(), 0)
    }
}

/// They are of one file.
pub fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Creates or empties a file of a sandbox.
pub fn create(dir: &OwnedFd, name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, name, flags, PRIVATE).with_context(|| format!("create {name}"))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_behind_any_name() {
        let stat = "7 (a) R (b 1 2) S 1 7 7 0 -1 4194560 9 0 0 0 12 30 0 0 20 0 4 0 88 1 2";
        let status = "Name:\tx\nVmRSS:\t   99 kB\nRssAnon:\t   64 kB\nRssFile:\t  35 kB\n";
        assert_eq!(Usage::parse(stat, status), Some(Usage { cpu_ticks: 42, memory: 64 << 10 }));
        for (stat, status) in [("", ""), (stat, ""), ("7 (a) S 1", status), (stat, "RssAnon: x kB")] {
            assert_eq!(Usage::parse(stat, status), None);
        }
    }
}
