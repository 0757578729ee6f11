//! The process that has a gateway's sockets, and starts a worker when there is something to carry: at the first connection, and again
//! when one has died. It owns how often. It reads nothing that the guest says, and ends when the VM does.

mod ports;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_open,
    set_dumpable_behavior, setrlimit,
};

pub use self::ports::{Change, Ports};

/// Before a worker that has died is followed by another: doubled each time, and short again after one that has lasted.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const LASTED: Duration = Duration::from_secs(30);
/// For a worker to write its log when the VM has ended.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// For the gateway of the sandbox's last VM to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What both processes begin with, as credentials go through them: nobody looks into them, and no crash leaves them on a disk.
pub fn confine() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    rustix::thread::set_no_new_privs(true).context("give up new privileges")?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).context("forbid core files")
}

/// Waits until a lock is ours; false when another gateway keeps it, or the VM (a pidfd) has ended.
pub fn lock(file: &File, machine: BorrowedFd<'_>) -> Result<bool> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error).context("lock the gateway"),
        }
        if Instant::now() > deadline || wait(&[machine], Some(LOCK_PAUSE))? == [true] {
            return Ok(false);
        }
    }
}

/// Starts workers by `start`, which is given a worker's end of the channel for published ports, until the VM, a pidfd, has ended.
pub fn run(
    listener: BorrowedFd<'_>,
    machine: BorrowedFd<'_>,
    mut ports: Ports,
    start: impl Fn(OwnedFd) -> io::Result<Child>,
) -> Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        if let Event::End = await_event(machine, &mut ports, Some(listener), true, None)? {
            return Ok(());
        }
        let started = Instant::now();
        if let Ok(mut worker) = ports.channel().and_then(&start) {
            let process =
                pidfd_open(Pid::from_child(&worker), PidfdFlags::empty()).context("watch the worker")?;
            if let Event::End = await_event(machine, &mut ports, Some(process.as_fd()), false, None)? {
                drop(ports);
                return end(&mut worker, process.as_fd());
            }
            worker.wait().context("see how the worker has ended")?;
        }
        pause = if started.elapsed() > LASTED { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        if let Event::End = await_event(machine, &mut ports, None, false, Some(pause))? {
            return Ok(());
        }
    }
}

/// What was waited for.
enum Event {
    Ready,
    /// Of the VM.
    End,
    Timeout,
}

/// Waits for a descriptor, or also for clients of published ports, and has those changed meanwhile.
fn await_event(
    machine: BorrowedFd<'_>,
    ports: &mut Ports,
    other: Option<BorrowedFd<'_>>,
    clients: bool,
    timeout: Option<Duration>,
) -> Result<Event> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
        let clients = ports.listeners().filter(|_| clients);
        let all: Vec<_> = [machine, ports.control()].into_iter().chain(other).chain(clients).collect();
        let ready = wait(&all, left)?;
        match ready[..] {
            [true, ..] => return Ok(Event::End),
            [_, true, ..] => ports.serve(),
            _ if ready.contains(&true) => return Ok(Event::Ready),
            _ if left == Some(Duration::ZERO) => return Ok(Event::Timeout),
            _ => {}
        }
    }
}

fn end(worker: &mut Child, process: BorrowedFd<'_>) -> Result<()> {
    // It may have ended by itself, and is not waited for yet.
    let _ = kill_process(Pid::from_child(worker), Signal::TERM);
    if wait(&[process], Some(END_TIMEOUT))? == [false] {
        worker.kill().context("end the worker")?;
    }
    worker.wait().context("see how the worker has ended")?;
    Ok(())
}

/// Which of these are readable, as soon as one is.
fn wait(descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Vec<bool>> {
    let mut polled: Vec<_> =
        descriptors.iter().map(|it| PollFd::from_borrowed_fd(*it, PollFlags::IN)).collect();
    let timeout = timeout.map(Timespec::try_from).transpose().context("wait")?;
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("wait"),
    }
    Ok(polled.iter().map(|it| !it.revents().is_empty()).collect())
}
