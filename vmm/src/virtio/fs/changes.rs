//! What the host changes while the guest has the share mounted: noticed, kept out of the guest's caches, and passed on to
//! whoever watches the files there.
//! It owns what the guest may believe, and for how long: a thing is only vouched for when a change of it would be noticed,
//! and what a change touches is void before the guest is told anything that could be due to it. Changes the guest
//! itself makes come back from the host too; they are told apart by what the request at hand is known to cause.
//!
//! Not noticed, and so not vouched for: what other machines do to a network's file system, what is done by another name of
//! the same file, and what is beyond the bound on watches. Noticed late: writes through a mapping, when the file is closed
//! or opened.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::inotify::ReadFlags;
use rustix::fs::{FileType, Statx};

use super::attr::kind;
use super::inode::{Identity, Node};
use super::notices::{ENTRY, Notices};
use super::passthrough::Passthrough;
use super::root::stat_fd;
use super::tokens::{dir_slot, entry_slot};
use super::watch::Event;
use super::wire::{HostChange, Name, Wire};

/// Changes that wait for the guest to take them. When there are more it misses some; its caches are right all the same.
const PENDING_MAX: usize = 1024;

/// A directory is no longer where it was.
const LEFT: ReadFlags = ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT);
/// What can come of an operation on an open file.
pub const OF_FILE: ReadFlags = ReadFlags::MODIFY.union(ReadFlags::ATTRIB).union(ReadFlags::CLOSE_WRITE);

/// What a mount knows of the host's changes.
#[derive(Debug)]
pub struct Changes {
    notices: Arc<Notices>,
    /// What the request at hand causes, and where.
    own: Vec<(Place, ReadFlags)>,
    pending: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
enum Place {
    Entry(Node, CString),
    /// Wherever the file is, and itself.
    File(Node),
}

impl Changes {
    pub fn new(notices: Arc<Notices>) -> Self {
        Self { notices, own: Vec::new(), pending: VecDeque::new() }
    }

    /// The guest knows nothing any more.
    pub fn clear(&mut self) {
        self.notices.clear();
        self.own.clear();
        self.pending.clear();
    }

    pub fn forget_dir(&self, dir: Node) {
        self.notices.forget(dir);
    }

    /// The next change to be told, as it goes over the wire.
    pub fn first(&self) -> Option<&[u8]> {
        self.pending.front().map(Vec::as_slice)
    }

    /// The first one has been told.
    pub fn told(&mut self) {
        self.pending.pop_front();
    }
}

impl Passthrough {
    /// Watches the directory `node`, if its changes are all made by this host's kernel.
    pub(super) fn watch(&mut self, node: Node) {
        let Some(changes) = &self.changes else { return };
        let local = self.table.get(node).is_ok_and(|inode| inode.identity.dev == self.root.identity.dev);
        if changes.notices.watches(node) || !local || !self.root.local {
            return;
        }
        if let (Ok(fd), Some(changes)) = (self.dir(node), &self.changes) {
            changes.notices.watch(node, fd.as_fd());
        }
    }

    /// What is mounted below the share reports to another directory than the one it is seen in.
    pub(super) fn is_local(&self, stat: &Statx) -> bool {
        Identity::of(stat).dev == self.root.identity.dev
    }

    pub(super) fn watches(&self, dir: Node) -> bool {
        self.changes.as_ref().is_some_and(|changes| changes.notices.watches(dir))
    }

    /// A token for the entry `name` of `dir`, as it is now; 0 if nobody would notice its change.
    pub(super) fn entry_token(&self, dir: Node, name: Name<'_>) -> u64 {
        self.changes.as_ref().map_or(0, |changes| changes.notices.token(dir, entry_slot(dir, name)))
    }

