//! Operations on the entries of directories: looking up, making, linking, renaming and removing.
//! It does not open files for reading or writing.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::inotify::ReadFlags;
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::attr::{MODE_BITS, SET_ID_BITS, no_entry};
use super::inode::{Identity, Node};
use super::passthrough::Passthrough;
use super::wire::{EntryOut, MknodIn, Name};

/// The longest target of a symbolic link: Linux `PATH_MAX` without the NUL.
const TARGET_MAX: usize = 4095;

/// The mode of a new file: setuid and setgid are not made on the host.
pub(super) fn new_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & MODE_BITS & !SET_ID_BITS)
}

impl Passthrough {
    pub fn lookup(&mut self, parent: Node, name: Name<'_>) -> Result<EntryOut, Errno> {
        self.check_visible(parent, name)?;
        let dir = self.dir(parent)?;
        match self.enter(parent, &dir, name) {
            // That it is not there holds as long as what is.
            Err(Errno::NOENT) if self.watches(parent) => Ok(no_entry(0, self.entry_token(parent, name))),
            found => found,
        }
    }

    pub fn mkdir(&mut self, parent: Node, name: Name<'_>, mode: u32) -> Result<EntryOut, Errno> {
        self.check_changeable(parent, name)?;
        let dir = self.dir(parent)?;
        rustix::fs::mkdirat(&dir, name.as_c_str(), new_mode(mode))?;
        self.expect_entry(parent, name, ReadFlags::CREATE);
        self.enter(parent, &dir, name)
    }

    /// Makes a regular file, a FIFO, a socket, or the device 0:0 by which overlayfs marks what is removed. No other
    /// device is made: it would be one of the host's.
    pub fn mknod(&mut self, parent: Node, name: Name<'_>, request: &MknodIn) -> Result<EntryOut, Errno> {
        self.check_changeable(parent, name)?;
        let kind = match FileType::from_raw_mode(request.mode) {
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
            kind @ FileType::CharacterDevice if request.rdev == 0 => kind,
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        };
        self.check_plain(kind)?;
        let dir = self.dir(parent)?;
        rustix::fs::mknodat(&dir, name.as_c_str(), kind, new_mode(request.mode), 0)?;
        self.expect_entry(parent, name, ReadFlags::CREATE);
        self.enter(parent, &dir, name)
    }

    pub fn symlink(&mut self, parent: Node, name: Name<'_>, target: &CStr) -> Result<EntryOut, Errno> {
        self.check_changeable(parent, name)?;
        self.check_plain(FileType::Symlink)?;
        match target.count_bytes() {
            0 => return Err(Errno::NOENT),
            1..=TARGET_MAX => (),
            _ => return Err(Errno::NAMETOOLONG),
        }
        let dir = self.dir(parent)?;
        rustix::fs::symlinkat(target, &dir, name.as_c_str())?;
        self.expect_entry(parent, name, ReadFlags::CREATE);
        self.enter(parent, &dir, name)
    }

    /// Appends the target of a symbolic link to `reply`. What is read is what the name holds now: it is text, which
    /// the guest follows on its own side.
    pub fn readlink(&mut self, node: Node, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let (parent, name) = self.table.get(node)?.location().ok_or(Errno::INVAL)?;
        self.check_visible(parent, name)?;
        let dir = self.dir(parent)?;
        let (_, name) = self.table.get(node)?.location().ok_or(Errno::STALE)?;
        let start = reply.len();
        reply.resize(start + TARGET_MAX, 0);
        let length = rustix::fs::readlinkat_raw(&dir, name.as_c_str(), &mut reply[start..])?;
        reply.truncate(start + length);
        Ok(())
    }

    /// Gives a file another name.
    pub fn link(&mut self, old: Node, parent: Node, name: Name<'_>) -> Result<EntryOut, Errno> {
        self.check_changeable(parent, name)?;
        self.check_owned(old)?;
        let file = self.fd(old)?;
        let dir = self.dir(parent)?;
        self.root.link(file.as_fd(), dir.as_fd(), name)?;
        self.expect_entry(parent, name, ReadFlags::CREATE);
        self.enter(parent, &dir, name)
    }

    pub fn unlink(&mut self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    pub fn rmdir(&mut self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&mut self, parent: Node, name: Name<'_>, flags: AtFlags) -> Result<(), Errno> {
        self.check_changeable(parent, name)?;
        let dir = self.dir(parent)?;
        rustix::fs::unlinkat(dir, name.as_c_str(), flags)?;
        self.expect_entry(parent, name, ReadFlags::DELETE);
        Ok(())
    }

    pub fn rename(
        &mut self,
        (old_parent, old_name): (Node, Name<'_>),
        (new_parent, new_name): (Node, Name<'_>),
        flags: u32,
    ) -> Result<(), Errno> {
        self.check_changeable(old_parent, old_name)?;
        self.check_changeable(new_parent, new_name)?;
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old_dir, new_dir) = (self.dir(old_parent)?, self.dir(new_parent)?);
        self.check_movable(old_parent, &old_dir, old_name)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            self.check_movable(new_parent, &new_dir, new_name)?;
        }
        rustix::fs::renameat_with(&old_dir, old_name.as_c_str(), &new_dir, new_name.as_c_str(), flags)?;
        self.note_moved(new_parent, &new_dir, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.note_moved(old_parent, &old_dir, old_name);
        }
        for (dir, name) in [(old_parent, old_name), (new_parent, new_name)] {
            self.expect_entry(dir, name, ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO);
            self.renamed(dir, name);
        }
        Ok(())
    }

    /// What was renamed may be in use without being looked up again, such as a working directory.
    fn note_moved(&mut self, parent: Node, dir: impl AsFd, name: Name<'_>) {
        let Ok(entered) = self.table.get(parent).map(|inode| inode.identity.dev) else { return };
        // A failure costs no more than an answer of ESTALE, upon which the guest looks the name up.
        if let Ok(stat) = self.root.stat_entry(dir.as_fd(), entered, name)
            && let Some(node) = self.table.moved(&Identity::of(&stat), parent, name)
        {
            self.expect_file(node, ReadFlags::MOVE_SELF);
        }
    }
}
