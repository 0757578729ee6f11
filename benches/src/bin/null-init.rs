//! The baseline's guest: an init that restarts the machine as soon as it runs. QEMU ends then.
//! It prepares and cleans up nothing, as there is nothing.

use rustix::system::{RebootCommand, reboot};

fn main() {
    // Not where somebody tries it out as root.
    if rustix::process::getpid().as_raw_nonzero().get() == 1 {
        let _ = reboot(RebootCommand::Restart);
    }
}
