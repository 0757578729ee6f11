//! What of a share the guest may see and change.
//! It owns every such decision: what is hidden, what is kept from changes, and that neither is got around by moving
//! things. The rules are in `root`, what a pattern is in `patterns`. Without rules nothing here makes a system call.
//!
//! A rule is about a path, and a path is only as good as the locations in the table. Therefore, where there are
//! rules, each operation finds the way from the root anew and compares each directory on it with what is there: what
//! the host has moved is not reached by where it was.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::inode::{Identity, Node};
use super::passthrough::{DEPTH_MAX, Passthrough, stale_if_gone};
use super::root::stat_fd;
use super::wire::Name;

impl Passthrough {
    /// The entry `name` of the directory `parent` exists for the guest. Each operation that takes a name asks.
    pub(super) fn check_visible(&self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        match &self.root.only {
            Some(only) if parent == Node::ROOT && only.as_c_str() != name.as_c_str() => Err(Errno::NOENT),
            _ if self.hides(parent, name) => Err(Errno::NOENT),
            _ => Ok(()),
        }
    }

    /// Entries of the directory `parent` may be made, removed and renamed, and `name` among them.
    /// A hidden name is refused with the same error whether or not the host has something there. The root of a share
    /// of a single file is as it is.
    pub(super) fn check_changeable(&self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        if parent == Node::ROOT && self.root.only.is_some() || self.hides(parent, name) {
            return Err(Errno::ACCESS);
        }
        // Whoever could put another directory in its place would get around what is fixed in it.
        if self.root.fixed.lead_through(&self.table.way(parent, name)) {
            return Err(Errno::ROFS);
        }
        self.check_writable(parent, name)
    }

    /// The content and the attributes of `node` are the guest's to change; those of the folder around a single file
    /// are not.
    pub(super) fn check_owned(&self, node: Node) -> Result<(), Errno> {
        if node == Node::ROOT && self.root.only.is_some() {
            return Err(Errno::ACCESS);
        }
        if !self.root.read_only {
            return Ok(());
        }
        let (parent, name) = self.table.get(node)?.location().ok_or(Errno::ROFS)?;
        self.check_writable(parent, name)
    }

    /// What is made is a regular file or a folder. Where only parts can be changed the host's programs trust the rest:
    /// they must not be led out of the writable parts by a link, or held up by a FIFO.
    pub(super) fn check_plain(&self, kind: FileType) -> Result<(), Errno> {
        if self.root.read_only && kind != FileType::RegularFile { Err(Errno::PERM) } else { Ok(()) }
    }

    /// The directory `name` in `parent` may get another name. It may not where a pattern leads through it: what is
    /// hidden in it would appear under the new path.
    pub(super) fn check_movable(&self, parent: Node, dir: &OwnedFd, name: Name<'_>) -> Result<(), Errno> {
        if self.root.hidden.is_empty() || !self.root.hidden.lead_through(&self.table.way(parent, name)) {
            return Ok(());
        }
        let entered = self.table.get(parent)?.identity.dev;
        match Identity::of(&self.root.stat_entry(dir.as_fd(), entered, name)?).kind() {
            FileType::Directory => Err(Errno::ACCESS),
            _ => Ok(()),
        }
    }

    /// Where there are rules: what is known as `node`, by a handle too, is still where it may be reached.
    pub(super) fn check_reached(&mut self, node: Node) -> Result<(), Errno> {
        if self.root.has_rules() { self.checked_stat(node).map(drop) } else { Ok(()) }
    }

    /// As `stat`, with all on the way to it looked at.
    pub(super) fn checked_stat(&mut self, node: Node) -> Result<Statx, Errno> {
        if self.table.get(node)?.kind() == FileType::Directory {
            return stat_fd(self.checked_dir(node)?);
        }
        match self.folder_of(node).and_then(|dir| self.stat_in(&dir, node)) {
            Err(Errno::STALE) => self.unnamed(node).map(|(_, stat)| stat),
            found => found,
        }
    }

    /// As `fd`, with all on the way to it looked at.
    pub(super) fn checked_fd(&mut self, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        if self.table.get(node)?.kind() == FileType::Directory {
            return self.checked_dir(node);
        }
        match self.folder_of(node).and_then(|dir| self.open_in(&dir, node)) {
            Err(Errno::STALE) => self.unnamed(node).map(|(fd, _)| fd),
            found => found.map(Arc::new),
        }
    }

    /// The directory a file was last seen in, if it would be seen there.
    fn folder_of(&mut self, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        let (parent, name) = self.table.get(node)?.location().ok_or(Errno::STALE)?;
        self.check_visible(parent, name).map_err(stale_if_gone)?;
        self.checked_dir(parent)
    }

    /// A file that is open or held and has no name left: there is none that could be hidden.
    fn unnamed(&self, node: Node) -> Result<(Arc<OwnedFd>, Statx), Errno> {
        let open = self.handles.any(node).map(|handle| &handle.fd).or_else(|| self.replaced.get(node));
        let fd = Arc::clone(open.ok_or(Errno::STALE)?);
        let stat = stat_fd(&fd)?;
        if stat.stx_nlink == 0 { Ok((fd, stat)) } else { Err(Errno::STALE) }
    }

    /// As `dir`, with all on the way to it looked at.
    pub(super) fn checked_dir(&mut self, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        let mut way = Vec::new();
        let mut at = node;
        while at != Node::ROOT {
            let inode = self.table.get(at)?;
            if inode.kind() != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            let (parent, name) = inode.location().ok_or(Errno::STALE)?;
            if way.len() == DEPTH_MAX || self.hides(parent, name) {
                return Err(Errno::STALE);
            }
            way.push(at);
            at = parent;
        }
        let mut fd = Arc::clone(&self.root.dir);
        while let Some(node) = way.pop() {
            fd = match self.dirs.get(node) {
                Some(known) => self.stat_in(&fd, node).map(|_| known)?,
                None => self.open_exact(&fd, node)?,
            };
        }
        Ok(fd)
    }

    /// Opens and keeps the directory `node`, which is in `dir`, if the names in it are all there are.
    fn open_exact(&mut self, dir: &OwnedFd, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        let fd = self.open_in(dir, node)?;
        if self.root.has_aliases(fd.as_fd())? {
            return Err(Errno::ACCESS);
        }
        let fd = Arc::new(fd);
        self.dirs.insert(node, Arc::clone(&fd));
        Ok(fd)
    }

    /// The entry itself is hidden. That nothing on the way to it is, `checked_dir` sees to.
    fn hides(&self, parent: Node, name: Name<'_>) -> bool {
        !self.root.hidden.is_empty() && self.root.hidden.matches(&self.table.way(parent, name))
    }

    /// The closest rule decides, from the entry up.
    fn check_writable(&self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        if !self.root.read_only {
            return Ok(());
        }
        let mut way = self.table.way(parent, name);
        for _ in 0..DEPTH_MAX {
            if self.root.fixed.matches(&way) {
                break;
            }
            if self.root.writable.matches(&way) {
                return Ok(());
            }
            if way.next().is_none() {
                break;
            }
        }
        Err(Errno::ROFS)
    }
}
