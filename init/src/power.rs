//! The end of the machine.
//! It owns what must be on the disk by then, and the ways to switch off. It ends no processes: the server does.

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::mount::FsPickFlags;
use rustix::system::RebootCommand;

use crate::mark::{Mark, Port};

/// Writes everything out and leaves the disk as an unmount would: the next start has no journal to replay.
pub fn save(disk: &OwnedFd) {
    // The shares, too.
    rustix::fs::sync();
    if let Err(error) = make_read_only(disk) {
        crate::log(format_args!("close the disk: {error:#}"));
    }
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
