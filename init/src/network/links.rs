//! All connections that one process carries, with the listener that they come from, in one epoll instance.
//! It owns how many there may be, and whose turn it is. It does not know what they are.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};

use super::link::{CHUNK, Fate, Side};

const EVENTS_MAX: usize = 256;
const ACCEPTS_MAX: usize = 64;

/// Tokens: of the listener, and of connections, two each. Those between are the caller's.
const LISTENER: u64 = 0;
const FIRST: u64 = 16;

/// A connection: two sockets, of which one may come later.
pub trait Carried {
    /// Moves what there is.
    fn progress(&mut self, chunk: &mut [u8; CHUNK]) -> Fate;
    /// Has epoll watch for what can change something. What is reported and not acted on would be reported again at once.
    fn watch(&mut self, epoll: &OwnedFd, token: impl Fn(Side) -> u64) -> rustix::io::Result<()>;
    /// Ends it by a reset.
    fn reset(self);
}

/// See the module.
pub struct Links<'a, L> {
    pub epoll: OwnedFd,
    listener: &'a OwnedFd,
    accepting: bool,
    max: usize,
    /// By their tokens; `free` are the indices of those that are `None`.
    entries: Vec<Option<L>>,
    free: Vec<usize>,
    chunk: Box<[u8; CHUNK]>,
}

impl<'a, L: Carried> Links<'a, L> {
    /// As many as `max` at once; more wait in the listener.
    pub fn new(listener: &'a OwnedFd, max: usize) -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            listener,
            accepting: false,
            max,
            entries: Vec::new(),
            free: Vec::new(),
            chunk: Box::new([0; CHUNK]),
        })
    }

    /// Waits for events, and deals with those of connections. A connection begins by `begin`, if it can be served; the others'
    /// events are `other`'s.
    pub fn turn(
        &mut self,
        begin: impl Fn(OwnedFd, Option<SocketAddrAny>) -> Option<L>,
        mut other: impl FnMut(&OwnedFd, u64),
    ) -> rustix::io::Result<()> {
        self.plan()?;
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        // An error is a signal.
        let count = epoll::wait(&self.epoll, &mut events[..], None).unwrap_or(0);
        let mut accepts = false;
        for event in &events[..count] {
            match event.data.u64() {
                LISTENER => accepts = true,
                token @ 1..FIRST => other(&self.epoll, token),
                token => self.progress(token),
            }
        }
        // Last, so that no event of a connection before it is taken for its own.
        if accepts {
            self.accept(begin);
        }
        Ok(())
    }

    fn open(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn plan(&mut self) -> rustix::io::Result<()> {
        let wanted = self.open() < self.max;
        if wanted != self.accepting {
            let token = EventData::new_u64(LISTENER);
            match wanted {
                true => epoll::add(&self.epoll, self.listener, token, EventFlags::IN)?,
                false => epoll::delete(&self.epoll, self.listener)?,
            }
            self.accepting = wanted;
        }
        Ok(())
    }

    fn accept(&mut self, begin: impl Fn(OwnedFd, Option<SocketAddrAny>) -> Option<L>) {
        for _ in 0..ACCEPTS_MAX.min(self.max - self.open()) {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok((socket, from)) = acceptfrom_with(self.listener, flags) else { return };
            let Some(link) = begin(socket, from) else { continue };
            let index = self.free.pop().unwrap_or(self.entries.len());
            if index == self.entries.len() {
                self.entries.push(None);
            }
            self.entries[index] = Some(link);
            self.progress(FIRST + 2 * index as u64);
        }
    }

    fn progress(&mut self, token: u64) {
        let index = usize::try_from((token - FIRST) / 2).unwrap_or(usize::MAX);
        let Some(slot) = self.entries.get_mut(index) else { return };
        let Some(link) = slot else { return };
        let mut fate = link.progress(&mut self.chunk);
        let token = |side| FIRST + 2 * index as u64 + u64::from(side == Side::Gateway);
        if fate == Fate::Lives && link.watch(&self.epoll, token).is_err() {
            fate = Fate::Broken;
        }
        if fate == Fate::Lives {
            return;
        }
        if let Some(link) = slot.take() {
            self.free.push(index);
            if fate == Fate::Broken {
                link.reset();
            }
        }
    }
}
