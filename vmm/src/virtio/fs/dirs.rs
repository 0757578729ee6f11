//! Descriptors of the directories used last, so that a name is looked up with one system call.
//! It owns how many of them there are. It does not open anything; what is missing is opened again by the inode's
//! location, so that the guest's knowledge of a million files costs no more descriptors than this.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inode::Node;

/// The most directories kept open.
pub const DIRS_MAX: usize = 512;

/// A clock: an entry that was used since the hand went by is spared once.
#[derive(Debug, Default)]
pub struct Dirs {
    entries: Vec<Entry>,
    places: HashMap<Node, usize>,
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    node: Node,
    fd: Arc<OwnedFd>,
    used: bool,
}

impl Dirs {
    pub fn get(&mut self, node: Node) -> Option<Arc<OwnedFd>> {
        let entry = &mut self.entries[*self.places.get(&node)?];
        entry.used = true;
        Some(Arc::clone(&entry.fd))
    }

    /// Keeps `fd` for `node`, which has none, in the place of the one that was not used for longest.
    pub fn insert(&mut self, node: Node, fd: Arc<OwnedFd>) {
        let entry = Entry { node, fd, used: false };
        if self.entries.len() < DIRS_MAX {
            self.places.insert(node, self.entries.len());
            self.entries.push(entry);
            return;
        }
        while std::mem::take(&mut self.entries[self.hand].used) {
            self.hand = (self.hand + 1) % DIRS_MAX;
        }
        self.places.remove(&self.entries[self.hand].node);
        self.places.insert(node, self.hand);
        self.entries[self.hand] = entry;
        self.hand = (self.hand + 1) % DIRS_MAX;
    }

    pub fn remove(&mut self, node: Node) {
        let Some(place) = self.places.remove(&node) else { return };
        self.entries.swap_remove(place);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.node, place);
        }
        // The hand may now be past the end; it is only read again when the list is full.
    }
}
