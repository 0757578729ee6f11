//! The descriptors that the process may have, and how they are shared out: what the guest opens of one kind must not keep it,
//! or a session, from another.
//! It owns the limit and its parts. Who opens something keeps to its part itself.

use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::virtio::vsock::{GUEST_STREAMS_MAX, LISTENER_STREAMS_MAX};

/// Those of the machine itself.
const MACHINE: usize = 256;
/// Those of the machine, the guest's streams, and the streams of sessions and of another listener.
const RESERVED: usize = MACHINE + GUEST_STREAMS_MAX + 2 * LISTENER_STREAMS_MAX;

/// The guest's files in shares have lower numbers than this.
pub fn below_for_files() -> RawFd {
    let limit = raise_limit();
    RawFd::try_from(limit - RESERVED.min(limit / 2)).unwrap_or(RawFd::MAX)
}

/// How many streams the guest can open at a time. On a host with a low limit the files leave half of it, and this leaves half
/// of that.
pub fn for_guest_streams() -> usize {
    GUEST_STREAMS_MAX.min(raise_limit() / 4)
}

/// Raises the soft limit on descriptors to the hard one and returns it.
fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = if raised.is_ok() { limit.maximum } else { limit.current };
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
