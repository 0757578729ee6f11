//! Every guest physical address and interrupt line, in one place.
//! It owns where things are; it does not put anything there.

use std::ops::Range;

use vm_memory::GuestAddress;

/// Page tables, descriptor table and entry code for the first instructions; the kernel soon uses its own.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
pub const BOOT_STUB: GuestAddress = GuestAddress(0x600);
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
pub const BOOT_PML4: GuestAddress = GuestAddress(0x9000);
pub const BOOT_PDPT: GuestAddress = GuestAddress(0xa000);
pub const BOOT_PD: GuestAddress = GuestAddress(0xb000);
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest kernel command line, with its NUL (x86's COMMAND_LINE_SIZE).
pub const CMDLINE_MAX: usize = 2048;
/// The last KiB of base memory is one of the places where the kernel looks for the MP floating pointer.
pub const MP_POINTER: GuestAddress = GuestAddress(0x9_fc00);
pub const BASE_MEMORY_END: u64 = MP_POINTER.0;
/// The table itself, in what would be the BIOS ROM: memory that is not offered to the kernel as RAM.
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// RAM ends here and goes on at 4 GiB; device registers are in between.
pub const GAP: Range<u64> = 0xd000_0000..0x1_0000_0000;
pub const MMIO_BASE: u64 = GAP.start;
pub const MMIO_SLOT_SIZE: u64 = 0x1000;
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
pub const IOAPIC_SIZE: u64 = 0x1000;
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// Pins 0 to 4 are left alone: the kernel has its own ideas of what is on them.
pub const IRQ_BASE: u8 = 5;
/// The most pins of the IO-APIC; a machine has as many as its devices need, see `pins`.
pub const IOAPIC_PINS: u8 = 24;
/// Devices that fit: one interrupt line each.
pub const SLOTS_MAX: u8 = IOAPIC_PINS - IRQ_BASE;

/// The device in this slot is not on the kernel's command line: whoever wants it names it to the kernel later.
pub const LATE_SLOT: u8 = 1;

/// First port of the serial line and the number of its ports.
pub const SERIAL: Range<u16> = 0x3f8..0x400;
/// The guest writes one byte here to mark a point of its start, or its end.
pub const MARK_PORT: u8 = 0xf4;

/// The kernel is told of this much memory; it initialises all of what it is told before it starts init, which
/// takes longer than everything else in a large guest. The rest is added while the agent is already running.
pub const BOOT_MEMORY_MAX: u64 = 512 << 20;
/// Memory is hot-added in sections of this size (Linux `Documentation/admin-guide/mm/memory-hotplug.rst`).
pub const MEMORY_BLOCK: u64 = 128 << 20;

/// Each layer of a template begins at a multiple of this: the guest maps its pages by huge ones.
pub const LAYER_ALIGNMENT: u64 = 2 << 20;

/// The kernel needs 2 MiB of boot memory for each 128 MiB of layers, also for those that are never used. That is a quarter of it.
const LAYERS_PER_BOOT_MEMORY: u64 = 16;

/// Memory that is present when the kernel starts.
#[must_use]
pub fn boot_memory(size: u64) -> u64 {
    size.min(BOOT_MEMORY_MAX)
}

/// The most bytes that the layers of a machine with `size` bytes of memory can have in all.
#[must_use]
pub fn layers_max(size: u64) -> u64 {
    boot_memory(size) * LAYERS_PER_BOOT_MEMORY
}

/// RAM as (start, length): below the gap, and above 4 GiB what does not fit there.
#[must_use]
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(GAP.start);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((GAP.end, size - low));
    }
    ranges
}

/// The part of `ram` that the kernel learns of later, as (start, length) in whole memory blocks.
#[must_use]
pub fn hot_ranges(memory_mib: u32) -> Vec<(u64, u64)> {
    let size = u64::from(memory_mib) << 20;
    let boot = boot_memory(size);
    ram(size)
        .into_iter()
        .map(|(start, length)| {
            let end = start + length / MEMORY_BLOCK * MEMORY_BLOCK;
            let start = start.max(boot);
            (start, end.saturating_sub(start))
        })
        .filter(|&(_, length)| length > 0)
        .collect()
}

