//! virtio-fs: a folder of the host in the guest, served by the process's own user.
//! This file owns the device: its configuration space and the life of its worker. Reading it goes best in this order:
//! `wire` (the messages), `server` (one request), `passthrough` (from node ids to files), `root` (containment),
//! `access` (what is hidden or kept from changes), `ops_*`.
//! Source: virtio 1.2, 5.11 "File System Device".

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::notices::Notices;
pub use self::patterns::{BadPattern, Patterns};
use self::root::Root;
pub use self::server::Server;
use self::worker::{Stuck, Worker};
use super::{BrokenQueue, Device, Memory, Profile, Queue};
use crate::config::Share;

mod access;
mod attr;
mod changes;
mod dirs;
mod dispatch;
mod handles;
mod ids;
mod inode;
mod jail;
mod notices;
mod opcode;
mod ops_attr;
mod ops_dir;
mod ops_entry;
mod ops_file;
mod ops_xattr;
mod passthrough;
mod patterns;
mod replaced;
mod root;
mod server;
mod tokens;
mod watch;
mod wire;
mod worker;

#[cfg(test)]
mod tests;

/// virtio 1.2, 5 "Device Types".
const DEVICE_ID: u32 = 26;
/// The longest tag: virtio 1.2, 5.11.4 "Device configuration layout".
pub const TAG_MAX: usize = 36;
/// Queue 0 carries FORGETs. The request queue has room for a transfer of `IO_MAX` in single pages and its headers,
/// which Linux needs to have to send one: virtio 1.2, 5.11.2 "Virtqueues".
/// The last one is our kernel's own: on it the guest is told what the host changes (`kernel-config/patches`). Another
/// kernel does not use it, and then asks about everything each time.
const QUEUE_SIZES: &[u16] = &[256, 512, 64];
const REQUEST_QUEUES: u32 = 1;
const CHANGES_QUEUE: usize = 1 + REQUEST_QUEUES as usize;
const HOST_CHANGES: u64 = 1 << 16;

const _: () = assert!(QUEUE_SIZES.len() == CHANGES_QUEUE + 1);

/// Whether this kernel keeps a share's thread in the share, see `jail`.
#[must_use]
pub fn has_jail() -> bool {
    jail::version().is_ok()
}

/// A virtio-fs device.
#[derive(Debug)]
pub struct Fs {
    root: Arc<Root>,
    tag: String,
    config: [u8; TAG_MAX + 4],
    /// Readable when the host has changed something.
    inotify: Option<Arc<OwnedFd>>,
    notices: Arc<Notices>,
    worker: Option<Worker>,
    /// Workers the host's file system has not let go of. As long as there is one, no other is started, so that a guest
    /// which resets the device again and again does not collect threads.
    stuck: Option<Stuck>,
}

impl Fs {
    /// # Errors
    /// When the tag is too long, the share is not a folder, or `/proc` is missing.
    pub fn new(share: Share) -> io::Result<Self> {
        let tag = share.tag.clone();
        if tag.is_empty() || tag.len() > TAG_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "tag is empty or too long"));
        }
        let mut config = [0; TAG_MAX + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let (root, inotify) = (Arc::new(Root::new(share)?), watch::inotify());
        Ok(Self { root, tag, config, inotify, notices: Arc::default(), worker: None, stuck: None })
    }

    /// To be called before the host's words reach the guest by another way than this share: what they may be about is then
    /// no longer in the guest's caches. It does not wait for the share.
    pub fn settler(&self) -> impl Fn() + Send + use<> {
        let notices = Arc::clone(&self.notices);
        move || notices.settle()
    }
}

impl Device for Fs {
    fn profile(&self) -> Profile {
        let features = if self.inotify.is_some() && self.root.local { HOST_CHANGES } else { 0 };
        Profile { id: DEVICE_ID, features, queue_sizes: QUEUE_SIZES }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        self.stuck.take_if(|stuck| stuck.has_ended());
        if self.stuck.is_none() {
            let server = Server::of(Arc::clone(&self.root));
            // Without a thread the share does not answer, and the first kick says so.
            let outlook = self.inotify.clone().map(|inotify| (inotify, Arc::clone(&self.notices)));
            self.worker = Worker::start(&self.tag, memory, queues, server, outlook).ok();
        }
    }

    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        self.worker.as_ref().ok_or(BrokenQueue("file system has no worker"))?.wake()
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.stuck = worker.stop();
        }
        self.notices.end();
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}
