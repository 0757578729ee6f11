//! Files and directories the guest has open.
//! It owns handle numbers and their bound. It does not know how a file is opened or what is done with it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::inode::Node;

/// The most handles a guest can have open. The process's limit on descriptors may be reached before.
pub const HANDLES_MAX: usize = 1 << 16;

/// An open file or directory.
#[derive(Clone, Debug)]
pub struct Handle {
    pub fd: Arc<OwnedFd>,
    /// It had setuid or setgid when it was opened, which a write must take away.
    pub set_id: bool,
    /// Of a directory: the offset that is read next without seeking.
    pub position: u64,
}

impl Handle {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), set_id: false, position: 0 }
    }
}

/// Handles in the order of their inodes: the number alone finds nothing, so that a handle is only good with the
/// inode it was opened for.
#[derive(Debug, Default)]
pub struct Handles {
    open: BTreeMap<(Node, u64), Handle>,
    last: u64,
}

impl Handles {
    pub fn insert(&mut self, node: Node, handle: Handle) -> Result<u64, Errno> {
        if self.open.len() == HANDLES_MAX {
            return Err(Errno::NFILE);
        }
        self.last += 1;
        self.open.insert((node, self.last), handle);
        Ok(self.last)
    }

    pub fn get(&self, node: Node, fh: u64) -> Result<&Handle, Errno> {
        self.open.get(&(node, fh)).ok_or(Errno::BADF)
    }

    pub fn get_mut(&mut self, node: Node, fh: u64) -> Result<&mut Handle, Errno> {
        self.open.get_mut(&(node, fh)).ok_or(Errno::BADF)
    }

    /// Any handle of the inode: a file that has lost its name is reached by it.
    pub fn any(&self, node: Node) -> Option<&Handle> {
        self.open.range((node, 0)..=(node, u64::MAX)).next().map(|(_, handle)| handle)
    }

    pub fn remove(&mut self, node: Node, fh: u64) -> Result<Handle, Errno> {
        self.open.remove(&(node, fh)).ok_or(Errno::BADF)
    }
}
