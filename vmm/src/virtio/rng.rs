//! The entropy device: random bytes from the host's kernel.
//! It does not hold or mix entropy of its own. Source: virtio 1.2, 5.4 "Entropy Device".

use rustix::rand::{GetRandomFlags, getrandom};

use super::{BrokenQueue, Device, Memory, Profile, Queue};

/// virtio 1.2, 5.4.1 "Device ID".
const DEVICE_ID: u32 = 4;
const QUEUE_SIZE: u16 = 8;
/// The most bytes for one request, whatever its buffers would take; the driver asks again.
const BYTES_MAX: usize = 256;
/// The most requests in one call. The driver sends one at a time; only one that fills the queue again and again
/// while it is served gets there, and then it is not served any more.
const REQUESTS_MAX: usize = 64;

/// The queue is there between activation and reset.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<(Memory, Queue)>,
}

impl Device for Rng {
    fn profile(&self) -> Profile {
        Profile { id: DEVICE_ID, features: 0, queue_sizes: &[QUEUE_SIZE] }
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        let [queue] = <[Queue; 1]>::try_from(queues).expect("as many as in the profile");
        self.active = Some((memory, queue));
    }

    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        let Some((memory, queue)) = &mut self.active else { return Ok(()) };
        queue.mute_kicks(memory)?;
        for _ in 0..REQUESTS_MAX {
            let Some(mut chain) = queue.pop(memory)? else {
                if queue.unmute_kicks(memory)? {
                    continue;
                }
                return queue.notify(memory);
            };
            let mut bytes = [0; BYTES_MAX];
            let length = chain.writer.remaining().min(BYTES_MAX);
            // Fails before the host has gathered its first entropy, which is long over; none is what is there.
            let count = getrandom(&mut bytes[..length], GetRandomFlags::NONBLOCK).unwrap_or(0);
            assert!(chain.writer.write(&bytes[..count]), "there is room by the lines above");
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
    use super::*;
    use crate::virtio::driver::{self, Driver};

    fn start() -> (Rng, Driver) {
        let memory = driver::memory(1, QUEUE_SIZE);
        let (driver, queue) = Driver::new(&memory, 0, QUEUE_SIZE);
        let mut rng = Rng::default();
        rng.activate(memory, vec![queue]);
        (rng, driver)
    }

    #[test]
    fn every_request_gets_other_bytes() {
        let (mut rng, mut driver) = start();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            driver.offer(&[], &[16, 16]);
            assert!(driver.wants_kick());
            rng.kick(0).unwrap();
            let (_, bytes) = driver.take_used().unwrap();
            assert_eq!(bytes.len(), 32);
            assert!(seen.insert(bytes));
        }
    }

    #[test]
    fn a_request_gets_as_much_as_it_has_room_for_up_to_the_limit() {
        let (mut rng, mut driver) = start();
        for (room, given) in [(0, 0), (1, 1), (256, 256), (257, 256), (65536, 256)] {
            driver.offer(&[], &[room]);
            rng.kick(0).unwrap();
            assert_eq!(driver.take_used().unwrap().1.len(), given);
        }
        driver.offer(&[b"not for writing"], &[]);
        rng.kick(0).unwrap();
        assert_eq!(driver.take_used().unwrap().1, []);
    }

    #[test]
    fn a_broken_chain_stops_it() {
        let (mut rng, mut driver) = start();
        driver.publish(QUEUE_SIZE);
        assert!(rng.kick(0).is_err());
        rng.reset();
        rng.kick(0).unwrap();
    }
}
