//! The kernel command line.
//! It owns every option the guest kernel is started with; a measured reason stands with each.

use std::fmt::Write;

use crate::layout;

/// The options that never change.
/// - `earlyprintk`: the serial line without a driver. With `quiet`, which has to come before it, it carries errors
///   and panics only, so it costs nothing until the guest has something to say; `keep` so that it outlives the boot.
/// - `panic=-1 reboot=t`: a panic ends in a triple fault at once, which the VMM sees.
/// - `tsc=reliable`: KVM's clock needs no watchdog.
/// - `noreplace-smp`: with one processor the kernel would take the lock prefixes out of 8192 instructions, and each
///   page of code it writes to becomes a copy. With more it never does. About 11 virtual ms.
/// - `retain_initrd`: freeing the initramfs fills it with a pattern first, which copies it: 3.7 virtual ms for 1.1 MB.
/// - `rodata=off`: to write-protect the kernel splits its mapping; 2.4 virtual ms, and root inside may do all anyway.
/// - `rdinit=/init`: the initramfs is the root until init has made another.
const FIXED: &str = "earlyprintk=serial,ttyS0,115200,keep panic=-1 reboot=t tsc=reliable \
                     noreplace-smp rodata=off retain_initrd rdinit=/init";

/// The command line of a machine with `slots` virtio devices, of which a late one is not told, and `layers` as (start, length).
pub fn build(verbose_console: bool, slots: u8, layers: &[(u64, u64)]) -> String {
    let level = if verbose_console { "ignore_loglevel" } else { "quiet" };
    let mut cmdline = format!("{level} {FIXED}");
    for n in (0..slots).filter(|&n| n != layout::LATE_SLOT) {
        let (address, irq) = layout::slot(n);
        // Linux Documentation/admin-guide/kernel-parameters.txt, "virtio_mmio.device"
        write!(cmdline, " virtio_mmio.device=4K@{address:#x}:{irq}").expect("a String takes everything");
    }
    // kernel-config/patches/layers.patch: the first start, and all lengths
    if let Some((start, _)) = layers.first() {
        write!(cmdline, " layers={start:#x}").expect("as above");
        layers.iter().for_each(|(_, length)| write!(cmdline, ",{length:#x}").expect("as above"));
    }
    cmdline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LAYERS_MAX;

    #[test]
    fn devices_are_listed_in_order() {
        let cmdline = build(false, 3, &[(1 << 32, 0x3000), (0x1_0020_0000, 0x1000)]);
        assert!(cmdline.ends_with(
            " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0002000:7 layers=0x100000000,0x3000,0x1000"
        ));
    }

    #[test]
    fn the_level_comes_before_the_console() {
        assert!(build(false, 0, &[]).starts_with("quiet earlyprintk="));
        assert!(build(true, 0, &[]).starts_with("ignore_loglevel earlyprintk="));
    }

    #[test]
    fn the_longest_one_fits() {
        let layers = [(u64::MAX, u64::MAX); LAYERS_MAX];
        assert!(build(true, layout::SLOTS_MAX, &layers).len() < layout::CMDLINE_MAX);
    }
}
