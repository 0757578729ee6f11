//! The system calls that rustix does not have: signals as a file, and closing what a careless parent left open.
//! The only module of the CLI with unsafe code. It decides nothing.
#![expect(unsafe_code, reason = "sigset_t, signalfd and close_range have no safe wrapper in rustix")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Signals that come as bytes to read instead of interrupting. Dropping it lets them through again.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Takes over `taken`, except those that are ignored already (`nohup`, background jobs of scripts: Linux would
    /// queue even those once they are blocked), and blocks `blocked` besides.
    pub fn take(taken: &[i32], blocked: &[i32]) -> io::Result<Self> {
        let taken = set(taken.iter().copied().filter(|&signal| !is_ignored(signal)));
        block(&set(blocked.iter().copied()))?;
        let before = block(&taken)?;
        // SAFETY: `taken` is an initialised set, which the kernel copies; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const taken, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was returned just now and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, before })
    }

    /// The number of the next signal that has come.
    pub fn next(&self) -> Option<i32> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        let count = rustix::io::read(&self.fd, &mut record).ok()?;
        // ssi_signo is the first field; Linux man-pages, signalfd(2).
        let number = record.first_chunk::<4>().filter(|_| count == record.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by the kernel, and a null pointer means that the old mask is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

/// From here on these signals do nothing to this process.
pub fn ignore(signals: &[i32]) {
    for &signal in signals {
        // SAFETY: SIG_IGN installs no handler, so no code of ours can run at a bad time.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor from `first` on that a parent has left open. Call it before anything is opened.
pub fn close_from(first: u32) {
    // SAFETY: at the start of the process nothing in it owns a descriptor above the standard ones.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

fn set(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises what the pointer refers to.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the line above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: `set` is an initialised set; an invalid number is an error that changes nothing.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Blocks a set as well as what is blocked; returns what was.
fn block(more: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both pointers are to sets of the right type, and the second is written only.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, more, before.as_mut_ptr()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the call succeeded and has filled it.
    Ok(unsafe { before.assume_init() })
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action asks only for the present one, which is written to a structure of its type.
    let error = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid sigaction, and the kernel has written over it if the call succeeded.
    let action = unsafe { action.assume_init() };
    error == 0 && action.sa_sigaction == libc::SIG_IGN
}
