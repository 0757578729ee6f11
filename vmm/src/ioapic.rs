//! The IO-APIC: turns a device's interrupt line into a message for a local APIC, which KVM delivers.
//! It owns the redirection table. The local APICs are KVM's (split irqchip), so a line that no table entry of the
//! kernel names costs nothing. Only edges exist: no device here holds a line up.
//! Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller, 3.0 "Internal Registers".

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::kvm_msi;

use crate::layout;

const REGISTER_SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR belong to the hardware; the guest's writes do not change them.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// The first version without an EOI register.
const VERSION: u32 = 0x11;

/// Shared by the vCPUs, which program it, and the devices, which raise lines; no call waits for another.
pub struct IoApic {
    select: AtomicU32,
    id: AtomicU32,
    /// An entry for each pin.
    table: Box<[AtomicU64]>,
    /// Lines raised while masked, delivered when they are unmasked.
    pending: AtomicU32,
    deliver: Box<dyn Fn(kvm_msi) + Send + Sync>,
}

impl IoApic {
    /// With `pins` lines, 32 at most; `deliver` sends a message to the local APICs.
    pub fn new(pins: u8, deliver: impl Fn(kvm_msi) + Send + Sync + 'static) -> Self {
        Self {
            select: AtomicU32::new(0),
            id: AtomicU32::new(0),
            table: (0..pins).map(|_| AtomicU64::new(MASKED)).collect(),
            pending: AtomicU32::new(0),
            deliver: Box::new(deliver),
        }
    }

    /// An edge on line `pin`.
    pub fn raise(&self, pin: u8) {
        let entry = self.table[usize::from(pin)].load(Ordering::SeqCst);
        if entry & MASKED == 0 {
            (self.deliver)(message(entry));
            return;
        }
        self.pending.fetch_or(1 << pin, Ordering::SeqCst);
        // The guest may have unmasked the pin between the two steps above and then has not seen it pending.
        if self.table[usize::from(pin)].load(Ordering::SeqCst) & MASKED == 0 {
            self.deliver_pending(usize::from(pin));
        }
    }

    /// The guest reads the 32-bit register at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            REGISTER_SELECT => self.select.load(Ordering::SeqCst),
            WINDOW => self.read_selected(),
            _ => 0,
        }
    }

    /// The guest writes the 32-bit register at `offset`; what is no register is ignored.
    pub fn write(&self, offset: u64, value: u32) {
        match offset {
            REGISTER_SELECT => self.select.store(value & 0xff, Ordering::SeqCst),
            WINDOW => self.write_selected(value),
            _ => {}
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select.load(Ordering::SeqCst) {
            0x00 | 0x02 => self.id.load(Ordering::SeqCst),
            0x01 => (u32::try_from(self.table.len()).expect("few pins") - 1) << 16 | VERSION,
            register => match self.redirection(register) {
                Some((pin, shift)) => {
                    let entry = self.table[pin].load(Ordering::SeqCst) >> shift;
                    u32::try_from(entry & u64::from(u32::MAX)).expect("masked to 32 bits")
                }
                None => 0,
            },
        }
    }

    fn write_selected(&self, value: u32) {
        let register = self.select.load(Ordering::SeqCst);
        if register == 0 {
            self.id.store(value & 0x0f00_0000, Ordering::SeqCst);
        }
        let Some((pin, shift)) = self.redirection(register) else { return };
        let changeable = (u64::from(u32::MAX) << shift) & !READ_ONLY;
        let new = u64::from(value) << shift & changeable;
        let mut entry = 0;
        // The closure always has an answer, so the update cannot fail.
        let _ = self.table[pin].fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
            entry = old & !changeable | new;
            Some(entry)
        });
        if entry & MASKED == 0 {
            self.deliver_pending(pin);
        }
    }

    /// The pin of a redirection register and how far its half of the entry is shifted.
    fn redirection(&self, register: u32) -> Option<(usize, u32)> {
        let index = register.checked_sub(0x10)?;
        let pin = usize::try_from(index / 2).ok()?;
        (pin < self.table.len()).then_some((pin, index % 2 * 32))
    }

    fn deliver_pending(&self, pin: usize) {
        let bit = 1 << pin;
        if self.pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
            (self.deliver)(message(self.table[pin].load(Ordering::SeqCst)));
        }
    }
}

/// A redirection entry as the message it stands for
/// (Intel SDM vol. 3A, "Message Signalled Interrupts": address and data register format).
fn message(entry: u64) -> kvm_msi {
    let bits = |from: u32, count: u32| u32::try_from(entry >> from & ((1 << count) - 1)).expect("few bits");
    let (vector, delivery_mode, destination_mode) = (bits(0, 8), bits(8, 3), bits(11, 1));
    let destination = bits(56, 8);
    kvm_msi {
        address_lo: u32::try_from(layout::LAPIC_BASE).expect("below 4 GiB")
            | destination << 12
            | destination_mode << 2,
        address_hi: 0,
        data: delivery_mode << 8 | vector,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn apic() -> (IoApic, Arc<Mutex<Vec<u32>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&sent);
        (IoApic::new(24, move |msi| log.lock().unwrap().push(msi.data)), sent)
    }

    fn program(apic: &IoApic, pin: u32, low: u32) {
        apic.write(REGISTER_SELECT, 0x10 + pin * 2);
        apic.write(WINDOW, low);
    }

    #[test]
    fn an_unmasked_line_is_delivered() {
        let (apic, sent) = apic();
        program(&apic, 5, 0x31);
        apic.raise(5);
        assert_eq!(*sent.lock().unwrap(), [0x31]);
    }

    #[test]
    fn an_edge_on_a_masked_line_waits() {
        let (apic, sent) = apic();
        apic.raise(6);
        apic.raise(6);
        assert!(sent.lock().unwrap().is_empty());
        program(&apic, 6, 0x42);
        assert_eq!(*sent.lock().unwrap(), [0x42], "once");
    }

    #[test]
    fn every_register_can_be_poked() {
        let (apic, _) = apic();
        for select in 0..=0x1ff {
            apic.write(REGISTER_SELECT, select);
            apic.write(WINDOW, u32::MAX);
            let _ = apic.read(WINDOW);
        }
        for offset in 0..layout::IOAPIC_SIZE {
            apic.write(offset, u32::MAX);
            let _ = apic.read(offset);
        }
    }
}
