//! What waits for the host's storage, on a thread of the disk's own that exists from the first such job on.
//! It owns that thread, its jobs and their results. It never sees guest memory or queues.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Status;
use crate::virtio::Deferred;

/// A range of the file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

/// What is to be done to the file.
#[derive(Debug)]
pub enum Work {
    Flush,
    /// The ranges read as zeroes afterwards, and take no space or, if `keep`, the space they took.
    Zero {
        ranges: Vec<Range>,
        keep: bool,
    },
}

#[derive(Debug)]
struct Job {
    chain: Deferred,
    work: Work,
}

/// The thread, and what is shared with it.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    pub(super) is_started: bool,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<(Deferred, Status)>,
    /// A job is being done.
    busy: bool,
    /// It is from before a reset: nobody wants its result, but nothing may overtake it.
    stale: bool,
    /// Somebody waits for `wake`: the event loop must not be woken for a disk without a driver.
    live: bool,
    quit: bool,
}

impl Worker {
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared { file, state: Mutex::default(), changed: Condvar::new(), wake };
        Ok(Self { shared: Arc::new(shared), is_started: false })
    }

    /// Readable when there are results, or after `wake`.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Makes `wake_fd` readable.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Makes `wake_fd` unreadable.
    pub fn acknowledge(&self) {
        // There is nothing to read if somebody was faster.
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
    }

    /// The disk has a driver again.
    pub fn activate(&self) {
        self.shared.state().live = true;
    }

    /// Forgets all jobs but the one that is being done, and all results.
    pub fn reset(&self) {
        let mut state = self.shared.state();
        let busy = state.busy;
        *state = State { busy, stale: busy, ..State::default() };
        self.acknowledge();
    }

    /// A job from before a reset may still change the file.
    pub fn is_stale(&self) -> bool {
        self.shared.state().stale
    }

    /// Jobs that are not done yet.
    pub fn len(&self) -> usize {
        let state = self.shared.state();
        state.jobs.len() + usize::from(state.busy)
    }

    /// The results since the last call.
    pub fn take_done(&self) -> Vec<(Deferred, Status)> {
        std::mem::take(&mut self.shared.state().done)
    }

    /// Has `work` done, after all that was started before.
    pub fn start(&mut self, chain: Deferred, work: Work) {
        self.shared.state().jobs.push_back(Job { chain, work });
        self.shared.changed.notify_one();
        if !self.is_started && self.spawn().is_err() {
            let mut state = self.shared.state();
            let refused: Vec<_> = state.jobs.drain(..).map(|job| (job.chain, Status::IoError)).collect();
            state.done.extend(refused);
            self.shared.wake();
        }
    }

    fn spawn(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("disk".into()).spawn(move || while shared.step() {})?;
        self.is_started = true;
        Ok(())
    }
}

/// The thread's part, for tests that have none.
#[cfg(test)]
impl Worker {
    pub fn step(&self) -> bool {
        self.shared.step()
    }

    /// As if the first job had begun.
    pub fn set_busy(&self) {
        let mut state = self.shared.state();
        state.jobs.pop_front();
        state.busy = true;
    }

    pub fn finish_stale(&self) {
        assert!(self.is_stale());
        self.shared.finish(Vec::new(), Status::Ok);
    }
}

impl Drop for Worker {
    /// The thread ends after the job it is at; nobody waits for that.
    fn drop(&mut self) {
        *self.shared.state() = State { quit: true, ..State::default() };
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has aborted the process, except in tests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails if the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Waits for a job and does it. False when there will be none.
    fn step(&self) -> bool {
        let waiting = |state: &mut State| state.jobs.is_empty() && !state.quit;
        let mut state =
            self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        let Some(job) = state.jobs.pop_front() else { return false };
        let mut chains = vec![job.chain];
        // One flush answers all that wait in a row: what they cover was written before it begins.
        while matches!((&job.work, state.jobs.front()), (Work::Flush, Some(Job { work: Work::Flush, .. }))) {
            chains.extend(state.jobs.pop_front().map(|job| job.chain));
        }
        state.busy = true;
        drop(state);
        let status = self.execute(&job.work);
        self.finish(chains, status);
        true
    }

    fn finish(&self, chains: Vec<Deferred>, status: Status) {
        let mut state = self.state();
        state.busy = false;
        if !std::mem::take(&mut state.stale) {
            state.done.extend(chains.into_iter().map(|chain| (chain, status)));
        }
        if state.live {
            self.wake();
        }
    }

    fn execute(&self, work: &Work) -> Status {
        let result = match work {
            Work::Flush => rustix::fs::fdatasync(&self.file),
            Work::Zero { ranges, keep } => {
                let mode = if *keep { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
                let mode = mode | FallocateFlags::KEEP_SIZE;
                ranges.iter().try_for_each(|range| fallocate(&self.file, mode, range.offset, range.length))
            }
        };
        match result {
            Ok(()) => Status::Ok,
            // The driver writes zeroes itself then.
            Err(Errno::OPNOTSUPP) => Status::Unsupported,
            Err(_) => Status::IoError,
        }
    }
}
