//! The few system calls that rustix does not have, or marks unsafe because it cannot know that there are no threads.
//! It owns their `unsafe`; it decides nothing.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::ptr;
use std::time::Duration;

use rustix::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

/// Which side of a fork one is on.
pub enum Fork {
    /// The old process, and its new child.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Splits the process in two.
pub fn fork() -> Result<Fork> {
    // SAFETY: no process of this crate starts a thread, so the child finds no lock held by a thread that it lacks.
    let pid = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent))
}

/// Does `work` in a process of its own that nobody waits for: its parent ends at once, so the first process of its PID
/// namespace reaps it.
pub fn detached(work: impl FnOnce()) {
    match fork() {
        Ok(Fork::Child) => {
            if let Ok(Fork::Child) = fork() {
                work();
            }
            exit(0)
        }
        Ok(Fork::Parent(pid)) => drop(rustix::process::waitpid(Some(pid), WaitOptions::empty())),
        Err(errno) => crate::log(format_args!("fork: {errno}")),
    }
}

/// Ends the process without running anything of the parent's that it inherited.
pub fn exit(code: u8) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code.into()) }
}

/// Closes all descriptors but the standard ones and these, which get the numbers after those, in their order. For a fresh
/// child that uses none of the others again, not even to close them.
pub fn keep_only<const N: usize>(kept: [&OwnedFd; N]) -> Result<[OwnedFd; N]> {
    const FIRST: c_int = 3;
    let end = FIRST + c_int::try_from(N).map_err(|_| Errno::MFILE)?;
    // Out of the way of the final numbers first.
    let mut aside = [0; N];
    for (aside, fd) in aside.iter_mut().zip(kept) {
        *aside = rustix::io::fcntl_dupfd_cloexec(fd, end)?.into_raw_fd();
    }
    for (number, fd) in (FIRST..).zip(aside) {
        // SAFETY: whoever owned `number` does not use it again, as the caller promises.
        check(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) })?;
    }
    // SAFETY: the same holds for all that is closed here.
    check(unsafe { libc::close_range(end.cast_unsigned(), c_uint::MAX, 0) })?;
    let mut number = FIRST..;
    // SAFETY: dup3 has just made them, for nobody else.
    Ok(kept.map(|_| unsafe { OwnedFd::from_raw_fd(number.next().unwrap_or(end)) }))
}

/// Becomes another program; returns only the reason why not.
pub fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: all strings outlive the call, and `pointers` ends both lists with a null pointer.
    match check(unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) }) {
        Ok(_) => Errno::INVAL,
        Err(errno) => errno,
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect()
}

/// Gives this process and those it starts from now on namespaces of their own.
pub fn unshare(flags: UnshareFlags) -> Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "file descriptors stay shared with nobody");
    // SAFETY: only the flag FILES is unsafe, and it is not given.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// `kill(2)` with all meanings of its target: a process, minus a group, -1 for everything in the PID namespace.
/// Signal 0 asks whether there is any.
pub fn kill(target: c_int, signal: c_int) -> Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    check(unsafe { libc::kill(target, signal) }).map(drop)
}

/// Ignores SIGPIPE, so that a write to a pipe nobody reads is an error and not the end.
pub fn ignore_sigpipe() {
    set_sigpipe(libc::SIG_IGN);
}

/// What a new program expects.
pub fn default_sigpipe() {
    set_sigpipe(libc::SIG_DFL);
}

fn set_sigpipe(action: libc::sighandler_t) {
    // SAFETY: both actions are constants of the system, no handler of ours ever runs.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

/// Signals that are held back until they are waited for.
pub struct SignalQueue(libc::sigset_t);

/// A signal that was waited for.
pub struct Received {
    /// Its number.
    pub signal: c_int,
    /// Its sender is not in this process's PID namespace: it is one of ours, not the agent's.
    pub from_outside: bool,
}

impl SignalQueue {
    /// Blocks `signals` in this process.
    pub fn new(signals: &[c_int]) -> Self {
        // SAFETY: a signal set is plain integers, for which zero is a value.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        for &signal in signals {
            // SAFETY: `set` is ours.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is a valid set, and the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        Self(set)
    }

    /// The next of them; `None` when `timeout` has passed first.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Received> {
        let timeout = timeout.map(|it| libc::timespec {
            tv_sec: it.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: it.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: a siginfo is plain integers and pointers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: set, info and timeout are valid for the call; a null timeout means none.
        let signal = check(unsafe { libc::sigtimedwait(&raw const self.0, &raw mut info, timeout) }).ok()?;
        // SAFETY: kill and the end of a child both fill in the sender's PID.
        let sender = unsafe { info.si_pid() };
        Some(Received { signal, from_outside: sender == 0 })
    }
}

/// Brings the loopback interface up.
pub fn loopback_up(socket: &OwnedFd) -> Result<()> {
    // SAFETY: an ifreq is plain integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// Allows or forbids this process, and those that it starts from now on, the I/O ports from `first` on.
pub fn ioperm(first: u16, count: u16, allow: bool) -> Result<()> {
    // SAFETY: this changes what `out` does, no memory; whoever writes to a port must argue for that itself.
    check(unsafe { libc::ioperm(first.into(), count.into(), allow.into()) }).map(drop)
}

fn check(result: c_int) -> Result<c_int> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