/// The layers of a template as (start, length), behind the last memory block, and never next to it: no range that begins in
/// RAM ends in a layer.
#[must_use]
pub fn layers(memory_size: u64, lengths: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let end = ram(memory_size).iter().map(|(start, length)| start + length).fold(GAP.end, u64::max);
    let mut next = (end + 1).next_multiple_of(MEMORY_BLOCK);
    let place = |length: u64| {
        let start = next;
        next += length.next_multiple_of(LAYER_ALIGNMENT);
        (start, length)
    };
    lengths.into_iter().map(place).collect()
}

/// First register of the device in `slot`, and its interrupt line.
#[must_use]
pub fn slot(slot: u8) -> (u64, u8) {
    assert!(slot < SLOTS_MAX, "the configuration limits the number of devices");
    (MMIO_BASE + u64::from(slot) * MMIO_SLOT_SIZE, IRQ_BASE + slot)
}

/// Pins of the IO-APIC of a machine with devices in `slots` slots: the kernel reads and writes each of them several times at
/// start, and each time is a VM exit.
#[must_use]
pub fn pins(slots: u8) -> u8 {
    IRQ_BASE + slots
}

/// The slot and register offset at `address`, if it is one of the device slots.
#[must_use]
pub fn slot_at(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(MMIO_BASE)?;
    let slot = usize::try_from(offset / MMIO_SLOT_SIZE).ok()?;
    (slot < usize::from(SLOTS_MAX)).then_some((slot, offset % MMIO_SLOT_SIZE))
}

const _: () = assert!(BOOT_PD.0 + 0x1000 <= CMDLINE.0 && CMDLINE.0 + (CMDLINE_MAX as u64) < BASE_MEMORY_END);
const _: () = assert!(MMIO_BASE + SLOTS_MAX as u64 * MMIO_SLOT_SIZE <= IOAPIC_BASE);
const _: () = assert!(GAP.start.is_multiple_of(MEMORY_BLOCK) && BOOT_MEMORY_MAX.is_multiple_of(MEMORY_BLOCK));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_all_there_at_start() {
        assert_eq!(ram(512 << 20), [(0, 512 << 20)]);
        assert_eq!(hot_ranges(512), []);
        assert_eq!(hot_ranges(600), [], "less than a block is not added");
    }

    #[test]
    fn large_memory_goes_around_the_gap() {
        assert_eq!(ram(8 << 30), [(0, GAP.start), (GAP.end, (8 << 30) - GAP.start)]);
        let hot: u64 = hot_ranges(8 << 10).iter().map(|&(_, length)| length).sum();
        assert_eq!(hot, (8 << 30) - BOOT_MEMORY_MAX);
        for (start, length) in hot_ranges(8 << 10) {
            assert_eq!((start % MEMORY_BLOCK, length % MEMORY_BLOCK), (0, 0));
        }
    }

    #[test]
    fn layers_are_behind_all_memory_and_touch_none() {
        for size in [512 << 20, GAP.start, 8 << 30, (8 << 30) + (1 << 20)] {
            let end = ram(size).iter().map(|(start, length)| start + length).max().unwrap();
            let layers = layers(size, [1, LAYER_ALIGNMENT, 5000]);
            assert!(layers[0].0 > end && layers[0].0 >= GAP.end && layers[0].0.is_multiple_of(MEMORY_BLOCK));
            assert_eq!(layers[1], (layers[0].0 + LAYER_ALIGNMENT, LAYER_ALIGNMENT));
            assert_eq!(layers[2], (layers[1].0 + LAYER_ALIGNMENT, 5000));
        }
    }

    #[test]
    fn slots_are_found_by_address() {
        for n in 0..SLOTS_MAX {
            let (address, _) = slot(n);
            assert_eq!(slot_at(address + 0x70), Some((usize::from(n), 0x70)));
        }
        assert_eq!(slot_at(MMIO_BASE - 1), None);
        assert_eq!(slot_at(MMIO_BASE + u64::from(SLOTS_MAX) * MMIO_SLOT_SIZE), None);
        assert_eq!(slot_at(u64::MAX), None);
    }
}
