//! How many streams whoever opens them may have, and what may be buffered for them.
//! It owns the limits and what is used of them: each listener has its own, and the guest has, so that none can use up
//! another's. It does not know of streams.

/// Streams of one listener at a time.
pub const LISTENER_STREAMS_MAX: usize = 1024;
/// Streams at a time that the guest has opened; a build or a browser has hundreds.
pub const GUEST_STREAMS_MAX: usize = 4096;
/// What may be buffered for all streams of a listener together, and for all of the guest's own: what the guest has been told
/// that there is room for. For the guest's own the host's kernel buffers twice as much in front of it.
pub const BUFFERED_MAX: u32 = 64 << 20;
/// What the guest may send on a stream before the host takes any of it: two of the largest packets, so that one can be on its
/// way while the other is written.
pub const BUF_ALLOC: u32 = 128 << 10;
/// The same when there are so many streams that `BUF_ALLOC` for each would be too much: slower, but each has it.
pub const BUF_ALLOC_MIN: u32 = 8 << 10;

const _: () = assert!(GUEST_STREAMS_MAX as u64 * BUF_ALLOC_MIN as u64 <= BUFFERED_MAX as u64);
const _: () = assert!(LISTENER_STREAMS_MAX <= GUEST_STREAMS_MAX);

/// Who has opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Guest,
    /// A client of the listener with this index.
    Listener(usize),
    /// The device itself, to ask the guest to end; that always has its place.
    Device,
}

/// The quotas of all.
#[derive(Debug)]
pub struct Quotas {
    guest: Quota,
    listeners: Vec<Quota>,
}

impl Quotas {
    pub fn new(guest_max: usize, listeners: usize) -> Self {
        let listener = || Quota::new(LISTENER_STREAMS_MAX);
        Self {
            guest: Quota::new(guest_max.min(GUEST_STREAMS_MAX)),
            listeners: std::iter::repeat_with(listener).take(listeners).collect(),
        }
    }

    pub fn has_place(&self, origin: Origin) -> bool {
        match origin {
            Origin::Guest => self.guest.has_place(),
            Origin::Listener(index) => self.listeners.get(index).is_some_and(Quota::has_place),
            Origin::Device => true,
        }
    }

    /// No client of a listener has a stream.
    pub fn is_without_clients(&self) -> bool {
        self.listeners.iter().all(|quota| quota.streams == 0)
    }

    /// Takes a place and returns the size of the buffer that goes with it; `None` if there is none.
    pub fn take(&mut self, origin: Origin) -> Option<u32> {
        match origin {
            Origin::Guest => self.guest.take(),
            Origin::Listener(index) => self.listeners.get_mut(index)?.take(),
            Origin::Device => Some(BUF_ALLOC),
        }
    }

    /// The place is free again.
    pub fn give_back(&mut self, origin: Origin, buf_alloc: u32) {
        match origin {
            Origin::Guest => self.guest.give_back(buf_alloc),
            Origin::Listener(index) => self.listeners[index].give_back(buf_alloc),
            Origin::Device => {}
        }
    }
}

#[derive(Debug)]
struct Quota {
    streams_max: usize,
    streams: usize,
    /// The buffers of all the streams.
    promised: u32,
}

impl Quota {
    fn new(streams_max: usize) -> Self {
        Self { streams_max, streams: 0, promised: 0 }
    }

    fn has_place(&self) -> bool {
        self.streams < self.streams_max
    }

    fn take(&mut self) -> Option<u32> {
        if !self.has_place() {
            return None;
        }
        self.streams += 1;
        let places = u32::try_from(self.streams_max - self.streams).expect("a few thousand");
        let left = BUFFERED_MAX - self.promised - places * BUF_ALLOC_MIN;
        let buf_alloc = if left >= BUF_ALLOC { BUF_ALLOC } else { BUF_ALLOC_MIN };
        self.promised += buf_alloc;
        Some(buf_alloc)
    }

    fn give_back(&mut self, buf_alloc: u32) {
        self.streams -= 1;
        self.promised -= buf_alloc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_streams_have_large_buffers_and_every_one_has_some() {
        let mut quotas = Quotas::new(GUEST_STREAMS_MAX, 1);
        let sizes: Vec<u32> = std::iter::from_fn(|| quotas.take(Origin::Guest)).collect();
        assert_eq!((sizes.len(), sizes[0]), (GUEST_STREAMS_MAX, BUF_ALLOC));
        assert!(sizes.iter().sum::<u32>() <= BUFFERED_MAX);
        assert!(sizes.is_sorted_by(|one, next| one >= next) && sizes.ends_with(&[BUF_ALLOC_MIN]));
        quotas.give_back(Origin::Guest, BUF_ALLOC_MIN);
        assert_eq!(quotas.take(Origin::Guest), Some(BUF_ALLOC_MIN));
        quotas.give_back(Origin::Guest, BUF_ALLOC);
        assert_eq!(quotas.take(Origin::Guest), Some(BUF_ALLOC));
    }

    #[test]
    fn what_one_uses_up_the_others_have() {
        let mut quotas = Quotas::new(3, 2);
        assert_eq!(std::iter::from_fn(|| quotas.take(Origin::Guest)).count(), 3);
        assert_eq!(std::iter::from_fn(|| quotas.take(Origin::Listener(1))).count(), LISTENER_STREAMS_MAX);
        assert!(!quotas.has_place(Origin::Guest) && !quotas.has_place(Origin::Listener(1)));
        assert_eq!(quotas.take(Origin::Listener(0)), Some(BUF_ALLOC));
        assert_eq!((quotas.take(Origin::Device), quotas.take(Origin::Listener(2))), (Some(BUF_ALLOC), None));
    }
}
