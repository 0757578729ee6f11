//! What the host has changed, noticed by whoever is about to tell the guest something that could follow from it: the share's
//! thread before each answer, and before the host's words reach the guest by another way the machine (`settle`).
//! It owns the one lock around watches and tokens; nothing that may block is done under it. What a change means beyond that
//! the guest must not believe any more what it was told of it is a matter of `changes`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::ReadFlags;

use super::inode::Node;
use super::tokens::{Tokens, dir_slot, entry_slot};
use super::watch::{Event, Watches};
use super::wire::Name;

/// A name was given or taken.
pub const ENTRY: ReadFlags =
    ReadFlags::CREATE.union(ReadFlags::DELETE).union(ReadFlags::MOVED_FROM).union(ReadFlags::MOVED_TO);
pub const MOVED: ReadFlags = ReadFlags::MOVED_FROM.union(ReadFlags::MOVED_TO);
/// Changes that wait for the share's thread. When it lags behind by more it is told that some were lost.
const WAITING_MAX: usize = 1 << 15;

/// What is looked at, as long as a driver wants to know of changes.
#[derive(Debug)]
pub struct Watching {
    pub watches: Watches,
    pub tokens: Tokens,
    /// With a folder that moves, what is in it may come under a rule.
    pub has_rules: bool,
    /// Wakes the share's thread.
    pub wake: Arc<OwnedFd>,
    /// Noticed by others than the share's thread, which has yet to tell the guest's programs.
    waiting: Vec<Event>,
}

/// Shared by all who notice.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Option<Watching>>);

impl Watching {
    pub fn new(watches: Watches, tokens: Tokens, has_rules: bool, wake: Arc<OwnedFd>) -> Self {
        Self { watches, tokens, has_rules, wake, waiting: Vec::new() }
    }

    /// The guest must ask again about all that this touches.
    fn void(&mut self, event: &Event) {
        let Some(dir) = event.dir else { return self.tokens.renew_all() };
        if event.name.is_none() || event.mask.intersects(ENTRY) {
            self.tokens.renew(dir_slot(dir));
        }
        let Some(name) = event.name.as_deref().and_then(|name| Name::new(name).ok()) else { return };
        self.tokens.renew(entry_slot(dir, name));
        if event.mask.intersects(MOVED) && self.has_rules {
            self.tokens.renew_all();
        }
    }
}

impl Notices {
    fn lock(&self) -> MutexGuard<'_, Option<Watching>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with what is looked at, if anything is.
    fn with<T: Default>(&self, act: impl FnOnce(&mut Watching) -> T) -> T {
        self.lock().as_mut().map(act).unwrap_or_default()
    }

    pub fn begin(&self, watching: Watching) {
        *self.lock() = Some(watching);
    }

    /// From here on nothing of this touches the guest's memory.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// Voids all that the host has changed up to now: what the guest is told after this finds no cache that is older. It
    /// costs one system call when there is nothing.
    ///
    /// A change by a second name of a file is noticed as such only when the share's thread has seen that name appear.
    pub fn settle(&self) {
        self.with(|watching| {
            let events = watching.watches.read();
            if events.is_empty() {
                return;
            }
            events.iter().for_each(|event| watching.void(event));
            if watching.waiting.len() + events.len() > WAITING_MAX {
                watching.waiting = vec![Event::lost()];
            } else {
                watching.waiting.extend(events);
            }
            // It is a counter, and full only when nobody has read it for ages.
            let _ = rustix::io::write(&watching.wake, &1_u64.to_ne_bytes());
        });
    }

    /// All changes since the last call, for the share's thread, in their order.
    pub fn take(&self) -> Vec<Event> {
        self.with(|watching| {
            let mut events = std::mem::take(&mut watching.waiting);
            events.extend(watching.watches.read());
            events
        })
    }

    /// There is something for the share's thread that others have noticed.
    pub fn has_waiting(&self) -> bool {
        self.with(|watching| !watching.waiting.is_empty())
    }

    pub fn void(&self, event: &Event) {
        self.with(|watching| watching.void(event));
    }

    pub fn watches(&self, dir: Node) -> bool {
        self.with(|watching| watching.watches.has(dir))
    }

    pub fn watch(&self, dir: Node, fd: BorrowedFd<'_>) {
        self.with(|watching| watching.watches.add(dir, fd));
    }

    pub fn forget(&self, dir: Node) {
        self.with(|watching| watching.watches.remove(dir));
    }

    /// The guest knows nothing any more.
    pub fn clear(&self) {
        self.with(|watching| {
            watching.watches.clear();
            watching.tokens.renew_all();
            watching.waiting.clear();
        });
    }

    /// A token for what is in `slot`, which has to do with the directory `dir`; 0 if nobody would notice its change.
    pub fn token(&self, dir: Node, slot: usize) -> u64 {
        self.with(|watching| if watching.watches.has(dir) { watching.tokens.get(slot) } else { 0 })
    }

    pub fn renew(&self, slot: usize) {
        self.with(|watching| watching.tokens.renew(slot));
    }

    pub fn renew_all(&self) {
        self.with(|watching| watching.tokens.renew_all());
    }
}
