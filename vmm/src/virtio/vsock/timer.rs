//! One alarm for whatever the device has to do first.
//! It owns the timer's descriptor. It does not know what it is for: whoever is woken looks at the clock.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

const NS_PER_SECOND: u64 = 1_000_000_000;

#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    /// Nanoseconds of the monotonic clock.
    armed: Option<u64>,
}

impl Timer {
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, armed: None })
    }

    /// The descriptor becomes readable at `at_ns` at the latest; a time that has passed is now.
    pub fn wake_by(&mut self, at_ns: u64) {
        // All zeros would turn the timer off.
        let at_ns = at_ns.max(1);
        if self.armed.is_none_or(|armed| at_ns < armed) {
            self.set(at_ns);
            self.armed = Some(at_ns);
        }
    }

    /// The descriptor is not readable until the next `wake_by`.
    pub fn clear(&mut self) {
        if self.armed.take().is_some() {
            self.set(0);
        }
    }

    fn set(&self, at_ns: u64) {
        let part = |n: u64| i64::try_from(n).expect("2^64 ns are less than 2^63 s");
        let at = Timespec { tv_sec: part(at_ns / NS_PER_SECOND), tv_nsec: part(at_ns % NS_PER_SECOND) };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &timer).expect("a timer and a valid time");
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
