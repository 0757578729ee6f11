//! The disk's file system, made as large as its device: at each start, and when the host has made the disk larger since.
//! It owns how that is done while the file system is in use. It never makes one smaller.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::{Message, Reply};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::plan::DISK_DEVICE;
use crate::sys;

/// Where our kernel is told of devices (kernel-config/patches/virtio-mmio-late.patch).
pub const DEVICES: &str = "/sys/module/virtio_mmio/parameters/device";
/// How long the kernel may take to see a new size, or to end the growing that it is at.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(5);
/// As for a command that cannot be run.
const FAILED: u8 = 125;

/// Where an ext4 file system describes itself, and in how many bytes.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;

/// Lets the file system follow its device, to `bytes`, and answers `asker`. That may take seconds.
pub fn serve(disk: &OwnedFd, bytes: u64, asker: &OwnedFd) {
    sys::detached(|| answer(asker, follow(disk, bytes)));
}

fn answer(asker: &OwnedFd, result: Result<()>) {
    let reply = match result {
        Ok(()) => Reply::Exited { code: 0 },
        Err(error) => Reply::Failed { code: FAILED, message: format!("{error:#}") },
    };
    if let Ok(reply) = reply.encode() {
        // A connection that has taken nothing yet takes a few bytes; if not, its peer is gone.
        let _ = rustix::io::write(asker, &reply);
    }
}

fn follow(disk: &OwnedFd, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let devices = open(DEVICES, OFlags::WRONLY)?;
    rustix::io::write(&devices, b"rescan").context("ask for the size of the disk again")?;
    let device = open(DISK_DEVICE, OFlags::RDONLY)?;
    while rustix::fs::seek(&device, SeekFrom::End(0)).context("size of the disk")? < bytes {
        ensure!(Instant::now() < deadline, "the kernel does not see the new size of the disk");
        thread::sleep(INTERVAL);
    }
    loop {
        match grow(disk) {
            // The growing of the start is still under way.
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(INTERVAL),
            result => return result,
        }
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Errno>() == Some(&Errno::BUSY)
}

/// Makes the file system as large as its device.
pub fn grow(disk: &OwnedFd) -> Result<()> {
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

/// A file of the kernel's.
pub fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).context(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn only_a_busy_file_system_is_waited_for() {
        let error = |errno: Errno| Err::<(), _>(errno).context("resize").unwrap_err();
        assert!(is_busy(&error(Errno::BUSY)) && !is_busy(&error(Errno::NOSPC)));
    }
}
