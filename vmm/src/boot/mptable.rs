//! The MP table: which processors, IO-APIC and interrupt lines there are.
//! A machine without ACPI needs it for its IO-APIC even with one processor.
//! Source: Intel MultiProcessor Specification 1.4, 4 "MP Configuration Table".

use vm_memory::Bytes;

use crate::layout;
use crate::memory::Memory;

/// The version of the specification, as both structures name it.
const REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;

/// Writes pointer and table for `cpus` processors with APIC ids from 0 on, and an IO-APIC with `pins` lines.
pub fn write(memory: &Memory, cpus: u8, pins: u8) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_slice(&table(cpus, pins), layout::MP_TABLE)?;
    memory.write_slice(&pointer(), layout::MP_POINTER)
}

/// 4.1 "MP Floating Pointer Structure".
fn pointer() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&le32(layout::MP_TABLE.0));
    bytes[8] = 1; // length in units of 16 bytes
    bytes[9] = REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// 4.2 "MP Configuration Table Header" and the entries of 4.3 behind it.
fn table(cpus: u8, pins: u8) -> Vec<u8> {
    let io_apic_id = cpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..cpus {
        let (enabled, bootstrap) = (1, if id == 0 { 2 } else { 0 });
        let (signature, features) = ([0, 6, 0, 0], [1, 2, 0, 0]); // family 6; FPU and APIC on chip
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[0, id, APIC_VERSION, enabled | bootstrap]);
        processor[4..8].copy_from_slice(&signature);
        processor[8..12].copy_from_slice(&features);
        entry(&processor);
    }
    entry(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let base = le32(layout::IOAPIC_BASE);
    entry(&[2, io_apic_id, APIC_VERSION, 1, base[0], base[1], base[2], base[3]]);
    for pin in 0..pins {
        // Polarity and trigger as the bus has them: ISA lines are edge triggered.
        entry(&[3, 0, 0, 0, ISA_BUS, pin, io_apic_id, pin]);
    }
    let (external, nmi, all_cpus) = (3, 1, 0xff);
    entry(&[4, external, 0, 0, ISA_BUS, 0, 0, 0]);
    entry(&[4, nmi, 0, 0, ISA_BUS, 0, all_cpus, 1]);
    header(count, entries)
}

fn header(count: u16, entries: Vec<u8>) -> Vec<u8> {
    const HEADER_SIZE: usize = 44;
    let size = u16::try_from(HEADER_SIZE + entries.len()).expect("64 processors take 1.3 KiB");
    let mut table = vec![0; HEADER_SIZE];
    table[0..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&size.to_le_bytes());
    table[6] = REVISION;
    table[8..16].copy_from_slice(b"CORACLE ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&le32(layout::LAPIC_BASE));
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn le32(address: u64) -> [u8; 4] {
    u32::try_from(address).expect("all addresses here are below 4 GiB").to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_structures_add_up_to_zero() {
        for cpus in [1, 2, crate::config::CPUS_MAX] {
            let table = table(cpus, layout::IOAPIC_PINS);
            assert_eq!(checksum(&table), 0);
            assert_eq!(table.len(), usize::from(u16::from_le_bytes([table[4], table[5]])));
        }
        assert_eq!(checksum(&pointer()), 0);
    }
}
