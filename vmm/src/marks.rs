//! Start-up marks: fixed points in time on the way from the command line to the exit code, always recorded.
//! A marks file is an array of 64-bit little-endian CLOCK_MONOTONIC nanoseconds, one slot per mark, 0 where
//! the point was not reached. It is written by the processes that pass the points; nothing here reads clocks
//! of the guest, so host and guest phases are on one axis.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::time::{ClockId, clock_gettime};

/// A point on the way, in the order in which they are usually passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    CliStart,
    VmmSpawned,
    VmmStart,
    VmCreated,
    FirstRun,
    KernelEntry,
    Init,
    WorkspaceMounted,
    Ready,
    AgentExec,
    FirstByte,
    ExitCode,
}

/// All marks with the names users see.
pub const MARKS: [(Mark, &str); 12] = [
    (Mark::CliStart, "cli start"),
    (Mark::VmmSpawned, "vmm spawned"),
    (Mark::VmmStart, "vmm start"),
    (Mark::VmCreated, "vm created"),
    (Mark::FirstRun, "first run"),
    (Mark::KernelEntry, "kernel entry"),
    (Mark::Init, "init"),
    (Mark::WorkspaceMounted, "workspace mounted"),
    (Mark::Ready, "ready"),
    (Mark::AgentExec, "agent exec"),
    (Mark::FirstByte, "first byte"),
    (Mark::ExitCode, "exit code"),
];

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of the host share.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at boot and is never negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Records that `mark` was passed at `at_ns`. A failure is ignored: timings are no reason to lose a sandbox.
pub fn record(file: &File, mark: Mark, at_ns: u64) {
    let _ = file.write_all_at(&at_ns.to_le_bytes(), mark as u64 * 8);
}

/// The recorded times in the order of `MARKS`, 0 for a point that was not reached.
///
/// # Errors
/// When the file cannot be read; a short file is not an error.
pub fn read(file: &File) -> io::Result<[u64; MARKS.len()]> {
    let mut bytes = [0; MARKS.len() * 8];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let mut times = [0; MARKS.len()];
    for (time, slot) in times.iter_mut().zip(bytes.chunks_exact(8)) {
        *time = u64::from_le_bytes(slot.try_into().expect("chunks are 8 bytes"));
    }
    Ok(times)
}
