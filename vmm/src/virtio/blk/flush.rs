//! One flush at a time, on a thread that exists from the first flush on.
//! It owns that thread and the result. It never sees guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;

/// The flush of one disk.
#[derive(Debug)]
pub struct Flush {
    file: Arc<File>,
    state: Arc<AtomicU8>,
    /// The result of the flush taken last.
    failed: bool,
    /// The running flush was asked for before a reset, so its end is nobody's answer.
    stale: bool,
    done: Arc<OwnedFd>,
    thread: Option<Sender<()>>,
}

impl Flush {
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let done = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { file, state: Arc::default(), failed: false, stale: false, done, thread: None })
    }

    /// Readable when a flush has ended.
    pub fn done_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Makes `done_fd` unreadable again.
    pub fn acknowledge(&self) {
        // Nothing to read is fine: the flush was then seen by a kick.
        let _ = rustix::io::read(&*self.done, &mut [0; 8]);
    }

    pub fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    /// True if a flush has ended since the last call; `failed` then tells how.
    pub fn take_done(&mut self) -> bool {
        match self.state.load(Ordering::Acquire) {
            state @ (DONE | FAILED) => {
                self.failed = state == FAILED;
                self.state.store(IDLE, Ordering::Release);
                !std::mem::take(&mut self.stale)
            }
            _ => false,
        }
    }

    pub fn failed(&self) -> bool {
        self.failed
    }

    /// A reset: neither an ended flush nor the one that is still running answers a later request.
    pub fn forget(&mut self) {
        self.stale = self.is_running();
        self.take_done();
    }

    /// Starts a flush; there is none running.
    pub fn start(&mut self) {
        self.state.store(RUNNING, Ordering::Release);
        let started = match &self.thread {
            Some(thread) => thread.send(()).is_ok(),
            None => self.spawn().is_ok(),
        };
        if !started {
            self.finish(FAILED);
        }
    }

    fn spawn(&mut self) -> io::Result<()> {
        let (sender, requests) = mpsc::channel();
        let (file, state, done) = (Arc::clone(&self.file), Arc::clone(&self.state), Arc::clone(&self.done));
        sender.send(()).expect("the receiver is here");
        thread::Builder::new().name("flush".into()).spawn(move || {
            for () in requests {
                let result = if file.sync_data().is_ok() { DONE } else { FAILED };
                state.store(result, Ordering::Release);
                // The counter of an eventfd does not overflow by one flush at a time.
                let _ = rustix::io::write(&*done, &1_u64.to_ne_bytes());
            }
        })?;
        self.thread = Some(sender);
        Ok(())
    }

    fn finish(&self, result: u8) {
        self.state.store(result, Ordering::Release);
        let _ = rustix::io::write(&*self.done, &1_u64.to_ne_bytes());
    }
}
