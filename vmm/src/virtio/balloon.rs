//! The balloon, or the one part of it that is of use: the guest reports free memory, and the host takes it back.
//! It never asks the guest for memory, so the queues that would answer that stay empty. How pages are given back is the
//! chain's; that what is reported is really free is the guest's own business.
//! Source: virtio 1.2, 5.5 "Traditional Memory Balloon Device".

use super::{BrokenQueue, Device, Memory, Profile, Queue};

/// virtio 1.2, 5.5.1 "Device ID".
const DEVICE_ID: u32 = 5;
/// 5.5.3 "Feature bits", VIRTIO_BALLOON_F_PAGE_REPORTING.
const PAGE_REPORTING: u64 = 1 << 5;
/// Linux numbers only the queues that there are (drivers/virtio/virtio_balloon.c, `init_vqs`): inflate, deflate, reporting.
const REPORTING_QUEUE: usize = 2;
const UNUSED_QUEUE_SIZE: u16 = 2;
/// As many ranges as Linux puts into a report (include/linux/page_reporting.h, PAGE_REPORTING_CAPACITY).
const QUEUE_SIZE: u16 = 32;
/// The most memory in a report: that many of the buddy allocator's largest pieces. It bounds how long the others wait.
const REPORT_MAX: usize = (QUEUE_SIZE as usize) << 22;
/// The most reports in one call. The driver waits for the answer to one before it sends the next.
const REPORTS_MAX: usize = 4;

/// The queue is there between activation and reset.
#[derive(Debug, Default)]
pub struct Balloon {
    active: Option<(Memory, Queue)>,
}

impl Device for Balloon {
    fn profile(&self) -> Profile {
        let queue_sizes = &[UNUSED_QUEUE_SIZE, UNUSED_QUEUE_SIZE, QUEUE_SIZE];
        Profile { id: DEVICE_ID, features: PAGE_REPORTING, queue_sizes }
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        let [_, _, reporting] = <[Queue; 3]>::try_from(queues).expect("as many as in the profile");
        self.active = reporting.is_set_up().then_some((memory, reporting));
    }

