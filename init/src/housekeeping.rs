//! What can wait until the first command runs: the rest of the memory, the rest of the disk, a device, a watch over idleness.
//! It owns the process that does it, at low priority and off the way of every start. It reports to the log only.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::BootConfig;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::grow::{self, DEVICES, open};
use crate::idle::Idle;
use crate::sys::{self, Fork};

/// A command that is over sooner never pays for any of this.
const DELAY: Duration = Duration::from_millis(10);
/// The lowest priority: about a seventieth of a processor that others want, too.
const NICENESS: i32 = 19;
/// At most this much memory is added, whatever the boot config says: 1 TiB in blocks of 128 MiB.
const BLOCKS_MAX: u64 = 8 << 10;
/// The kernel's measure: an eighth of memory for kernel stacks of 16 KiB (kernel/fork.c, `set_max_threads`).
const MEMORY_PER_THREAD: u64 = 8 * (16 << 10);

/// The work, and how far it is.
pub struct Housekeeping {
    work: Option<Work>,
    state: State,
    disk: Option<Rc<OwnedFd>>,
    idle: Option<Idle>,
}

struct Work {
    config: BootConfig,
    disk: Rc<OwnedFd>,
    /// The container's PID 1, with which the container would end.
    container: Pid,
}

enum State {
    Idle,
    Scheduled(Instant),
    /// Readable when the process has ended.
    Running(OwnedFd),
    Done,
}

impl Housekeeping {
    /// For a booted sandbox.
    pub fn new(config: BootConfig, disk: Rc<OwnedFd>, container: Pid) -> Self {
        let work = Work { config, disk: Rc::clone(&disk), container };
        Self { work: Some(work), state: State::Idle, disk: Some(disk), idle: None }
    }

    /// For tests of the server: nothing to do.
    pub fn none() -> Self {
        Self { work: None, state: State::Done, disk: None, idle: None }
    }

    /// A command has been started.
    pub fn schedule(&mut self) {
        if matches!(self.state, State::Idle) {
            self.state = State::Scheduled(Instant::now() + DELAY);
        }
    }

    /// The host has made the disk larger.
    pub fn grow_disk(&self, bytes: u64, asker: &OwnedFd) {
        if let Some(disk) = &self.disk {
            grow::serve(disk, bytes, asker);
        }
    }

    /// When `expire` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let work = if let State::Scheduled(at) = self.state { Some(at) } else { None };
        work.or(self.idle.as_ref().map(Idle::deadline))
    }

    /// What to wait for before `reap`.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        if let State::Running(pidfd) = &self.state { Some(pidfd.as_fd()) } else { None }
    }

    /// Does what has come due.
    pub fn expire(&mut self, now: Instant) {
        if let Some(idle) = &mut self.idle {
            idle.expire(now);
        }
        if let State::Scheduled(at) = self.state
            && at <= now
        {
            self.start(now);
        }
    }

    fn start(&mut self, now: Instant) {
        self.state = State::Done;
        self.idle = Some(Idle::new(now));
        let Some(work) = self.work.take() else { return };
        complain("spare the exec server", spare(work.container));
        match sys::fork() {
            Ok(Fork::Child) => work.run(),
            Ok(Fork::Parent(pid)) => {
                if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                    self.state = State::Running(pidfd);
                }
            }
            Err(errno) => crate::log(format_args!("fork: {errno}")),
        }
    }

    /// The process has ended.
    pub fn reap(&mut self) {
        if let State::Running(pidfd) = &self.state {
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            self.state = State::Done;
        }
    }
}

impl Work {
    fn run(self) -> ! {
        let _ = rustix::process::nice(NICENESS);
        complain("grow the disk", grow::grow(&self.disk));
        complain("add memory", add_memory(&self.config.hot_memory));
        complain("add a device", add_device(self.config.late_device));
        sys::exit(0)
    }
}

fn complain(what: &str, result: Result<()>) {
    if let Err(error) = result {
        crate::log(format_args!("{what}: {error:#}"));
    }
}

/// Linux Documentation/admin-guide/mm/memory-hotplug.rst, "Memory Hotplug Phases": the kernel takes one block's
/// physical address at a time, and uses the block at once (it is configured to).
fn add_memory(ranges: &[(u64, u64)]) -> Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    let block_size = std::fs::read_to_string("/sys/devices/system/memory/block_size_bytes")?;
    let block_size = u64::from_str_radix(block_size.trim(), 16).context("size of a memory block")?;
    ensure!(block_size > 0, "memory blocks have no size");
    let probe = open("/sys/devices/system/memory/probe", OFlags::WRONLY)?;
    for block in blocks(ranges, block_size) {
        let address = format!("{block:#x}");
        rustix::io::write(&probe, address.as_bytes()).with_context(|| format!("memory at {address}"))?;
    }
    let threads = rustix::system::sysinfo().totalram / MEMORY_PER_THREAD;
    std::fs::write("/proc/sys/kernel/threads-max", threads.to_string()).context("raise threads-max")
}

/// The balloon: finding it takes a virtual millisecond that no start need wait for. What it does, giving free memory back,
/// it does every 2 s. Our kernel's parameter can be written to (kernel-config/patches/virtio-mmio-late.patch).
fn add_device((address, interrupt): (u64, u8)) -> Result<()> {
    let device = open(DEVICES, OFlags::WRONLY)?;
    rustix::io::write(&device, format!("4K@{address:#x}:{interrupt}").as_bytes())?;
    Ok(())
}

/// The start of every whole block.
fn blocks(ranges: &[(u64, u64)], size: u64) -> impl Iterator<Item = u64> {
    let of_range = move |&(start, length): &(u64, u64)| {
        (0..(length / size).min(BLOCKS_MAX)).map_while(move |index| start.checked_add(index * size))
    };
    ranges.iter().flat_map(of_range)
}

/// Keeps the out-of-memory killer from this process and `container`. Commands started later ask to be treated as usual
/// again. The container's /proc does not show this process, so one that nobody else sees is mounted for a moment.
fn spare(container: Pid) -> Result<()> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let proc = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    for process in ["self".to_owned(), container.as_raw_pid().to_string()] {
        let path = format!("{process}/oom_score_adj");
        let score = rustix::fs::openat(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&score, b"-1000")?;
    }
    Ok(())
}

/// Undoes `spare` in a child, by the container's /proc.
pub fn as_usual() {
    if let Ok(score) = open("/proc/self/oom_score_adj", OFlags::WRONLY) {
        let _ = rustix::io::write(&score, b"0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_into_whole_blocks() {
        let size = 128 << 20;
        let cut = |ranges: &[(u64, u64)]| blocks(ranges, size).collect::<Vec<_>>();
        assert_eq!(cut(&[(512 << 20, 2 * size), (4 << 30, size + 1)]), [512 << 20, 640 << 20, 4 << 30]);
        assert_eq!(cut(&[(0, size - 1)]), []);
        assert_eq!(cut(&[(u64::MAX - size, u64::MAX)]).len(), 2);
        assert_eq!(blocks(&[(0, u64::MAX)], 1).count() as u64, BLOCKS_MAX);
    }
}
