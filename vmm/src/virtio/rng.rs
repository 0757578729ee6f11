//! The entropy device: random bytes from the host's kernel.
//! It does not hold or mix entropy of its own. Source: virtio 1.2, 5.4 "Entropy Device".

use rustix::rand::{GetRandomFlags, getrandom};

use super::{BrokenQueue, Device, Memory, Profile, Queue};

/// The most bytes for one request, whatever its buffers would take; the driver asks again.
const BYTES_MAX: usize = 256;

/// A device without state; the queue is there between activation and reset.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<(Memory, Queue)>,
}

impl Device for Rng {
    fn profile(&self) -> Profile {
        Profile { id: 4, features: 0, queue_sizes: &[8] }
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        self.active = queues.into_iter().next().map(|queue| (memory, queue));
    }

    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        let Some((memory, queue)) = &mut self.active else { return Ok(()) };
        loop {
            let Some(mut chain) = queue.pop(memory)? else {
                if queue.unmute_kicks(memory)? {
                    continue;
                }
                return queue.notify(memory);
            };
            let mut bytes = [0; BYTES_MAX];
            let length = chain.writer.remaining().min(BYTES_MAX);
            // The host's pool is filled long before anyone starts a machine; without bytes the driver tries again.
            let count = getrandom(&mut bytes[..length], GetRandomFlags::NONBLOCK).unwrap_or(0);
            if !chain.writer.write(&bytes[..count]) {
                return Err(BrokenQueue("buffer shrank"));
            }
            queue.complete(memory, chain)?;
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }
}
