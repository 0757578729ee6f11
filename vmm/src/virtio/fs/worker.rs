//! The thread that serves a share's queues.
//! It owns the queues while the device is active, and the rules for ending: after `stop` it touches no queue. It does
//! not know what the requests mean.
#![expect(unsafe_code, reason = "a thread's own umask comes with its own fs_struct, by unshare(2)")]

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::CHANGES_QUEUE;
use super::notices::Notices;
use super::server::Server;
use super::tokens::{TABLE_BYTES, Tokens};
use super::watch::Watches;
use crate::virtio::{BrokenQueue, Memory, Queue};

/// How long `stop` waits for a request to end. The machine waits with it, so it is short; a request that takes longer
/// is stuck in the host's file system, and waiting more would stop the whole machine for one share.
const STOP_WAIT: Duration = Duration::from_millis(100);
/// Requests served from one queue before the other is looked at.
const TURN: usize = 64;

/// What worker and device share.
#[derive(Debug)]
struct Shared {
    /// The queues, until the worker is stopped. Held while a queue is touched, never while a request is served.
    queues: Mutex<Option<Vec<Queue>>>,
    broken: AtomicBool,
    /// Readable when the worker has something to do.
    wake: Arc<OwnedFd>,
    /// Readable when the host has changed something, and what is then noticed.
    outlook: Option<Outlook>,
}

type Outlook = (Arc<OwnedFd>, Arc<Notices>);

/// Why a worker ends.
enum End {
    Stopped,
    Broken,
}