    /// A token for the attributes of `node`, which are `stat` and were just found at `seen`.
    pub(super) fn attr_token(&mut self, node: Node, stat: &Statx, seen: Option<(Node, Name<'_>)>) -> u64 {
        let token = match (kind(stat), seen) {
            (FileType::Directory, _) => {
                self.changes.as_ref().map_or(0, |changes| changes.notices.token(node, dir_slot(node)))
            }
            (FileType::RegularFile | FileType::Symlink, Some((dir, name)))
                if stat.stx_nlink == 1 && self.is_local(stat) =>
            {
                self.entry_token(dir, name)
            }
            _ => 0,
        };
        if token != 0 {
            self.table.tell(node, signature(stat));
        }
        token
    }

    /// The attributes of `node` with a token, if it is where it was last seen and can be vouched for.
    pub(super) fn vouched(&mut self, node: Node) -> Option<(Statx, u64)> {
        let inode = self.table.get(node).ok()?;
        if inode.kind() == FileType::Directory {
            if !self.watches(node) {
                return None;
            }
            let stat = stat_fd(self.dir(node).ok()?).ok()?;
            let token = self.attr_token(node, &stat, None);
            return Some((stat, token));
        }
        let (dir, _) = inode.location()?;
        if !self.watches(dir) {
            return None;
        }
        let fd = self.dir(dir).ok()?;
        let inode = self.table.get(node).ok()?;
        let name: CString = inode.location()?.1.as_c_str().into();
        let name = Name::new(&name).ok()?;
        let stat = self.root.stat_entry(fd.as_fd(), self.root.identity.dev, name).ok()?;
        inode.check(&stat).ok()?;
        let token = self.attr_token(node, &stat, Some((dir, name)));
        Some((stat, token))
    }

    /// True if the guest may keep what it has cached of the file that it opens. What has changed unnoticed since the
    /// guest was told of it is noticed here.
    pub(super) fn keeps_cache(&self, node: Node, stat: &Statx) -> bool {
        let (Some(changes), Ok(inode)) = (&self.changes, self.table.get(node)) else { return false };
        let Some((dir, name)) = inode.location().filter(|_| stat.stx_nlink == 1) else { return false };
        if !changes.notices.watches(dir) {
            return false;
        }
        if inode.told != signature(stat) {
            changes.notices.renew(entry_slot(dir, name));
        }
        true
    }

    /// The request at hand causes `mask` at the entry `name` of `dir`.
    pub(super) fn expect_entry(&mut self, dir: Node, name: Name<'_>, mask: ReadFlags) {
        if let Some(changes) = self.changes.as_mut().filter(|changes| changes.notices.watches(dir)) {
            changes.own.push((Place::Entry(dir, name.as_c_str().into()), mask));
        }
    }

    /// The request at hand causes `mask` at the file `node`.
    pub(super) fn expect_file(&mut self, node: Node, mask: ReadFlags) {
        if let Some(changes) = &mut self.changes {
            changes.own.push((Place::File(node), mask));
        }
    }

    /// The guest has renamed something itself: what it knew of it by the old name is void, and by the new one.
    pub(super) fn renamed(&self, dir: Node, name: Name<'_>) {
        let Some(changes) = &self.changes else { return };
        changes.notices.renew(entry_slot(dir, name));
        if self.root.has_rules() {
            changes.notices.renew_all();
        }
    }

    /// Takes note of all that has changed up to now. To be called before the guest gets an answer.
    pub fn settle(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        let events = changes.notices.take();
        let own = std::mem::take(&mut changes.own);
        for event in &events {
            if !own.iter().any(|(place, mask)| event.mask.intersects(*mask) && self.is_at(event, place)) {
                self.note(event);
            }
        }
    }

    fn is_at(&self, event: &Event, place: &Place) -> bool {
        let (Some(dir), name) = (event.dir, event.name.as_deref()) else { return false };
        match place {
            Place::Entry(parent, own) => dir == *parent && name == Some(own),
            Place::File(node) if name.is_none() => dir == *node,
            Place::File(node) => {
                let location = self.table.get(*node).ok().and_then(|inode| inode.location());
                location.is_some_and(|(parent, own)| dir == parent && name == Some(own.as_c_str()))
            }
        }
    }

    /// Somebody on the host has changed something.
    fn note(&mut self, event: &Event) {
        let Some(changes) = &self.changes else { return };
        changes.notices.void(event);
        let Some(dir) = event.dir else { return };
        let Some(name) = event.name.as_deref().and_then(|name| Name::new(name).ok()) else {
            if event.mask.intersects(LEFT) {
                self.left(dir);
            }
            return;
        };
        if self.check_visible(dir, name).is_err() || self.check_reached(dir).is_err() {
            return;
        }
        let now = event.mask.intersects(ENTRY).then(|| self.known_at(dir, name)).flatten();
        self.tell(dir, name, event, now);
    }

    /// A directory is elsewhere: it is found again when the guest looks it up.
    fn left(&mut self, dir: Node) {
        if dir != Node::ROOT {
            self.forget_dir(dir);
        }
    }

    /// What the guest knows of what has the name now. A new name of a file it has been vouched for is a way to change it
    /// that may go unnoticed.
    fn known_at(&mut self, dir: Node, name: Name<'_>) -> Option<Node> {
        let fd = self.dir(dir).ok()?;
        let stat = self.root.stat_entry(fd.as_fd(), self.root.identity.dev, name).ok()?;
        let node = self.table.find(&Identity::of(&stat))?;
        if stat.stx_nlink > 1
            && let (Some(changes), Ok(inode)) = (&self.changes, self.table.get(node))
            && let Some((dir, name)) = inode.location()
        {
            changes.notices.renew(entry_slot(dir, name));
        }
        Some(node)
    }

    fn tell(&mut self, dir: Node, name: Name<'_>, event: &Event, now: Option<Node>) {
        let Some(changes) = self.changes.as_mut().filter(|changes| changes.pending.len() < PENDING_MAX)
        else {
            return;
        };
        let change = HostChange {
            parent: dir.0,
            node: now.map_or(0, |node| node.0),
            mask: event.mask.bits(),
            cookie: event.cookie,
            namelen: u32::try_from(name.to_bytes().len()).expect("at most NAME_MAX"),
            padding: 0,
        };
        let mut bytes = Vec::with_capacity(HostChange::SIZE + name.to_bytes().len());
        change.encode(&mut bytes);
        bytes.extend_from_slice(name.to_bytes());
        changes.pending.push_back(bytes);
    }
}

/// What differs when a file was changed, as far as its attributes tell.
fn signature(stat: &Statx) -> u64 {
    let ctime = stat.stx_ctime.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000);
    ctime.wrapping_add(u64::from(stat.stx_ctime.tv_nsec)) ^ stat.stx_size.rotate_left(48)
}
