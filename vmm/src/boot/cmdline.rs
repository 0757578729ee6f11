//! The kernel command line.
//! It owns every option the guest kernel is started with; a measured reason stands with each.

use std::fmt::Write;

use crate::layout;

/// The options that never change.
/// - `earlyprintk`: the serial line without a driver. With `quiet`, which has to come before it, it carries errors
///   and panics only, so it costs nothing until the guest has something to say; `keep` so that it outlives the boot.
/// - `panic=-1 reboot=t`: a panic ends in a triple fault at once, which the VMM sees.
/// - `tsc=reliable`, `no_timer_check`: KVM's clocks need no watchdog and no calibration.
/// - `cryptomgr.notests`, `random.trust_cpu=on`: no self-tests and no waiting for entropy at start.
/// - `rdinit=/init`: the initramfs is the root until init has made another.
const FIXED: &str = "earlyprintk=serial,ttyS0,115200,keep panic=-1 reboot=t tsc=reliable no_timer_check \
                     cryptomgr.notests random.trust_cpu=on rdinit=/init";

/// The command line of a machine with `slots` virtio devices.
pub fn build(verbose_console: bool, slots: u8) -> String {
    let level = if verbose_console { "ignore_loglevel" } else { "quiet" };
    let mut cmdline = format!("{level} {FIXED}");
    for n in 0..slots {
        let (address, irq) = layout::slot(n);
        // Linux Documentation/admin-guide/kernel-parameters.txt, "virtio_mmio.device"
        write!(cmdline, " virtio_mmio.device=4K@{address:#x}:{irq}").expect("a String takes everything");
    }
    cmdline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_in_order() {
        let cmdline = build(false, 2);
        assert!(cmdline.ends_with(" virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"));
    }

    #[test]
    fn the_level_comes_before_the_console() {
        assert!(build(false, 0).starts_with("quiet earlyprintk="));
        assert!(build(true, 0).starts_with("ignore_loglevel earlyprintk="));
    }

    #[test]
    fn the_longest_one_fits() {
        assert!(build(true, layout::SLOTS_MAX).len() < layout::CMDLINE_MAX);
    }
}
