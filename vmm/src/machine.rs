//! What the vCPUs and the event loop share: devices, IO-APIC, console, marks and the end of it all.
//! It owns the one lock around the devices and decides which part answers a guest's access.
//! It does not run vCPUs or wait for events.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Console;
use crate::ioapic::IoApic;
use crate::layout;
use crate::marks::{self, Mark};
use crate::virtio::Device;
use crate::virtio::mmio::Mmio;
use crate::virtio::vsock::Vsock;

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Init has ended everything and said so.
    PoweredOff,
    /// The guest restarted its processor without a word.
    Reset,
    /// The guest kernel panicked; its last lines.
    Panicked { console: String },
    /// KVM cannot go on with the guest, and what it said.
    Crashed { reason: String, console: String },
    /// This KVM interprets kernel code instead of running it, so no stock kernel can start.
    UnsupportedKvm { reason: String },
    /// The guest was not ready in time; its kernel's last lines.
    NotReady { console: String },
    /// The guest did not end in time after it was asked to.
    Forced,
}

/// The bytes the guest writes to the mark port.
const MARK_POWER_OFF: u8 = 0x50;
const GUEST_MARKS: [(u8, Mark); 5] = [
    (1, Mark::KernelEntry),
    (2, Mark::Init),
    (3, Mark::WorkspaceMounted),
    (4, Mark::Ready),
    (5, Mark::AgentExec),
];

/// The devices, vsock first: the machine talks to it by name.
pub struct Devices {
    pub vsock: Mmio<Vsock>,
    pub others: Vec<Mmio<dyn Device>>,
}

/// Shared by all threads of a machine.
pub struct Machine {
    devices: Mutex<Devices>,
    ioapic: Arc<IoApic>,
    serial: Mutex<Serial<NoInterrupt, NoEvents, Console>>,
    marks: File,
    marks_seen: AtomicU32,
    exit: OnceLock<Exit>,
    ended: EventFd,
}

/// The serial line's interrupt, which nobody listens to: the guest only ever polls.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Machine {
    /// `ended` becomes readable when the machine has ended.
    pub fn new(devices: Devices, ioapic: Arc<IoApic>, console: File, marks: File, ended: EventFd) -> Self {
        Self {
            devices: Mutex::new(devices),
            ioapic,
            serial: Mutex::new(Serial::new(NoInterrupt, Console::new(console))),
            marks,
            marks_seen: AtomicU32::new(0),
            exit: OnceLock::new(),
            ended,
        }
    }

    /// The devices, for one access or one event.
    pub fn devices(&self) -> MutexGuard<'_, Devices> {
        // A panic aborts the process in release builds; in tests the next one tells more than a poisoned lock.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads from a port. What is not there reads as all ones, as on a bus nobody drives.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if layout::SERIAL.contains(&port) {
            data[0] = self.serial().read(serial_register(port));
        }
    }

    /// The guest writes to a port.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        if layout::SERIAL.contains(&port) {
            let mut serial = self.serial();
            for &byte in data {
                // Full buffers cannot happen on output, and the interrupt cannot fail.
                let _ = serial.write(serial_register(port), byte);
            }
        } else if port == u16::from(layout::MARK_PORT) {
            self.mark(data[0]);
        }
    }

    /// The guest reads device memory. What is not there reads as all ones.
    pub fn read_mmio(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = layout::slot_at(address) {
            self.devices().read(slot, offset, data);
        } else if let Some(offset) = ioapic_offset(address)
            && let Ok(word) = <&mut [u8; 4]>::try_from(data)
        {
            *word = self.ioapic.read(offset).to_le_bytes();
        }
    }

    /// The guest writes device memory.
    pub fn write_mmio(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = layout::slot_at(address) {
            self.devices().write(slot, offset, data);
        } else if let Some(offset) = ioapic_offset(address)
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.ioapic.write(offset, u32::from_le_bytes(word));
        }
    }

    /// Records a mark of the host's own.
    pub fn record(&self, mark: Mark) {
        marks::record(&self.marks, mark, marks::now_ns());
    }

    /// The guest has been at this point; of the host's own it is never.
    pub fn has_passed(&self, mark: Mark) -> bool {
        let seen = self.marks_seen.load(Ordering::Relaxed);
        (0..).zip(&GUEST_MARKS).any(|(index, (_, known))| *known == mark && seen & (1 << index) != 0)
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        self.serial().writer().tail()
    }

    /// Ends the machine; the first reason given is the one that counts.
    pub fn end(&self, exit: Exit) {
        if self.exit.set(exit).is_ok() {
            // The counter of an eventfd does not overflow by one write.
            let _ = self.ended.write(1);
        }
    }

    /// Takes the devices away for good, as the machine has ended: a vCPU that still runs waits at its next access. False if
    /// a disk is still written to.
    pub fn take_devices_away(&self) -> bool {
        let mut devices = self.devices();
        let at_rest = devices.reset();
        std::mem::forget(devices);
        at_rest
    }

    /// Why the machine has ended, if it has.
    pub fn exit(&self) -> Option<&Exit> {
        self.exit.get()
    }

    /// The guest says where it is. Each point counts once, so repeating it costs the host nothing.
    fn mark(&self, byte: u8) {
        if byte == MARK_POWER_OFF {
            return self.end(Exit::PoweredOff);
        }
        let Some((index, &(_, mark))) = (0..).zip(&GUEST_MARKS).find(|(_, (value, _))| *value == byte) else {
            return;
        };
        let bit = 1 << index;
        if self.marks_seen.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
        self.record(mark);
        if mark == Mark::Ready {
            self.devices().vsock.device.release();
        }
    }

    fn serial(&self) -> MutexGuard<'_, Serial<NoInterrupt, NoEvents, Console>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// The descriptors that wake the event loop, by slot.
    pub fn wake_fds(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let vsock = std::iter::once(self.vsock.device.wake_fd());
        let others = self.others.iter().map(|slot| slot.device.wake_fd());
        vsock.chain(others).enumerate().filter_map(|(slot, fd)| Some((slot, fd?)))
    }

    /// Resets all devices; false if one is still at its files.
    pub fn reset(&mut self) -> bool {
        self.vsock.reset();
        self.others.iter_mut().for_each(Mmio::reset);
        self.others.iter().all(|slot| slot.device.is_at_rest())
    }

    /// What they are made of may have changed on the host.
    pub fn refresh(&mut self) {
        self.others.iter_mut().for_each(|slot| slot.device.refresh());
    }

    /// The device in `slot` has something to do.
    pub fn ready(&mut self, slot: usize) {
        match slot.checked_sub(1) {
            None => self.vsock.ready(),
            Some(index) => self.others[index].ready(),
        }
    }

    fn read(&self, slot: usize, offset: u64, data: &mut [u8]) {
        match slot.checked_sub(1) {
            None => self.vsock.read(offset, data),
            Some(index) => {
                if let Some(device) = self.others.get(index) {
                    device.read(offset, data);
                }
            }
        }
    }

    fn write(&mut self, slot: usize, offset: u64, data: &[u8]) {
        match slot.checked_sub(1) {
            None => self.vsock.write(offset, data),
            Some(index) => {
                if let Some(device) = self.others.get_mut(index) {
                    device.write(offset, data);
                }
            }
        }
    }
}

fn serial_register(port: u16) -> u8 {
    u8::try_from(port - layout::SERIAL.start).expect("eight ports")
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(layout::IOAPIC_BASE).filter(|offset| *offset < layout::IOAPIC_SIZE)
}
