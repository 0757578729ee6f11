//! Operations on open directories.
//! Offsets are the host's own, which stay good while entries come and go; nothing is remembered between requests.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::handles::Handle;
use super::inode::Node;
use super::passthrough::Passthrough;
use super::wire::{CACHE_DIR, Dirent, EntryOut, KEEP_CACHE, Name, OpenOut, ReadIn, Wire};

/// The most bytes of entries in one reply.
pub const READDIR_MAX: usize = 64 << 10;
/// Room in which any one entry of the host fits: `struct linux_dirent64` with the longest name.
const DENT_MAX: usize = 280;
/// No offset: the directory is at another than the last one given out.
const UNKNOWN: u64 = u64::MAX;

/// An entry as the host gives it.
struct Entry<'a> {
    name: &'a CStr,
    ino: u64,
    kind: FileType,
    next: u64,
}

impl Passthrough {
    pub fn opendir(&mut self, node: Node) -> Result<OpenOut, Errno> {
        if self.table.get(node)?.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let dir = self.dir(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.root.admit(rustix::fs::openat(dir, c".", flags, Mode::empty())?)?;
        let keep = if self.watches(node) { KEEP_CACHE | CACHE_DIR } else { 0 };
        self.open_out(node, Handle::new(fd), keep)
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
        let handle = self.handles.get_mut(node, request.fh)?;
        let dir = handle.fd.clone();
        if std::mem::replace(&mut handle.position, UNKNOWN) != request.offset {
            rustix::fs::seek(&dir, SeekFrom::Start(request.offset))?;
        }
        let room = READDIR_MAX.min(request.size as usize);
        let mut dents = std::mem::take(&mut self.dents);
        dents.clear();
        // An entry grows by a third at most on its way, so that all of this fits and the next call need not seek.
        let wanted = (room / 4 * 3).max(DENT_MAX);
        dents.reserve_exact(wanted);
        let mut entries = RawDir::new(dir.as_fd(), &mut dents.spare_capacity_mut()[..wanted]);
        let position = self.fill(node, &mut entries, plus, room, reply);
        self.dents = dents;
        self.handles.get_mut(node, request.fh)?.position = position?;
        Ok(())
    }

    /// Returns the offset the directory is at if that is where the guest goes on.
    fn fill<Fd: AsFd>(
        &mut self,
        node: Node,
        entries: &mut RawDir<'_, Fd>,
        plus: bool,
        room: usize,
        reply: &mut Vec<u8>,
    ) -> Result<u64, Errno> {
        let start = reply.len();
        let mut position = UNKNOWN;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let (name, next) = (entry.file_name(), entry.next_entry_cookie());
            let entry = Entry { name, ino: entry.ino(), kind: entry.file_type(), next };
            if !self.append(node, &entry, plus, room - (reply.len() - start), reply)? {
                // Not even one fits: the guest would take nothing for the end.
                return if reply.len() == start { Err(Errno::INVAL) } else { Ok(UNKNOWN) };
            }
            position = next;
            if entries.is_buffer_empty() && reply.len() > start {
                break;
            }
        }
        Ok(position)
    }

    /// Appends one entry, if it is shown; false when it does not fit.
    fn append(
        &mut self,
        parent: Node,
        entry: &Entry<'_>,
        plus: bool,
        room: usize,
        reply: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        let name = match Name::new(entry.name) {
            Ok(name) if self.check_visible(parent, name).is_ok() => Some(name),
            Err(_) if matches!(entry.name.to_bytes(), b"." | b"..") => None,
            _ => return Ok(true),
        };
        let length = entry.name.count_bytes();
        let plain = (Dirent::SIZE + length).next_multiple_of(size_of::<u64>());
        let size = if plus { EntryOut::SIZE + plain } else { plain };
        if size > room {
            return Ok(false);
        }
        let end = reply.len() + size;
        if plus {
            match name.map(|name| self.lookup(parent, name)).transpose() {
                Ok(known) => known.unwrap_or_default().encode(reply),
                Err(Errno::NOENT) => return Ok(true),
                // It is there even if nothing more can be said of it.
                Err(_) => EntryOut::default().encode(reply),
            }
        }
        let inode = self.table.get(parent)?;
        let above_root = parent == Node::ROOT && entry.name == c"..";
        let ino = if above_root { inode.identity.ino } else { entry.ino };
        let ino = self.root.shown.ino(inode.identity.dev, ino);
        let kind = if entry.kind == FileType::Unknown { 0 } else { entry.kind.as_raw_mode() >> 12 };
        let namelen = u32::try_from(length).expect("at most NAME_MAX");
        Dirent { ino, offset: entry.next, namelen, kind }.encode(reply);
        reply.extend_from_slice(entry.name.to_bytes());
        reply.resize(end, 0);
        Ok(true)
    }
}
