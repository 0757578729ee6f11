//! What a vCPU looks like when it starts: CPUID, and for the first one the registers of 64-bit mode.
//! It owns the page tables, descriptors and the few instructions that run before the kernel's own.
//! Sources: Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"; Intel SDM vol. 3A, 10.8.5
//! "Initializing IA-32e Mode"; Intel SDM vol. 2A, "CPUID—CPU Identification".

use kvm_bindings::{CpuId, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::Memory;

/// The kernel's selectors for code and data (`__BOOT_CS`, `__BOOT_DS`).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The first instructions: prove that ring 0 runs on the processor and not in an interpreter that knows only
/// part of its instructions (kvm_pvm has no `cmpxchg16b`), mark the entry, go to the kernel in rbx.
/// `rsi`, the zero page, is left alone; the operand lies below the stub, at `rsp`.
const STUB: [u8; 24] = [
    0x31,
    0xc0, // xor eax, eax
    0x31,
    0xd2, // xor edx, edx
    0x49,
    0x89,
    0xd8, // mov r8, rbx
    0x31,
    0xc9, // xor ecx, ecx
    0x31,
    0xdb, // xor ebx, ebx
    0xf0,
    0x48,
    0x0f,
    0xc7,
    0x0c,
    0x24, // lock cmpxchg16b [rsp]
    0xb0,
    0x01, // mov al, 1
    0xe6,
    layout::MARK_PORT, // out MARK_PORT, al
    0x41,
    0xff,
    0xe0, // jmp r8
];
/// Sixteen aligned bytes for the stub.
const SCRATCH: u64 = layout::BOOT_STUB.0 - 0x40;

/// Puts stub, descriptors and page tables for the first GiB into memory.
pub fn write_entry(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    memory.write_slice(&STUB, layout::BOOT_STUB)?;
    for (at, descriptor) in (layout::BOOT_GDT.0..).step_by(8).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(at))?;
    }
    memory.write_obj(layout::BOOT_PDPT.0 | PRESENT_WRITABLE, layout::BOOT_PML4)?;
    memory.write_obj(layout::BOOT_PD.0 | PRESENT_WRITABLE, layout::BOOT_PDPT)?;
    for n in 0..512_u64 {
        let entry = (n << 21) | HUGE | PRESENT_WRITABLE;
        memory.write_obj(entry, GuestAddress(layout::BOOT_PD.0 + n * 8))?;
    }
    Ok(())
}

/// Sets the registers with which the stub, and after it the kernel at `entry`, are entered.
pub fn set_registers(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), kvm_ioctls::Error> {
    const CR0_PE_MP_ET_NE_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    const RFLAGS_RESERVED: u64 = 1 << 1;
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::BOOT_GDT.0;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1).expect("32 bytes");
    sregs.idt.limit = 0;
    sregs.cs = segment(CODE_SELECTOR, 0xb, true);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segment(DATA_SELECTOR, 3, false);
    }
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = layout::BOOT_PML4.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: layout::BOOT_STUB.0,
        rbx: entry.0,
        rsi: layout::ZERO_PAGE.0,
        rsp: SCRATCH,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })
}

fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// Adapts what KVM supports to vCPU number `id` of `cpus`.
pub fn adapt_cpuid(cpuid: &mut CpuId, id: u8, cpus: u8) {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    let apic_id = u32::from(id);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | apic_id << 24;
                // KVM emulates the deadline timer itself; with it the kernel calibrates nothing.
                entry.ecx = entry.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
            }
            // One thread per core, all cores in one package.
            0xb | 0x1f => match entry.index {
                0 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, 0x100, apic_id),
                1 => {
                    let shift = u32::from(cpus).next_power_of_two().trailing_zeros();
                    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (shift, u32::from(cpus), 0x201, apic_id);
                }
                index => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, index, apic_id),
            },
            // No performance counters: the guest would spend its start probing for them.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // No virtualization in the guest.
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
}