impl From<BrokenQueue> for End {
    fn from(_: BrokenQueue) -> Self {
        Self::Broken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the queues, unless they are gone.
    fn with<T>(&self, act: impl FnOnce(&mut [Queue]) -> Result<T, BrokenQueue>) -> Result<T, End> {
        Ok(act(self.lock().as_mut().ok_or(End::Stopped)?)?)
    }

    /// Waits for a kick, the end, or a change of the host's; false if there is none of that.
    fn sleep(&self) -> bool {
        let wake = PollFd::new(&self.wake, PollFlags::IN);
        let inotify = self.outlook.as_ref().map(|(inotify, _)| PollFd::new(inotify, PollFlags::IN));
        let mut fds: Vec<_> = std::iter::once(wake).chain(inotify).collect();
        // A signal is as good a reason to look as any.
        let known = poll(&mut fds, None).is_ok();
        let changed = !known || fds.last().is_some_and(|last| !last.revents().is_empty());
        let _ = rustix::io::read(&self.wake, &mut [0; size_of::<u64>()]);
        changed || self.outlook.as_ref().is_some_and(|(_, notices)| notices.has_waiting())
    }

    fn wake(&self) {
        // It is a counter, and full only when nobody has read it for ages.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// Its other end goes with the thread.
    ended: Receiver<Infallible>,
}

impl Worker {
    /// Starts serving. The queues may hold requests already.
    /// `outlook` is where the host's changes are seen, for a driver that wants to know them.
    pub fn start(
        name: &str,
        memory: Memory,
        queues: Vec<Queue>,
        server: Server,
        outlook: Option<Outlook>,
    ) -> io::Result<Self> {
        let (until_end, ended) = channel();
        let shared = Arc::new(Shared {
            queues: Mutex::new(Some(queues)),
            broken: AtomicBool::new(false),
            wake: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            outlook,
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&memory, &own, server, until_end))?;
        Ok(Self { shared, thread, ended })
    }

    /// There is something to do.
    pub fn wake(&self) -> Result<(), BrokenQueue> {
        if self.shared.broken.load(Ordering::Acquire) {
            return Err(BrokenQueue("a file system request broke the rules"));
        }
        self.shared.wake();
        Ok(())
    }

    /// Takes the queues away and ends the thread. A thread that is stuck in the host's file system is given back: it
    /// will end with its request. It holds the guest's memory until then, and if the request is a READ may still
    /// fill the buffers the guest gave it.
    pub fn stop(self) -> Option<Stuck> {
        *self.shared.lock() = None;
        self.shared.wake();
        match self.ended.recv_timeout(STOP_WAIT) {
            Err(RecvTimeoutError::Timeout) => Some(Stuck(self.thread)),
            Err(RecvTimeoutError::Disconnected) => {
                // It has nothing left to do but to end; a panic has aborted the process.
                let _ended = self.thread.join();
                None
            }
        }
    }
}

/// A worker that did not end in time.
#[derive(Debug)]
pub struct Stuck(JoinHandle<()>);

impl Stuck {
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

/// The sender is dropped with the thread.
fn run(memory: &Memory, shared: &Shared, mut server: Server, _until_end: Sender<Infallible>) {
    apply_no_umask();
    server.enter_jail();
    let served = announce(memory, shared, &mut server).and_then(|()| serve(memory, shared, &mut server));
    match served {
        Ok(never) => match never {},
        Err(End::Stopped) => (),
        Err(End::Broken) => shared.broken.store(true, Ordering::Release),
    }
}

/// Takes the table of tokens, which is the first buffer of the queue of changes, if the driver has that queue.
fn announce(memory: &Memory, shared: &Shared, server: &mut Server) -> Result<(), End> {
    let table = shared.with(|queues| {
        let queue = queues.get_mut(CHANGES_QUEUE).filter(|queue| queue.is_set_up());
        let chain = queue.map(|queue| queue.pop(memory)).transpose()?.flatten();
        Ok(chain.and_then(|chain| chain.only_buffer(TABLE_BYTES)))
    })?;
    let aligned = table.filter(|table| table.0.is_multiple_of(size_of::<u64>() as u64));
    if let (Some(table), Some((inotify, notices))) = (aligned, &shared.outlook) {
        let watches = Watches::new(Arc::clone(inotify));
        let tokens = Tokens::new(Arc::clone(memory), table);
        // Under the lock, so that nothing is begun after `stop`.
        shared.with(|_| {
            server.announce(notices, watches, tokens, &shared.wake);
            Ok(())
        })?;
    }
    Ok(())
}

/// Tells the driver what the host has changed, as far as it has buffers for it.
fn tell(memory: &Memory, shared: &Shared, server: &mut Server) -> Result<(), End> {
    let Some(changes) = server.changes().filter(|changes| changes.first().is_some()) else { return Ok(()) };
    shared.with(|queues| {
        let queue = &mut queues[CHANGES_QUEUE];
        while let Some(change) = changes.first() {
            if let Some(mut chain) = queue.pop(memory)? {
                if !chain.writer.write(change) {
                    return Err(BrokenQueue("no room for a change of the host's"));
                }
                queue.complete(memory, chain)?;
                changes.told();
            } else if !queue.unmute_kicks(memory)? {
                break;
            }
        }
        queue.notify(memory)
    })
}

/// Serves until the end, and sleeps when there is nothing to do. What changes while it serves is noticed before each answer.
fn serve(memory: &Memory, shared: &Shared, server: &mut Server) -> Result<Infallible, End> {
    let mut changed = true;
    loop {
        shared.with(|queues| in_use(queues).try_for_each(|queue| queue.mute_kicks(memory)))?;
        loop {
            if std::mem::take(&mut changed) {
                server.settle();
            }
            let more = serve_turns(memory, shared, server)?;
            tell(memory, shared, server)?;
            if !more {
                break;
            }
        }
        // What has come in between is announced by no kick.
        let more = shared.with(|queues| {
            in_use(queues).try_fold(false, |more, queue| Ok(queue.unmute_kicks(memory)? || more))
        })?;
        if !more {
            changed = shared.sleep();
        }
    }
}

/// The queues of requests. Kicks of the queue of changes say that there is room again, which the next change finds.
fn in_use(queues: &mut [Queue]) -> impl Iterator<Item = &mut Queue> {
    queues.iter_mut().take(CHANGES_QUEUE)
}

/// Gives each queue a turn; true if one of them was not served to its end.
fn serve_turns(memory: &Memory, shared: &Shared, server: &mut Server) -> Result<bool, End> {
    let mut more = false;
    for index in 0..CHANGES_QUEUE {
        let mut left = TURN;
        while left > 0 && serve_one(memory, shared, index, server)? {
            left -= 1;
        }
        more |= left == 0;
    }
    Ok(more)
}

/// Serves the next request of a queue; false if it has none.
fn serve_one(memory: &Memory, shared: &Shared, index: usize, server: &mut Server) -> Result<bool, End> {
    let Some(mut chain) = shared.with(|queues| queues[index].pop(memory))? else { return Ok(false) };
    server.serve(&mut chain.reader, &mut chain.writer)?;
    // The driver is told each time, not once per burst: the next request may take long.
    shared.with(|queues| {
        queues[index].complete(memory, chain)?;
        queues[index].notify(memory)
    })?;
    Ok(true)
}

/// Gives the calling thread an empty umask of its own: the guest's modes come with the guest's umask applied.
pub fn apply_no_umask() {
    // SAFETY: with this flag alone the descriptors stay shared, so none of them changes its meaning for any thread;
    // what is no longer shared is the umask, the root and the working directory, and nothing here depends on others
    // changing those.
    let own = unsafe { unshare_unsafe(UnshareFlags::FS) };
    if own.is_ok() {
        umask(Mode::empty());
    }
}
