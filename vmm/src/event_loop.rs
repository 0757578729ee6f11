//! Waits for what no vCPU causes: host sockets, SIGTERM, the timer for a guest that does not end, the end.
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
use crate::signals;

/// A guest that was asked to end has this long before it is cut off.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// One subscriber with a handful of descriptors.
const READY_CAPACITY: usize = 32;

/// What the tokens in epoll stand for; device slots come behind.
const ENDED: u32 = 0;
const SIGTERM: u32 = 1;
const CUT_OFF: u32 = 2;
const FIRST_SLOT: u32 = 3;

/// Why the loop cannot wait.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("watch for SIGTERM")]
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
    cut_off: TimerFd,
    goodbye_said: bool,
}

impl EventLoop {
    /// To be made before any thread that is not to receive SIGTERM.
    pub fn new(machine: &Arc<Machine>, ended: EventFd) -> Result<Self, Error> {
        let sources = Sources {
            machine: Arc::clone(machine),
            ended,
            sigterm: signals::sigterm().map_err(Error::Signal)?,
            cut_off: TimerFd::new().map_err(Error::Timer)?,
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
            Events::with_data(&self.cut_off, CUT_OFF, EventSet::IN),
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
            CUT_OFF => self.machine.end(Exit::Forced),
            token => self.machine.devices().ready((token - FIRST_SLOT) as usize),
        }
        self.arm_cut_off();
    }
}

impl Sources {
    /// Starts the timer when the guest has been asked to end, by SIGTERM or for being idle.
    fn arm_cut_off(&mut self) {
        if !self.goodbye_said && self.machine.devices().vsock.device.goodbye_said() {
            self.goodbye_said = true;
            if self.cut_off.reset(GOODBYE_TIMEOUT, None).is_err() {
                self.machine.end(Exit::Forced);
            }
        }
    }
}