    fn kick(&mut self, index: usize) -> Result<(), BrokenQueue> {
        let Some((memory, queue)) = self.active.as_mut().filter(|_| index == REPORTING_QUEUE) else {
            return Ok(());
        };
        queue.mute_kicks(memory)?;
        for _ in 0..REPORTS_MAX {
            let Some(chain) = queue.pop(memory)? else {
                if queue.unmute_kicks(memory)? {
                    continue;
                }
                return queue.notify(memory);
            };
            if chain.writer.remaining() > REPORT_MAX {
                return Err(BrokenQueue("report of more memory than the queue is for"));
            }
            chain.writer.give_back();
            queue.complete(memory, chain)?;
        }
        Err(BrokenQueue("the queue does not get empty"))
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::virtio::driver::{self, Driver};

    const PAGE: u64 = 4096;

    struct Guest {
        balloon: Balloon,
        driver: Driver,
        memory: Memory,
    }

    fn start() -> Guest {
        let memory = driver::memory(3, QUEUE_SIZE);
        let (_, inflate) = Driver::new(&memory, 0, UNUSED_QUEUE_SIZE);
        let (_, deflate) = Driver::new(&memory, 1, UNUSED_QUEUE_SIZE);
        let (driver, reporting) = Driver::new(&memory, 2, QUEUE_SIZE);
        let mut balloon = Balloon::default();
        balloon.activate(memory.clone(), vec![inflate, deflate, reporting]);
        Guest { balloon, driver, memory }
    }

    impl Guest {
        /// Fills some memory and reports a range of it; gives back which of the filled pages are empty then.
        fn report(&mut self, at: u64, length: u32) -> Vec<u64> {
            const PAGES: u64 = 16;
            let start = self.driver.buffer(1).0;
            assert!(start.is_multiple_of(PAGE));
            for page in 0..PAGES {
                self.memory.write_slice(&[7; 4096], GuestAddress(start + page * PAGE)).unwrap();
            }
            self.driver.describe(0, start + at, length, 2, 0);
            self.driver.publish(0);
            self.balloon.kick(REPORTING_QUEUE).unwrap();
            let byte = |page: u64| self.memory.read_obj::<u8>(GuestAddress(start + page * PAGE + 9)).unwrap();
            (0..PAGES).filter(|&page| byte(page) == 0).collect()
        }
    }

    #[test]
    fn what_is_reported_is_given_back_in_whole_pages() {
        for (at, length, empty) in [
            (0, 4096, vec![0]),
            (2 * PAGE, 3 * 4096, vec![2, 3, 4]),
            (PAGE, 4095, vec![]),
            (PAGE - 1, 4096, vec![]),
            (PAGE - 1, 4097, vec![1]),
            (1, 2 * 4096, vec![1]),
            (5, 0, vec![]),
        ] {
            assert_eq!(start().report(at, length), empty, "{at} {length}");
        }
    }

    #[test]
    fn report_after_report_is_answered() {
        let mut guest = start();
        for _ in 0..200 {
            guest.driver.offer(&[], &[4096, 8192]);
            assert!(guest.driver.wants_kick());
            guest.balloon.kick(REPORTING_QUEUE).unwrap();
            assert_eq!(guest.driver.take_used().unwrap().1, [], "nothing is written");
        }
    }

    #[test]
    fn the_other_queues_are_nobodys() {
        let mut guest = start();
        guest.driver.offer(&[], &[4096]);
        guest.balloon.kick(0).unwrap();
        guest.balloon.kick(1).unwrap();
        assert!(guest.driver.take_used().is_none());
    }

    #[test]
    fn a_driver_without_the_reporting_queue_gets_nothing() {
        let memory = driver::memory(3, QUEUE_SIZE);
        let unused = || {
            Queue::new(
                <virtio_queue::Queue as virtio_queue::QueueT>::new(QUEUE_SIZE).unwrap(),
                crate::virtio::Interrupt::new(|| ()),
            )
        };
        let mut balloon = Balloon::default();
        balloon.activate(memory, vec![unused(), unused(), unused()]);
        balloon.kick(REPORTING_QUEUE).unwrap();
    }

    /// The same memory may be in a report many times; the queue's tables and the report itself may be part of it.
    #[test]
    fn hostile_reports_are_bounded_or_harmless() {
        let mut guest = start();
        let everything = u32::try_from(guest.memory.last_addr().0 + 1).unwrap();
        guest.driver.describe(0, 0, everything, 2, 0);
        guest.driver.publish(0);
        // It has taken the rings away from under itself: they are zero now, which is a ring at rest.
        let _ = guest.balloon.kick(REPORTING_QUEUE);

        let mut guest = start();
        let pieces = u16::try_from(REPORT_MAX / (4 << 20)).unwrap();
        let length = u32::try_from(REPORT_MAX).unwrap() / u32::from(pieces - 1);
        for index in 0..pieces - 1 {
            guest.driver.describe(index, guest.driver.buffer(0).0, length + 4096, 3, index + 1);
        }
        guest.driver.describe(pieces - 1, guest.driver.buffer(0).0, 1, 2, 0);
        guest.driver.publish(0);
        assert!(guest.balloon.kick(REPORTING_QUEUE).is_err());

        let mut guest = start();
        guest.driver.describe(0, u64::MAX - 4096, 8192, 2, 0);
        guest.driver.publish(0);
        assert!(guest.balloon.kick(REPORTING_QUEUE).is_err(), "not memory");
        guest.balloon.reset();
        guest.balloon.kick(REPORTING_QUEUE).unwrap();

        let mut guest = start();
        guest.driver.offer(&[b"readable"], &[]);
        guest.balloon.kick(REPORTING_QUEUE).unwrap();
        for _ in 0..=REPORTS_MAX {
            guest.driver.offer(&[], &[4096]);
        }
        assert!(guest.balloon.kick(REPORTING_QUEUE).is_err(), "more than one at a time");
    }
}
