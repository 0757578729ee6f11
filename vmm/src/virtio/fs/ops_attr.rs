//! Operations on attributes: of files, and of the file system.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::attr::{MODE_BITS, SET_ID_BITS, has_set_id};
use super::changes::OF_FILE;
use super::inode::Node;
use super::passthrough::Passthrough;
use super::root::stat_fd;
use super::wire::{AttrOut, NAME_MAX, SetattrIn, StatfsOut, set};

impl Passthrough {
    /// The attributes of a file, by its handle if there is one.
    pub fn getattr(&mut self, node: Node, fh: Option<u64>) -> Result<AttrOut, Errno> {
        self.check_reached(node)?;
        let handle = fh.map(|fh| self.handles.get(node, fh).cloned()).transpose()?;
        let (stat, token) = match (self.vouched(node), handle) {
            (Some(vouched), _) => vouched,
            (None, Some(handle)) => (stat_fd(&handle.fd)?, 0),
            (None, None) => (self.stat(node)?, 0),
        };
        Ok(self.root.shown.attr_out(&stat, token))
    }

    /// Changes what `request.valid` names. The order is that of Linux: a new owner takes setuid away, a new size
    /// changes the times.
    pub fn setattr(&mut self, node: Node, request: &SetattrIn) -> Result<AttrOut, Errno> {
        self.check_owned(node)?;
        self.check_reached(node)?;
        let asked = |bits: u32| request.valid & bits != 0;
        let kind = self.table.get(node)?.kind();
        let fd = match request.fh {
            fh if asked(set::FH) => self.handles.get(node, fh)?.fd.clone(),
            _ => self.fd(node)?,
        };
        if asked(set::UID | set::GID) {
            self.set_owner(fd.as_fd(), request.valid)?;
        }
        if asked(set::MODE) {
            self.set_mode(fd.as_fd(), kind, request.mode)?;
        }
        if asked(set::SIZE) {
            self.set_size(fd.as_fd(), kind, request)?;
        }
        if asked(set::ATIME | set::MTIME | set::ATIME_NOW | set::MTIME_NOW) {
            rustix::fs::utimensat(&fd, c"", &times(request)?, AtFlags::EMPTY_PATH)?;
        }
        if asked(set::KILL_SUIDGID) && self.root.keeps_set_id {
            self.drop_set_id(fd.as_fd(), stat_fd(&fd)?)?;
        }
        self.expect_file(node, OF_FILE);
        // Before the attributes are read: the host's change of the same kind, at the same time, looks like this one.
        self.settle();
        let (stat, token) = match self.vouched(node) {
            Some(vouched) => vouched,
            None => (stat_fd(&fd)?, 0),
        };
        Ok(self.root.shown.attr_out(&stat, token))
    }

    /// To the host every id is the server's: a new owner or group is that one, which the host checks and notes.
    fn set_owner(&self, fd: BorrowedFd<'_>, valid: u32) -> Result<(), Errno> {
        let ids = self.root.shown.ids;
        let uid = (valid & set::UID != 0).then(|| Uid::from_raw(ids.uid));
        let gid = (valid & set::GID != 0).then(|| Gid::from_raw(ids.gid));
        rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Sets a mode. setuid and setgid are never added on the host, but stay where the host's user has set them.
    fn set_mode(&self, fd: BorrowedFd<'_>, kind: FileType, mode: u32) -> Result<(), Errno> {
        if kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let mut allowed = MODE_BITS & !SET_ID_BITS;
        if mode & SET_ID_BITS != 0 {
            allowed |= u32::from(stat_fd(fd)?.stx_mode) & SET_ID_BITS;
        }
        self.root.set_mode(fd, mode & allowed)
    }

    fn set_size(&self, fd: BorrowedFd<'_>, kind: FileType, request: &SetattrIn) -> Result<(), Errno> {
        match kind {
            FileType::RegularFile if request.valid & set::FH != 0 => rustix::fs::ftruncate(fd, request.size),
            FileType::RegularFile => {
                rustix::fs::ftruncate(self.root.reopen(fd, OFlags::WRONLY)?, request.size)
            }
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Takes setuid and setgid away as a write by a user would.
    pub(super) fn drop_set_id(&self, fd: BorrowedFd<'_>, stat: Statx) -> Result<(), Errno> {
        let mode = u32::from(stat.stx_mode) & MODE_BITS;
        if has_set_id(mode) { self.root.set_mode(fd, mode & !SET_ID_BITS) } else { Ok(()) }
    }

    pub fn statfs(&self) -> Result<StatfsOut, Errno> {
        let stat = rustix::fs::fstatvfs(&self.root.dir)?;
        let block = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        Ok(StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: block(stat.f_bsize),
            namelen: u32::try_from(NAME_MAX).expect("255"),
            frsize: block(stat.f_frsize),
            ..StatfsOut::default()
        })
    }
}

fn times(request: &SetattrIn) -> Result<Timestamps, Errno> {
    let time = |given: u32, now: u32, seconds: u64, nanos: u32| {
        let nanos = match request.valid {
            valid if valid & now != 0 => UTIME_NOW,
            valid if valid & given == 0 => UTIME_OMIT,
            _ if nanos < 1_000_000_000 => i64::from(nanos),
            _ => return Err(Errno::INVAL),
        };
        Ok(Timespec { tv_sec: seconds.cast_signed(), tv_nsec: nanos })
    };
    Ok(Timestamps {
        last_access: time(set::ATIME, set::ATIME_NOW, request.atime, request.atime_ns)?,
        last_modification: time(set::MTIME, set::MTIME_NOW, request.mtime, request.mtime_ns)?,
    })
}
