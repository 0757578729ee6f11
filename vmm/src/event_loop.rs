//! Waits for what no vCPU causes: host sockets, signals, the timers for a guest that does not start or does not end, the
//! end.
//! It owns the list of everything that can wake the thread. What a device does about it is the device's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::machine::{Exit, Machine};
use crate::marks::Mark;
use crate::signals;

/// A guest that has not said by then that it is ready is given up: nobody may be left who would stop it. A start takes
/// milliseconds, seconds on a host with too much to do.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// A guest that was asked to end has this long before it is cut off.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// One subscriber with a handful of descriptors.
const READY_CAPACITY: usize = 32;

/// What the tokens in epoll stand for; device slots come behind.
const ENDED: u32 = 0;
const SIGTERM: u32 = 1;
const BOOT_TIMER: u32 = 2;
const GOODBYE_TIMER: u32 = 3;
const SIGHUP: u32 = 4;
const FIRST_SLOT: u32 = 5;

/// Why the loop cannot wait.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("watch for signals")]
    Signal(#[source] io::Error),
    #[error("create a timer")]
    Timer(#[source] errno::Error),
    #[error("wait for events")]
    Wait(#[source] event_manager::Error),
}

/// The loop of one machine.
pub struct EventLoop {
    manager: EventManager<Sources>,
}

struct Sources {
    machine: Arc<Machine>,
    ended: EventFd,
    sigterm: OwnedFd,
    sighup: OwnedFd,
    boot_timer: TimerFd,
    goodbye_timer: TimerFd,
    goodbye_said: bool,
}

impl EventLoop {
    /// To be made before any thread that is not to receive SIGTERM or SIGHUP. The guest has `boot_timeout` from now to get ready.
    pub fn new(machine: &Arc<Machine>, ended: EventFd, boot_timeout: Duration) -> Result<Self, Error> {
        let mut boot_timer = TimerFd::new().map_err(Error::Timer)?;
        boot_timer.reset(boot_timeout, None).map_err(Error::Timer)?;
        let sources = Sources {
            machine: Arc::clone(machine),
            ended,
            sigterm: signals::receive(libc::SIGTERM).map_err(Error::Signal)?,
            sighup: signals::receive(libc::SIGHUP).map_err(Error::Signal)?,
            boot_timer,
            goodbye_timer: TimerFd::new().map_err(Error::Timer)?,
            goodbye_said: false,
        };
        let mut manager = EventManager::new_with_capacity(READY_CAPACITY).map_err(Error::Wait)?;
        manager.add_subscriber(sources);
        Ok(Self { manager })
    }

    /// Waits for events and handles them.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.manager.run().map(drop).map_err(Error::Wait)
    }
}

impl MutEventSubscriber for Sources {
    fn init(&mut self, ops: &mut EventOps) {
        let own = [
            Events::with_data(&self.ended, ENDED, EventSet::IN),
            Events::with_data(&self.sigterm, SIGTERM, EventSet::IN),
            Events::with_data(&self.sighup, SIGHUP, EventSet::IN),
            Events::with_data(&self.boot_timer, BOOT_TIMER, EventSet::IN),
            Events::with_data(&self.goodbye_timer, GOODBYE_TIMER, EventSet::IN),
        ];
        let devices = self.machine.devices();
        let wakes = devices.wake_fds().map(|(slot, fd)| {
            let token = FIRST_SLOT + u32::try_from(slot).expect("few slots");
            Events::with_data_raw(fd.as_raw_fd(), token, EventSet::IN)
        });
        for events in own.into_iter().chain(wakes) {
            ops.add(events).expect("all descriptors are open and different");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            // Readable for good: the caller sees the reason.
            ENDED => {}
            SIGTERM => {
                self.machine.devices().vsock.device.shutdown();
                // Once is enough, and the signal stays pending.
                let _ = ops.remove(Events::empty(&self.sigterm));
            }
            SIGHUP => {
                // What it says besides that it came does not matter.
                let _ = rustix::io::read(&self.sighup, &mut [0; size_of::<libc::signalfd_siginfo>()]);
                self.machine.devices().refresh();
            }
            BOOT_TIMER => {
                self.give_up_unless_ready();
                let _ = ops.remove(Events::empty(&self.boot_timer));
            }
            GOODBYE_TIMER => self.machine.end(Exit::Forced),
            token => self.machine.devices().ready((token - FIRST_SLOT) as usize),
        }
        self.arm_goodbye_timer();
    }
}

impl Sources {
    fn give_up_unless_ready(&self) {
        if !self.machine.has_passed(Mark::Ready) {
            self.machine.end(Exit::NotReady { console: self.machine.console_tail() });
        }
    }

    /// Starts the timer when the guest has been asked to end, by SIGTERM or for being idle.
    fn arm_goodbye_timer(&mut self) {
        if !self.goodbye_said && self.machine.devices().vsock.device.goodbye_said() {
            self.goodbye_said = true;
            if self.goodbye_timer.reset(GOODBYE_TIMEOUT, None).is_err() {
                self.machine.end(Exit::Forced);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::config;
    use crate::ioapic::IoApic;
    use crate::layout;
    use crate::machine::Devices;
    use crate::virtio::mmio::Mmio;
    use crate::virtio::vsock::Vsock;
    use crate::virtio::{Interrupt, driver};

    const TIMEOUT: Duration = Duration::from_millis(1);
    const READY: u8 = 4;

    /// What becomes of a guest that writes `said` to the mark port, after its time to get ready.
    fn end_of_guest(said: &[u8]) -> Option<Exit> {
        let vsock = config::Vsock {
            listeners: Vec::new(),
            outbound: Vec::new(),
            idle_timeout: None,
            goodbye: (1, Vec::new()),
        };
        let vsock = Box::new(Vsock::new(vsock).unwrap());
        let vsock = Mmio::new(vsock, driver::memory(1, 1), Interrupt::new(|| ()));
        let devices = Devices { vsock, others: Vec::new() };
        let ended = EventFd::new(EFD_NONBLOCK).unwrap();
        let machine = Machine::new(
            devices,
            Arc::new(IoApic::new(24, |_| ())),
            tempfile::tempfile().unwrap(),
            tempfile::tempfile().unwrap(),
            ended.try_clone().unwrap(),
        );
        let machine = Arc::new(machine);
        let mut event_loop = EventLoop::new(&machine, ended, TIMEOUT).unwrap();
        machine.write_port(layout::SERIAL.start, b"x");
        machine.write_port(u16::from(layout::MARK_PORT), said);
        // Long enough for the timer, so that one turn sees all there is.
        sleep(TIMEOUT * 10);
        event_loop.turn().unwrap();
        machine.exit().cloned()
    }

    #[test]
    fn a_guest_that_does_not_get_ready_is_given_up() {
        assert_eq!(end_of_guest(&[READY - 1]), Some(Exit::NotReady { console: "x".into() }));
        assert_eq!(end_of_guest(&[READY]), None);
    }
}
