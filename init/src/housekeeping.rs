//! What can wait until the first command runs: the rest of the memory, the rest of the disk, a device.
//! It owns the process that does it, at low priority and off the way of every start. It reports to the log only.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::BootConfig;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::plan::DISK_DEVICE;
use crate::sys::{self, Fork};

/// A command that is over sooner never pays for any of this.
const DELAY: Duration = Duration::from_millis(10);
/// The lowest priority: about a seventieth of a processor that others want, too.
const NICENESS: i32 = 19;
/// At most this much memory is added, whatever the boot config says: 1 TiB in blocks of 128 MiB.
const BLOCKS_MAX: u64 = 8 << 10;
/// The kernel's measure: an eighth of memory for kernel stacks of 16 KiB (kernel/fork.c, `set_max_threads`).
const MEMORY_PER_THREAD: u64 = 8 * (16 << 10);

/// Where an ext4 file system describes itself, and in how many bytes.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;

/// The work, and how far it is.
pub struct Housekeeping {
    work: Option<Work>,
    state: State,
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
        Self { work: Some(Work { config, disk, container }), state: State::Idle }
    }

    /// For tests of the server: nothing to do.
    pub fn none() -> Self {
        Self { work: None, state: State::Done }
    }

    /// A command has been started.
    pub fn schedule(&mut self) {
        if matches!(self.state, State::Idle) {
            self.state = State::Scheduled(Instant::now() + DELAY);
        }
    }

    /// When `expire` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        if let State::Scheduled(at) = self.state { Some(at) } else { None }
    }

    /// What to wait for before `reap`.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        if let State::Running(pidfd) = &self.state { Some(pidfd.as_fd()) } else { None }
    }

    /// Starts the work when its time has come.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        self.state = State::Done;
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
        complain("grow the disk", grow_disk(&self.disk));
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

fn grow_disk(disk: &OwnedFd) -> Result<()> {
    let device = open(DISK_DEVICE, OFlags::RDONLY)?;
    let mut superblock = [0; SUPERBLOCK_LEN];
    let read = rustix::io::pread(&device, &mut superblock, SUPERBLOCK_AT).context("read the superblock")?;
    ensure!(read == SUPERBLOCK_LEN, "the superblock is cut off");
    let size = rustix::fs::seek(&device, SeekFrom::End(0)).context("size of the disk")?;
    match blocks_to_grow_to(&superblock, size) {
        Some(blocks) => rustix::fs::ext4_ioc_resize_fs(disk, blocks).context("resize"),
        None => Ok(()),
    }
}

/// How many blocks the file system has on a device of `size` bytes, if that is more than now. To ask the kernel for no
/// more than now would cost writes.
/// Linux Documentation/filesystems/ext4/super.rst, "Super Block".
fn blocks_to_grow_to(superblock: &[u8; SUPERBLOCK_LEN], size: u64) -> Option<u64> {
    let field = |at: usize| superblock[at..].first_chunk().map_or(0, |it| u32::from_le_bytes(*it));
    let (blocks_low, log_block_size, blocks_high) = (field(0x4), field(0x18), field(0x150));
    let block_size = 1024_u64.checked_shl(log_block_size).filter(|&it| it > 0)?;
    let blocks = size / block_size;
    (blocks > (u64::from(blocks_high) << 32 | u64::from(blocks_low))).then_some(blocks)
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
    let device = open("/sys/module/virtio_mmio/parameters/device", OFlags::WRONLY)?;
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

fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).context(path.to_owned())
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

    #[test]
    fn a_file_system_grows_to_its_device_only_when_that_is_larger() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        superblock[0x4..0x8].copy_from_slice(&262_144_u32.to_le_bytes());
        superblock[0x18] = 2;
        assert_eq!(blocks_to_grow_to(&superblock, 1 << 30), None);
        assert_eq!(blocks_to_grow_to(&superblock, (1 << 30) + 4095), None);
        assert_eq!(blocks_to_grow_to(&superblock, 20 << 30), Some(20 << 18));
        superblock[0x150] = 1;
        assert_eq!(blocks_to_grow_to(&superblock, 20 << 30), None);
        superblock[0x18..0x1c].fill(0xff);
        assert_eq!(blocks_to_grow_to(&superblock, u64::MAX), None);
    }
}
