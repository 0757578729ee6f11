//! Operations on open files.
//! Data goes between the file and the guest's memory in one system call, with no copy here.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::inotify::ReadFlags;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::attr::has_set_id;
use super::changes::OF_FILE;
use super::handles::Handle;
use super::inode::Node;
use super::ops_dir::NO_HANDLE;
use super::ops_entry::new_mode;
use super::passthrough::Passthrough;
use super::root::stat_fd;
use super::wire::{
    CopyFileRangeIn, CreateIn, EntryOut, FSYNC_DATA_ONLY, FallocateIn, FsyncIn, KEEP_CACHE, LseekIn, Name,
    OPEN_KILL_SUIDGID, OpenOut, ReadIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn,
};
use crate::virtio::{Reader, Writer};

/// The most bytes of one READ or WRITE.
pub const IO_MAX: u32 = 1 << 20;
/// The most bytes of one COPY_FILE_RANGE, so that other requests get their turn. The guest asks again for the rest.
const COPY_MAX: u64 = 128 << 20;

const O_APPEND: u32 = OFlags::APPEND.bits();

impl Passthrough {
    pub fn open(&mut self, node: Node, flags: u32, open_flags: u32) -> Result<OpenOut, Errno> {
        match self.table.get(node)?.kind() {
            FileType::RegularFile => (),
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let mut flags = file_flags(flags)?;
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.check_owned(node)?;
        }
        let (fd, stat) = self.find(node)?;
        let stat = stat.map_or_else(|| stat_fd(&fd), Ok)?;
        if self.root.read_only && stat.stx_uid == self.root.shown.ids.uid {
            // Reading is no change, and must leave none. The host allows it for its user's own files only.
            flags |= OFlags::NOATIME;
        }
        let mut handle = Handle::new(self.root.reopen(fd.as_fd(), flags)?);
        self.replaced.let_go(node);
        self.expect_file(node, OF_FILE);
        let stat = if flags.contains(OFlags::TRUNC) { stat_fd(&handle.fd)? } else { stat };
        if self.root.keeps_set_id && flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            handle.set_id = has_set_id(u32::from(stat.stx_mode));
            if flags.contains(OFlags::TRUNC) && open_flags & OPEN_KILL_SUIDGID != 0 {
                self.drop_set_id(handle.fd.as_fd(), stat)?;
            }
        }
        let keep = if self.keeps_cache(node, &stat) { KEEP_CACHE } else { 0 };
        self.open_out(node, handle, keep)
    }

    /// Makes and opens a file, or opens the one that is there.
    pub fn create(
        &mut self,
        parent: Node,
        name: Name<'_>,
        request: &CreateIn,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        self.check_changeable(parent, name)?;
        let flags = file_flags(request.flags)?;
        let dir = self.dir(parent)?;
        // Exclusively, since what is there may be a FIFO or a device.
        let exclusive = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&dir, name.as_c_str(), exclusive, new_mode(request.mode));
        match made {
            Ok(fd) => {
                self.expect_entry(parent, name, ReadFlags::CREATE);
                self.created(Handle::new(self.root.admit(fd)?), Some((parent, name)))
            }
            Err(Errno::EXIST) if request.flags & OFlags::EXCL.bits() == 0 => {
                let entry = self.enter_held(parent, &dir, name)?;
                let opened = self.open(Node(entry.node), request.flags, request.open_flags);
                opened.map(|open| (entry, open)).inspect_err(|_| self.forget(entry.node, 1))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes and opens a file without a name.
    pub fn tmpfile(&mut self, parent: Node, request: &CreateIn) -> Result<(EntryOut, OpenOut), Errno> {
        self.check_owned(parent)?;
        let kept = OFlags::from_bits_retain(request.flags) & OFlags::EXCL;
        let flags = (file_flags(request.flags)? & !OFlags::TRUNC) | kept | OFlags::TMPFILE | OFlags::CLOEXEC;
        let dir = self.dir(parent)?;
        let fd = rustix::fs::openat(dir, c".", flags, new_mode(request.mode))?;
        self.created(Handle::new(self.root.admit(fd)?), None)
    }

    fn created(
        &mut self,
        handle: Handle,
        seen: Option<(Node, Name<'_>)>,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let stat = stat_fd(&handle.fd)?;
        let (entry, node) = self.introduce(&stat, seen)?;
        let opened = self.open_out(node, handle, 0);
        opened.map(|open| (entry, open)).inspect_err(|_| self.forget(entry.node, 1))
    }

    /// Without a flag the guest drops what it has cached of a file when it opens it.
    pub(super) fn open_out(&mut self, node: Node, handle: Handle, open_flags: u32) -> Result<OpenOut, Errno> {
        let fh = self.add_handle(node, handle)?;
        Ok(OpenOut { fh, open_flags, backing_id: 0 })
    }

    /// Reads into `writer`, and returns how much.
    pub fn read(&mut self, node: Node, request: &ReadIn, writer: &mut Writer<'_>) -> Result<usize, Errno> {
        self.check_reached(node)?;
        let handle = self.handles.get(node, request.fh)?;
        let size = request.size.min(IO_MAX) as usize;
        writer.read_from_file(handle.fd.as_fd(), request.offset, size).map_err(|error| errno(&error))
    }

    /// Writes what is left in `reader`, and returns how much of it the host took.
    ///
    /// The end of the file is the host's to find, as it may be appended to from both sides. Not so when the guest
    /// writes back a page of a mapping: then the handle is any one, and the page's offset counts.
    pub fn write(&mut self, node: Node, request: &WriteIn, reader: &mut Reader<'_>) -> Result<usize, Errno> {
        self.check_reached(node)?;
        let handle = self.handles.get(node, request.fh)?;
        let size = request.size as usize;
        if reader.remaining() != size || request.size > IO_MAX {
            return Err(Errno::INVAL);
        }
        if handle.set_id && request.write_flags & WRITE_KILL_SUIDGID != 0 {
            self.drop_set_id(handle.fd.as_fd(), stat_fd(&handle.fd)?)?;
        }
        let written = if request.flags & O_APPEND != 0 && request.write_flags & WRITE_CACHE == 0 {
            reader.append_to_file(handle.fd.as_fd(), size)
        } else {
            reader.write_to_file(handle.fd.as_fd(), request.offset, size)
        };
        self.expect_file(node, OF_FILE);
        written.map_err(|error| errno(&error))
    }

    pub fn fsync(&mut self, node: Node, request: &FsyncIn) -> Result<(), Errno> {
        let fd = match request.fh {
            NO_HANDLE => self.open_dir(node)?.fd,
            fh => Arc::clone(&self.handles.get(node, fh)?.fd),
        };
        if request.flags & FSYNC_DATA_ONLY != 0 { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
    }

    /// Writes back everything on the share's file system.
    pub fn syncfs(&self) -> Result<(), Errno> {
        if self.root.read_only {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::syncfs(rustix::fs::openat(&self.root.dir, c".", flags, Mode::empty())?)
    }

    pub fn fallocate(&mut self, node: Node, request: &FallocateIn) -> Result<(), Errno> {
        self.check_reached(node)?;
        let handle = self.handles.get(node, request.fh)?;
        let mode = FallocateFlags::from_bits_retain(request.mode);
        let served = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !served.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(&handle.fd, mode, request.offset, request.length)?;
        self.expect_file(node, OF_FILE);
        Ok(())
    }

    /// Finds data and holes; all other ways to seek are the guest's own.
    pub fn lseek(&mut self, node: Node, request: &LseekIn) -> Result<u64, Errno> {
        self.check_reached(node)?;
        let to = match request.whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(request.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(request.offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&self.handles.get(node, request.fh)?.fd, to)
    }

    pub fn copy_file_range(&mut self, node: Node, request: &CopyFileRangeIn) -> Result<usize, Errno> {
        self.check_reached(node)?;
        self.check_reached(Node(request.node_out))?;
        if request.flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = self.handles.get(node, request.fh_in)?;
        let to = self.handles.get(Node(request.node_out), request.fh_out)?;
        let length = usize::try_from(request.len.min(COPY_MAX)).expect("COPY_MAX is small");
        let (mut offset_in, mut offset_out) = (request.offset_in, request.offset_out);
        let (from, to) = (&from.fd, &to.fd);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut offset_in), to, Some(&mut offset_out), length)?;
        self.expect_file(Node(request.node_out), OF_FILE);
        Ok(copied)
    }
}

/// The host's flags for the guest's. O_APPEND is a matter of each write, see `write`. O_DIRECT is the guest's own
/// cache bypassed; the host's buffers have no alignment to keep.
fn file_flags(flags: u32) -> Result<OFlags, Errno> {
    let flags = OFlags::from_bits_retain(flags);
    if flags.contains(OFlags::RWMODE) {
        return Err(Errno::INVAL);
    }
    Ok(flags & (OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
