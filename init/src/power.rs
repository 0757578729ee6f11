//! The end of the machine.
//! It owns what must be on the disk by then, and the ways to switch off. It ends no processes: the server does.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::mount::FsPickFlags;
use rustix::system::RebootCommand;

use crate::mark::{Mark, Port};
use crate::plan::DISK_DEVICE;

/// Discards are looked after this often, and no longer than that: a host may take its time, or not have them.
const DISCARDS_INTERVAL: Duration = Duration::from_millis(2);
const DISCARDS_MAX: Duration = Duration::from_secs(2);

/// Writes everything out and leaves the disk as an unmount would: the next start has no journal to replay.
pub fn save(disk: &OwnedFd) {
    // The shares, too.
    rustix::fs::sync();
    finish_discards();
    if let Err(error) = make_read_only(disk) {
        crate::log(format_args!("close the disk: {error:#}"));
    }
}

/// The kernel discards what was deleted after it has written that out, in the background. What it does not get round to is
/// never given back: the next start does not know of it.
fn finish_discards() {
    let start = Instant::now();
    let mut seen = None;
    while let Some((under_way, done)) = discards() {
        if under_way == 0 && seen == Some(done) || start.elapsed() > DISCARDS_MAX {
            break;
        }
        seen = Some(done);
        thread::sleep(DISCARDS_INTERVAL);
    }
}

/// How many requests of the disk are under way, and how many discards are done.
/// Linux Documentation/block/stat.rst.
fn discards() -> Option<(u64, u64)> {
    let device = DISK_DEVICE.strip_prefix("/dev/")?;
    let stat = std::fs::read_to_string(format!("/sys/block/{device}/stat")).ok()?;
    let field = |index| stat.split_ascii_whitespace().nth(index)?.parse().ok();
    Some((field(8)?, field(11)?))
}

/// Its mount point is out of sight, so it is picked by an open folder.
fn make_read_only(disk: &OwnedFd) -> Result<()> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = rustix::mount::fspick(disk, "", flags).context("pick")?;
    rustix::mount::fsconfig_set_flag(&context, "ro").context("set read-only")?;
    rustix::mount::fsconfig_reconfigure(&context).context("remount read-only")
}

/// Ends the machine, saved or not.
pub fn off() -> ! {
    if let Ok(port) = Port::open() {
        port.mark(Mark::PowerOff);
    }
    // The VMM did not listen. A restart is a triple fault here (`reboot=t`), which ends the machine as well; there is
    // no device that a power-off could switch.
    let _ = rustix::system::reboot(RebootCommand::Restart);
    crate::sys::exit(1)
}
