//! Watches on the host's directories, by inotify(7): who changes what in them, by name.
//! It owns which directories are watched and how many. It does not know what a change means for the guest.

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::inode::Node;
use super::root::proc_path;

/// The most directories that are watched; the user's limit is shared with all their programs. What is in others is asked
/// for each time.
const WATCHES_MAX: usize = 1 << 14;
/// Changes read at once; more than a queue of the host's kernel holds by default.
const EVENTS_MAX: usize = 1 << 15;
/// Room for some dozen changes.
const BUFFER: usize = 4096;
/// `struct inotify_event`, to a multiple of which its name is padded; and the most that an event takes.
const EVENT: usize = 16;
const EVENT_SIZE_MAX: usize = EVENT + 256;

/// What is reported of a directory and its entries. Reading is not: it changes nothing.
const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A change of a watched directory, or of `name` in it.
#[derive(Debug)]
pub struct Event {
    /// `None` when changes were lost.
    pub dir: Option<Node>,
    pub mask: ReadFlags,
    pub cookie: u32,
    pub name: Option<CString>,
}

impl Event {
    /// Stands for changes that were not kept.
    pub fn lost() -> Self {
        Self { dir: None, mask: ReadFlags::QUEUE_OVERFLOW, cookie: 0, name: None }
    }
}

#[derive(Debug)]
pub struct Watches {
    inotify: Arc<OwnedFd>,
    dirs: HashMap<i32, Node>,
    watches: HashMap<Node, i32>,
}

/// What becomes readable at a change; `None` where the user has used up what the host allows.
pub fn inotify() -> Option<Arc<OwnedFd>> {
    inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok().map(Arc::new)
}

impl Watches {
    pub fn new(inotify: Arc<OwnedFd>) -> Self {
        Self { inotify, dirs: HashMap::new(), watches: HashMap::new() }
    }

    pub fn has(&self, dir: Node) -> bool {
        self.watches.contains_key(&dir)
    }

    /// Watches the directory that `fd` refers to, if that is possible.
    pub fn add(&mut self, dir: Node, fd: BorrowedFd<'_>) {
        if self.watches.len() == WATCHES_MAX {
            return;
        }
        let Ok(watch) = inotify::add_watch(&self.inotify, proc_path(fd), WATCHED) else { return };
        // The same directory, known by another node before.
        if let Some(old) = self.dirs.insert(watch, dir) {
            self.watches.remove(&old);
        }
        self.watches.insert(dir, watch);
    }

    pub fn remove(&mut self, dir: Node) {
        if let Some(watch) = self.watches.remove(&dir) {
            self.dirs.remove(&watch);
            // It may be gone with its directory.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    pub fn clear(&mut self) {
        for watch in self.watches.drain().map(|(_, watch)| watch) {
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        self.dirs.clear();
    }

    /// All changes since the last call, in their order.
    pub fn read(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut used = 0;
        while events.len() < EVENTS_MAX {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            let (mask, cookie) = (event.events(), event.cookie());
            used +=
                EVENT + event.file_name().map_or(0, |name| (name.count_bytes() + 1).next_multiple_of(EVENT));
            let dir = self.dirs.get(&event.wd()).copied();
            if dir.is_some() || mask.contains(ReadFlags::QUEUE_OVERFLOW) {
                events.push(Event { dir, mask, cookie, name: event.file_name().map(Into::into) });
            }
            if mask.contains(ReadFlags::IGNORED)
                && let Some(dir) = self.dirs.remove(&event.wd())
            {
                self.watches.remove(&dir);
            }
            // The kernel leaves room for another event only when it has none.
            if reader.is_buffer_empty() && std::mem::take(&mut used) + EVENT_SIZE_MAX <= BUFFER {
                break;
            }
        }
        events
    }
}
