//! The files that a sandbox is made of (kernel, initramfs, fresh disks) and the check that they are whole.
//! A missing, cut or foreign one is named here, before anything is created, rather than by a guest that does not boot.
//! It reads a few bytes of each. What the root is made of is in `templates`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::places;
use crate::text::plain;

/// The fresh disks, smallest first: size in MiB and file.
const DISKS: [(u64, &str); 2] = [(1 << 10, "disk-1g.ext4"), (20 << 10, "disk-20g.ext4")];
/// The smallest disk that a sandbox can have, in MiB.
pub const DISK_MIB_MIN: u64 = DISKS[0].0;

/// The fresh disk for a sandbox that is to be started, once all other parts are found to be whole.
pub fn ready(disk_mib: u64) -> Result<PathBuf> {
    let find = || -> Result<PathBuf> {
        kernel()?;
        initramfs()?;
        disk(disk_mib)
    };
    find().context("Coracle is not installed completely; install it again (coracle doctor tells more)")
}

pub fn kernel() -> Result<PathBuf> {
    part("kernel", places::share()?.join("vmlinux"), check_kernel)
}

pub fn initramfs() -> Result<PathBuf> {
    part("initramfs", places::share()?.join("initramfs.cpio"), check_cpio)
}

/// The largest fresh disk that is no larger than `mib`.
pub fn disk(mib: u64) -> Result<PathBuf> {
    let fits = DISKS.iter().rev().find(|(size, _)| *size <= mib);
    let (_, file) =
        fits.with_context(|| format!("a disk of {mib} MiB is smaller than {DISK_MIB_MIN} MiB"))?;
    part("disk image", places::share()?.join(file), check_ext4)
}

/// All fresh disks, for `doctor`.
pub fn disks() -> Result<Vec<PathBuf>> {
    DISKS.iter().map(|(size, _)| disk(*size)).collect()
}

/// A path, once `check` has found the file at it to be whole.
pub fn part(what: &str, path: PathBuf, check: impl FnOnce(&File, u64) -> Result<()>) -> Result<PathBuf> {
    let checked = open(&path).and_then(|(file, length)| check(&file, length));
    checked.with_context(|| broken(what, &path))?;
    Ok(path)
}

pub fn broken(what: &str, path: &Path) -> String {
    format!("{what} {}", plain(path))
}

/// A regular file and its length.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("it is missing"),
        _ => anyhow::anyhow!("it cannot be opened: {error}"),
    })?;
    let stat = file.metadata().context("cannot be looked at")?;
    ensure!(stat.is_file(), "it is not a file");
    Ok((file, stat.len()))
}

/// ELF-64 Object File Format 1.5, "File header" and "Program header".
fn check_kernel(file: &File, length: u64) -> Result<()> {
    const MACHINE_X86_64: u16 = 62;
    const HEADERS_MAX: usize = 64;
    const HEADER_SIZE: usize = 56;
    let mut header = [0; 64];
    read_at(file, &mut header, 0)?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "it is not an ELF file of 64 bits");
    ensure!(le16(&header, 18) == MACHINE_X86_64, "it is for another processor");
    let count = usize::from(le16(&header, 56));
    ensure!((1..=HEADERS_MAX).contains(&count), "its program headers make no sense");
    ensure!(usize::from(le16(&header, 54)) == HEADER_SIZE, "its program headers make no sense");
    let mut table = vec![0; count * HEADER_SIZE];
    read_at(file, &mut table, le64(&header, 32))?;
    for entry in table.chunks_exact(HEADER_SIZE) {
        let end = le64(entry, 8).checked_add(le64(entry, 32));
        ensure!(end.is_some_and(|end| end <= length), "it is cut off: {length} bytes are not all of it");
    }
    Ok(())
}

/// Linux Documentation/driver-api/early-userspace/buffer-format.rst: the archive ends with an entry "TRAILER!!!".
fn check_cpio(file: &File, length: u64) -> Result<()> {
    check_magic(file, 0, b"070701", "an uncompressed cpio archive")?;
    let mut tail = [0; 512];
    let take = tail.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    read_at(file, &mut tail[..take], length - take as u64)?;
    ensure!(tail.windows(10).any(|window| window == b"TRAILER!!!"), "it is cut off: its end is missing");
    Ok(())
}

/// Linux Documentation/filesystems/ext4/super.rst: s_blocks_count_lo, s_log_block_size and s_magic.
fn check_ext4(file: &File, length: u64) -> Result<()> {
    let mut superblock = [0; 1024];
    read_at(file, &mut superblock, 1024)?;
    ensure!(le16(&superblock, 56) == 0xef53, "it is not an ext4 image");
    let blocks = u64::from(u32::from_le_bytes([superblock[4], superblock[5], superblock[6], superblock[7]]));
    let size = 1024u64.checked_shl(le16(&superblock, 24).into()).and_then(|block| block.checked_mul(blocks));
    ensure!(size.is_some_and(|size| size <= length), "it is cut off: {length} bytes are not all of it");
    Ok(())
}

pub fn check_magic(file: &File, offset: u64, magic: &[u8], what: &str) -> Result<()> {
    let mut start = vec![0; magic.len()];
    read_at(file, &mut start, offset)?;
    ensure!(start == magic, "it is not {what}");
    Ok(())
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => bail!("it is cut off"),
        other => other.context("it cannot be read"),
    }
}

fn le16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn le64(bytes: &[u8], offset: usize) -> u64 {
    let bytes = bytes[offset..offset + 8].try_into().expect("the range is 8 long");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
