//! Listing directories.
//! Offsets are the host's own, which stay good while entries come and go. What is remembered between requests only saves work.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::handles::Handle;
use super::inode::Node;
use super::passthrough::Passthrough;
use super::wire::{Dirent, EntryOut, Name, OpenOut, ReadIn, Wire};

/// The most bytes of entries in one reply.
pub const READDIR_MAX: usize = 64 << 10;
/// Room in which any one entry of the host fits: `struct linux_dirent64` with the longest name.
const DENT_MAX: usize = 280;
/// No offset: the directory is further than the guest.
const UNKNOWN: u64 = u64::MAX;
/// The offset behind the last entry, for our kernel.
pub const END: u64 = i64::MAX.cast_unsigned();
/// What stands for a handle where there is none.
pub const NO_HANDLE: u64 = 0;
/// Directories that are read at the same time before one is opened again for each piece.
const LISTINGS_MAX: usize = 16;

/// An entry as the host gives it.
struct Entry<'a> {
    name: &'a CStr,
    ino: u64,
    kind: FileType,
    next: u64,
}

/// What is given to the guest, and how far it got.
struct Reply<'a> {
    plus: bool,
    room: usize,
    bytes: &'a mut Vec<u8>,
    /// Where the offset of the last entry is in it.
    last: Option<usize>,
}

/// Directories that are read without having been opened, where the guest stopped; what is read to its end is not kept.
#[derive(Debug, Default)]
pub struct Listings(VecDeque<(Node, Handle)>);

impl Listings {
    fn keep(&mut self, node: Node, handle: Handle) {
        self.0.truncate(LISTINGS_MAX - 1);
        self.0.push_front((node, handle));
    }

    fn take(&mut self, node: Node) -> Option<Handle> {
        let index = self.0.iter().position(|(known, _)| *known == node)?;
        self.0.remove(index).map(|(_, handle)| handle)
    }

    pub fn forget(&mut self, node: Node) {
        self.0.retain(|(known, _)| *known != node);
    }
}

impl Passthrough {
    /// A guest that has tokens needs no handle to keep a list by: it is told not to ask for any, which is one round trip less
    /// for each directory.
    pub fn opendir(&mut self, node: Node) -> Result<OpenOut, Errno> {
        if self.changes.is_some() {
            return Err(Errno::NOSYS);
        }
        let handle = self.open_dir(node)?;
        self.open_out(node, handle, 0)
    }

    pub(super) fn open_dir(&mut self, node: Node) -> Result<Handle, Errno> {
        if self.table.get(node)?.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let dir = self.dir(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.root.admit(rustix::fs::openat(dir, c".", flags, Mode::empty())?).map(Handle::new)
    }

    /// Appends entries to `reply`, as many as fit into what the guest has room for; none says the end.
    pub fn readdir(
        &mut self,
        node: Node,
        request: &ReadIn,
        plus: bool,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        self.check_reached(node)?;
        if request.offset == END {
            return Ok(());
        }
        let mut handle = match request.fh {
            NO_HANDLE => self.listings.take(node).map_or_else(|| self.open_dir(node), Ok)?,
            fh => {
                let open = self.handles.get_mut(node, fh)?;
                Handle { position: std::mem::replace(&mut open.position, UNKNOWN), ..open.clone() }
            }
        };
        if handle.position != request.offset {
            rustix::fs::seek(&handle.fd, SeekFrom::Start(request.offset))?;
        }
        let room = READDIR_MAX.min(request.size as usize);
        let reached = self.fill(node, &handle, &mut Reply { plus, room, bytes: reply, last: None })?;
        handle.position = reached.unwrap_or(UNKNOWN);
        match request.fh {
            NO_HANDLE if reached.is_none() => (),
            NO_HANDLE => self.listings.keep(node, handle),
            fh => self.handles.get_mut(node, fh)?.position = handle.position,
        }
        Ok(())
    }

    /// Returns the offset the directory is at, unless all has been given.
    fn fill(&mut self, node: Node, handle: &Handle, reply: &mut Reply<'_>) -> Result<Option<u64>, Errno> {
        let mut dents = std::mem::take(&mut self.dents);
        dents.clear();
        // What the host gives at once and does not fit is read again, so it is about as much as fits: an entry grows by a
        // third at most on its way, and by some times its size with attributes.
        let wanted = if reply.plus { reply.room / 8 } else { reply.room / 4 * 3 }.max(DENT_MAX);
        dents.reserve_exact(wanted);
        let mut entries = RawDir::new(handle.fd.as_fd(), &mut dents.spare_capacity_mut()[..wanted]);
        let reached = self.fill_from(node, &mut entries, reply);
        self.dents = dents;
        reached
    }

    fn fill_from<Fd: AsFd>(
        &mut self,
        node: Node,
        entries: &mut RawDir<'_, Fd>,
        reply: &mut Reply<'_>,
    ) -> Result<Option<u64>, Errno> {
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let (name, next) = (entry.file_name(), entry.next_entry_cookie());
            let entry = Entry { name, ino: entry.ino(), kind: entry.file_type(), next };
            if !self.append(node, &entry, reply)? {
                // Not even one fits: the guest would take nothing for the end.
                return if reply.bytes.is_empty() { Err(Errno::INVAL) } else { Ok(Some(UNKNOWN)) };
            }
            if self.changes.is_none() && entries.is_buffer_empty() && !reply.bytes.is_empty() {
                return Ok(Some(next));
            }
        }
        // Our kernel knows this offset and does not ask for what is behind it.
        if let Some(last) = reply.last.filter(|_| self.changes.is_some()) {
            reply.bytes[last..last + size_of::<u64>()].copy_from_slice(&END.to_le_bytes());
        }
        Ok(None)
    }

    /// Appends one entry, if it is shown; false when it does not fit.
    fn append(&mut self, parent: Node, entry: &Entry<'_>, reply: &mut Reply<'_>) -> Result<bool, Errno> {
        let name = match Name::new(entry.name) {
            Ok(name) if self.check_visible(parent, name).is_ok() => Some(name),
            Err(_) if matches!(entry.name.to_bytes(), b"." | b"..") => None,
            _ => return Ok(true),
        };
        let length = entry.name.count_bytes();
        let plain = (Dirent::SIZE + length).next_multiple_of(size_of::<u64>());
        let size = if reply.plus { EntryOut::SIZE + plain } else { plain };
        let end = reply.bytes.len() + size;
        if end > reply.room {
            return Ok(false);
        }
        if reply.plus {
            match name.map(|name| self.lookup(parent, name)).transpose() {
                Ok(known) => known.unwrap_or_default().encode(reply.bytes),
                Err(Errno::NOENT) => return Ok(true),
                // It is there even if nothing more can be said of it.
                Err(_) => EntryOut::default().encode(reply.bytes),
            }
        }
        let inode = self.table.get(parent)?;
        let above_root = parent == Node::ROOT && entry.name == c"..";
        let ino = if above_root { inode.identity.ino } else { entry.ino };
        let ino = self.root.shown.ino(inode.identity.dev, ino);
        let kind = if entry.kind == FileType::Unknown { 0 } else { entry.kind.as_raw_mode() >> 12 };
        let namelen = u32::try_from(length).expect("at most NAME_MAX");
        reply.last = Some(reply.bytes.len() + size_of::<u64>());
        Dirent { ino, offset: entry.next, namelen, kind }.encode(reply.bytes);
        reply.bytes.extend_from_slice(entry.name.to_bytes());
        reply.bytes.resize(end, 0);
        Ok(true)
    }
}
