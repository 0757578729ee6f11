//! The files of a share as the guest knows them: node ids, handles and the way from them to the host's files.
//! It owns the way there. What of them is hidden or kept from changes is in `access`, the operations in `ops_*`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::ReadFlags;
use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::attr::kind;
use super::changes::Changes;
use super::dirs::Dirs;
use super::handles::{Handle, Handles};
use super::inode::{Identity, Node, Table};
use super::ops_dir::Listings;
use super::replaced::Replaced;
use super::root::{Root, stat_fd};
use super::wire::{EntryOut, Name};

/// How many directories up a path may lead before it is given up, which also ends a walk in a circle that outdated
/// locations can form. It is as many as a path of `PATH_MAX` bytes has components.
pub(super) const DEPTH_MAX: usize = 2048;

#[derive(Debug)]
pub struct Passthrough {
    pub(super) root: Arc<Root>,
    pub(super) table: Table,
    pub(super) handles: Handles,
    /// `None` when the guest's kernel cannot be told what the host changes.
    pub(super) changes: Option<Changes>,
    pub(super) dirs: Dirs,
    pub(super) listings: Listings,
    pub(super) replaced: Replaced,
    /// Room for entries of a directory as the host's kernel gives them.
    pub(super) dents: Vec<u8>,
}

impl Passthrough {
    /// As it is before the guest knows anything.
    pub fn new(root: Arc<Root>) -> Self {
        let table = Table::new(root.identity);
        let (handles, dirs, listings, replaced) = Default::default();
        Self { root, table, handles, changes: None, dirs, listings, replaced, dents: Vec::new() }
    }

    /// The guest knows nothing any more and has nothing open.
    pub fn clear(&mut self) {
        let mut changes = self.changes.take();
        changes.iter_mut().for_each(Changes::clear);
        *self = Self { changes, ..Self::new(Arc::clone(&self.root)) };
    }

