//! Files that the host replaces while the guest is on its way to them.
//! Between the lookup of a name and the opening of what it named the host may give the name to another file. The guest then
//! hears ESTALE and tries once more; if that happens again, its program gets the error, which no disk would give it. So
//! whatever a name leads to that was once missed is held open for the second try.
//! It owns how many names are remembered and how many files are held. What is held may have no name left: whoever takes
//! it from here decides whether the guest may have it.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inode::Node;
use super::wire::Name;

/// Names that are remembered: as many files as programs of the guest may be after at the same time.
const NAMES_MAX: usize = 32;
/// Files that are held, and with them the space of those that are gone.
const FILES_MAX: usize = 32;

#[derive(Debug, Default)]
pub struct Replaced {
    names: VecDeque<(Node, CString)>,
    files: VecDeque<(Node, Arc<OwnedFd>)>,
}

impl Replaced {
    /// What was known by this name was not there any more.
    pub fn missed(&mut self, dir: Node, name: Name<'_>) {
        if !self.has(dir, name) {
            self.names.truncate(NAMES_MAX - 1);
            self.names.push_front((dir, name.as_c_str().into()));
        }
    }

    /// The name was missed, so that what it leads to is worth holding.
    pub fn has(&self, dir: Node, name: Name<'_>) -> bool {
        self.names.iter().any(|(known, text)| *known == dir && text.as_c_str() == name.as_c_str())
    }

    pub fn hold(&mut self, node: Node, fd: Arc<OwnedFd>) {
        self.let_go(node);
        self.files.truncate(FILES_MAX - 1);
        self.files.push_front((node, fd));
    }

    pub fn get(&self, node: Node) -> Option<&Arc<OwnedFd>> {
        self.files.iter().find(|(held, _)| *held == node).map(|(_, fd)| fd)
    }

    /// It has been opened, or the guest has given it back.
    pub fn let_go(&mut self, node: Node) {
        self.files.retain(|(held, _)| *held != node);
    }
}
