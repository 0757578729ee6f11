//! A sandbox's disk: a copy of a fresh, formatted image that stays as sparse as it is, and the space it leaves to others.
//! It does not format anything: mkfs at each start would cost more than the start.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, fstatvfs, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// The fresh images hold less than this in all.
const CHUNK: usize = 64 << 10;
static ZEROES: [u8; CHUNK] = [0; CHUNK];

/// Sandboxes leave this much of the host's file system free, or this part of a small one: a host that is full is of no use
/// to anybody, not even to who wants to remove a sandbox.
const KEEP_FREE_MAX: u64 = 1 << 30;
const KEEP_FREE_PART: u64 = 20;
/// A new one gets at least this much, so that it starts.
const NEW_MIN: u64 = 16 << 20;

/// The space where the disks are, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub free: u64,
    /// No disk grows, and none is made, when less than this is free.
    pub keep_free: u64,
}

impl Room {
    /// Of the file system that `folder` is on.
    pub fn of(folder: impl AsFd) -> io::Result<Self> {
        let stat = fstatvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let keep_free = (bytes(stat.f_blocks) / KEEP_FREE_PART).min(KEEP_FREE_MAX);
        Ok(Self { free: bytes(stat.f_bavail), keep_free })
    }

    /// Whether one more disk may be made.
    pub fn has_one_more(&self) -> bool {
        self.free >= self.keep_free + NEW_MIN
    }
}

/// Makes the empty file `to` a copy of `from`, `size` bytes long (the rest is a hole).
pub fn copy(from: &Path, to: &File, size: u64) -> io::Result<()> {
    let from = File::open(from)?;
    if ioctl_ficlone(to, &from).is_err() {
        copy_extents(&from, to)?;
    }
    Ok(ftruncate(to, size)?)
}

fn copy_extents(from: &File, to: &File) -> io::Result<()> {
    let mut end = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(end)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end)?;
    }
}

fn copy_range(from: &File, to: &File, mut start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while start < end {
        let wanted = buffer.len().min(usize::try_from(end - start).unwrap_or(usize::MAX));
        let count = from.read_at(&mut buffer[..wanted], start)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A file system that knows no holes reports all as data; zeroes need not be written to an empty file.
        if buffer[..count] != ZEROES[..count] {
            to.write_all_at(&buffer[..count], start)?;
        }
        start += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_copy_is_equal_sparse_and_as_long_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("from");
        let from = File::create(&path).unwrap();
        from.set_len(1 << 30).unwrap();
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(&[7; 100_000], 300 << 20).unwrap();
        from.write_all_at(b"end", (1 << 30) - 3).unwrap();
        let to = File::create_new(dir.path().join("to")).unwrap();
        copy(&path, &to, 2 << 30).unwrap();
        let to = File::open(dir.path().join("to")).unwrap();
        let stat = to.metadata().unwrap();
        assert_eq!(stat.len(), 2 << 30);
        assert!(stat.blocks() * 512 < 1 << 20, "{} KiB", stat.blocks() / 2);
        let mut bytes = vec![0; 100_000];
        to.read_exact_at(&mut bytes, 300 << 20).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        to.read_exact_at(&mut bytes[..3], (1 << 30) - 3).unwrap();
        assert_eq!(&bytes[..3], b"end");
    }

    #[test]
    fn an_empty_image_is_only_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("from");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let to = File::create_new(dir.path().join("to")).unwrap();
        copy(&path, &to, 1 << 30).unwrap();
        assert_eq!(to.metadata().unwrap().blocks(), 0);
    }
}