    /// A descriptor of the directory `node`, to use names from.
    pub(super) fn dir(&mut self, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        if self.root.has_rules() {
            return self.checked_dir(node);
        }
        if let Some(fd) = self.open_fd(node) {
            return Ok(fd);
        }
        let mut way = Vec::new();
        let (mut at, mut fd) = (node, None);
        while fd.is_none() {
            if self.table.get(at)?.kind() != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            if way.len() == DEPTH_MAX {
                return Err(Errno::STALE);
            }
            way.push(at);
            at = self.table.get(at)?.location().ok_or(Errno::STALE)?.0;
            fd = self.open_fd(at);
        }
        let mut fd = fd.expect("the loop has ended");
        while let Some(node) = way.pop() {
            fd = Arc::new(self.open_in(&fd, node)?);
            self.dirs.insert(node, Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// A descriptor that refers to `node`, of any kind; its use is limited to what `O_PATH` allows.
    pub(super) fn fd(&mut self, node: Node) -> Result<Arc<OwnedFd>, Errno> {
        self.find(node).map(|(fd, _)| fd)
    }

    /// As `fd`, with the attributes if the way there has led past them.
    pub(super) fn find(&mut self, node: Node) -> Result<(Arc<OwnedFd>, Option<Statx>), Errno> {
        if self.root.has_rules() {
            return self.checked_fd(node).map(|fd| (fd, None));
        }
        if let Some(fd) = self.open_fd(node) {
            return Ok((fd, None));
        }
        let inode = self.table.get(node)?;
        if inode.kind() == FileType::Directory {
            return self.dir(node).map(|fd| (fd, None));
        }
        let (parent, _) = inode.location().ok_or(Errno::STALE)?;
        let dir = self.dir(parent)?;
        self.look_into(&dir, node).map(|(fd, stat)| (Arc::new(fd), Some(stat)))
    }

    /// A descriptor of `node` that is open anyway.
    fn open_fd(&mut self, node: Node) -> Option<Arc<OwnedFd>> {
        if node == Node::ROOT {
            return Some(Arc::clone(&self.root.dir));
        }
        self.table.get(node).ok()?;
        let open =
            self.dirs.get(node).or_else(|| self.handles.any(node).map(|handle| Arc::clone(&handle.fd)));
        open.or_else(|| self.replaced.get(node).cloned())
    }

    /// Opens `node` where it was last seen, which is in the directory `dir`, unless something else is there now.
    pub(super) fn open_in(&mut self, dir: &OwnedFd, node: Node) -> Result<OwnedFd, Errno> {
        self.look_into(dir, node).map(|(fd, _)| fd)
    }

    fn look_into(&mut self, dir: &OwnedFd, node: Node) -> Result<(OwnedFd, Statx), Errno> {
        let open = |root: &Root, entered, name: Name<'_>| root.open_entry(dir.as_fd(), entered, name);
        self.look_in(node, open)
    }

    /// The attributes of `node`, by a descriptor of it or by its name.
    pub(super) fn stat(&mut self, node: Node) -> Result<Statx, Errno> {
        if self.root.has_rules() {
            return self.checked_stat(node);
        }
        if let Some(fd) = self.open_fd(node) {
            return stat_fd(fd);
        }
        let (parent, _) = self.table.get(node)?.location().ok_or(Errno::STALE)?;
        let dir = self.dir(parent)?;
        self.stat_in(&dir, node)
    }

    /// Looks at `node` where it was last seen, which is in the directory `dir`, unless something else is there now.
    pub(super) fn stat_in(&mut self, dir: &OwnedFd, node: Node) -> Result<Statx, Errno> {
        let stat = |root: &Root, entered, name: Name<'_>| {
            root.stat_entry(dir.as_fd(), entered, name).map(|stat| ((), stat))
        };
        self.look_in(node, stat).map(|((), stat)| stat)
    }

    /// Finds `node` by its name. What is missed is better held at the next try.
    fn look_in<T>(
        &mut self,
        node: Node,
        find: impl FnOnce(&Root, u64, Name<'_>) -> Result<(T, Statx), Errno>,
    ) -> Result<(T, Statx), Errno> {
        let inode = self.table.get(node)?;
        let (parent, name) = inode.location().ok_or(Errno::STALE)?;
        let entered = self.table.get(parent)?.identity.dev;
        let found = find(&self.root, entered, name).map_err(stale_if_gone);
        let found = found.and_then(|found| inode.check(&found.1).map(|()| found));
        if matches!(found, Err(Errno::STALE)) {
            self.replaced.missed(parent, name);
        }
        found
    }

    /// Looks `name` up in `parent`, whose descriptor is `dir`, and lets the guest know the file.
    pub(super) fn enter(&mut self, parent: Node, dir: &OwnedFd, name: Name<'_>) -> Result<EntryOut, Errno> {
        if self.replaced.has(parent, name) {
            return self.enter_held(parent, dir, name);
        }
        let entered = self.table.get(parent)?.identity.dev;
        let stat = self.root.stat_entry(dir.as_fd(), entered, name)?;
        self.introduce(&stat, Some((parent, name))).map(|(entry, _)| entry)
    }

    /// As `enter`, for a file that the guest is about to open: it can, whatever has the name by then.
    pub(super) fn enter_held(
        &mut self,
        parent: Node,
        dir: &OwnedFd,
        name: Name<'_>,
    ) -> Result<EntryOut, Errno> {
        let entered = self.table.get(parent)?.identity.dev;
        let (fd, stat) = self.root.open_entry(dir.as_fd(), entered, name)?;
        let (entry, node) = self.introduce(&stat, Some((parent, name)))?;
        self.replaced.hold(node, Arc::new(fd));
        Ok(entry)
    }

    /// Lets the guest know a file.
    pub(super) fn introduce(
        &mut self,
        stat: &Statx,
        seen: Option<(Node, Name<'_>)>,
    ) -> Result<(EntryOut, Node), Errno> {
        let node = self.table.enter(Identity::of(stat), seen)?;
        let mut stat = *stat;
        if seen.is_some()
            && self.changes.is_some()
            && kind(&stat) == FileType::Directory
            && !self.watches(node)
        {
            self.watch(node);
            // What it is vouched for is what it is from then on.
            stat = self.stat(node)?;
        }
        let entry =
            seen.filter(|_| self.is_local(&stat)).map_or(0, |(dir, name)| self.entry_token(dir, name));
        let attr = self.attr_token(node, &stat, seen);
        Ok((self.root.shown.entry_out(node.0, &stat, entry, attr), node))
    }

    /// The guest gives `count` lookups of `node` back.
    pub fn forget(&mut self, node: u64, count: u64) {
        self.table.forget(Node(node), count);
        if self.table.get(Node(node)).is_err() {
            self.replaced.let_go(Node(node));
        }
        self.close_gone();
    }

    /// Gives the guest a handle of `node`.
    pub(super) fn add_handle(&mut self, node: Node, handle: Handle) -> Result<u64, Errno> {
        let fh = self.handles.insert(node, handle)?;
        self.table.hold(node);
        Ok(fh)
    }

    /// The guest closes a handle.
    pub fn release(&mut self, node: Node, fh: u64) -> Result<(), Errno> {
        drop(self.handles.remove(node, fh)?);
        self.expect_file(node, ReadFlags::CLOSE_WRITE);
        self.settle();
        self.table.let_go(node);
        self.close_gone();
        Ok(())
    }

    /// As if other directories had been used since.
    #[cfg(test)]
    pub(super) fn forget_descriptors(&mut self) {
        self.dirs = Dirs::default();
    }

    /// A directory the guest no longer knows is not kept open.
    fn close_gone(&mut self) {
        while let Some(node) = self.table.pop_gone() {
            self.forget_dir(node);
        }
    }

    /// Nothing is kept of the directory that would be used without looking where it is.
    pub(super) fn forget_dir(&mut self, node: Node) {
        self.dirs.remove(node);
        self.listings.forget(node);
        if let Some(changes) = &self.changes {
            changes.forget_dir(node);
        }
    }
}

/// A name that is gone says that the inode is not where it was, which is another answer than "no such entry".
pub(super) fn stale_if_gone(error: Errno) -> Errno {
    if matches!(error, Errno::NOENT | Errno::NOTDIR) { Errno::STALE } else { error }
}
