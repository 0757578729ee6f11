//! Tiny guests on the real KVM of this machine: a few bytes of machine code against the exit loop.
//! They run on every KVM, also on one that only interprets kernel code.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::cpu;
use crate::ioapic::IoApic;
use crate::machine::{Devices, Exit, Machine};
use crate::marks::{self, Mark};
use crate::memory::Memory;
use crate::virtio::Interrupt;
use crate::virtio::mmio::Mmio;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::{config, layout, memory};

/// What a guest left behind.
struct Ran {
    exit: Exit,
    console: String,
    marks: File,
    memory: Memory,
}

/// Runs `code`, entered in 64-bit mode, until the machine ends.
fn run(code: &[u8]) -> Ran {
    let kvm = Kvm::new().expect("these tests need /dev/kvm");
    let vm = kvm.create_vm().unwrap();
    let layer = tempfile::tempfile().unwrap();
    layer.write_all_at(b"layer", 0).unwrap();
    let layers = layout::layers(4 << 20, [5]);
    let memory = memory::map(4 << 20, &layers).unwrap();
    memory::map_file(&memory, layers[0].0, &layer, 0, 5).unwrap();
    memory::register(&vm, &memory).unwrap();
    crate::vm::split_irqchip(&vm).unwrap();
    let vcpu = crate::vm::create_vcpus(&kvm, &vm, 1).unwrap().remove(0);
    cpu::write_entry(&memory).unwrap();
    cpu::set_registers(&vcpu, layout::HIGH_MEMORY).unwrap();
    map_device_memory(&memory);
    map_layer(&memory, layers[0].0);
    // The entry stub is not what is tested, and an interpreting KVM cannot run it.
    memory.write_slice(code, layout::BOOT_STUB).unwrap();
    let (mut console, marks) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let machine = Machine::new(
        devices(&memory),
        Arc::new(IoApic::new(24, |_| ())),
        console.try_clone().unwrap(),
        marks.try_clone().unwrap(),
        EventFd::new(EFD_NONBLOCK).unwrap(),
    );
    super::run(vcpu, &machine);
    let exit = machine.exit().unwrap().clone();
    drop(machine);
    let mut text = String::new();
    console.rewind().unwrap();
    console.read_to_string(&mut text).unwrap();
    Ran { exit, console: text, marks, memory }
}

fn devices(memory: &Memory) -> Devices {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
    let vsock = config::Vsock {
        listeners: vec![(1, listener)],
        outbound: Vec::new(),
        idle_timeout: None,
        goodbye: (1, vec![]),
    };
    let line = || Interrupt::new(|| ());
    Devices {
        vsock: Mmio::new(Box::new(Vsock::new(vsock).unwrap()), Memory::clone(memory), line()),
        others: vec![Mmio::new(Box::new(Rng::default()), Memory::clone(memory), line())],
    }
}

/// The boot page tables end at 1 GiB; devices are in the fourth.
fn map_device_memory(memory: &Memory) {
    const PD: u64 = 0xc000;
    memory.write_obj(PD | 3, GuestAddress(layout::BOOT_PDPT.0 + 3 * 8)).unwrap();
    for n in 0..512_u64 {
        let entry = (0xc000_0000 + (n << 21)) | (1 << 7) | 3;
        memory.write_obj(entry, GuestAddress(PD + n * 8)).unwrap();
    }
}

/// In place of the second GiB, which has nothing.
const LAYER_SEEN_AT: u64 = 1 << 30;

fn map_layer(memory: &Memory, layer: u64) {
    const PD: u64 = 0xd000;
    memory.write_obj(PD | 3, GuestAddress(layout::BOOT_PDPT.0 + (LAYER_SEEN_AT >> 30) * 8)).unwrap();
    memory.write_obj(layer | (1 << 7) | 3, GuestAddress(PD)).unwrap();
}

const POWER_OFF: [u8; 4] = [0xb0, 0x50, 0xe6, layout::MARK_PORT]; // mov al, 0x50; out MARK_PORT, al

#[test]
fn a_guest_powers_off() {
    assert_eq!(run(&POWER_OFF).exit, Exit::PoweredOff);
}

#[test]
fn a_triple_fault_is_a_restart() {
    let ud2_without_handlers = [0x0f, 0x0b];
    assert_eq!(run(&ud2_without_handlers).exit, Exit::Reset);
}

#[test]
fn serial_output_reaches_the_console() {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in *b"hi\n" {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend(POWER_OFF);
    assert_eq!(run(&code).console, "hi\n");
}

#[test]
fn a_panic_is_told_from_a_restart() {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in *b"Kernel panic - not syncing: test\n" {
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend([0x0f, 0x0b]);
    let Exit::Panicked { console } = run(&code).exit else { panic!("not a panic") };
    assert!(console.contains("not syncing: test"));
}

#[test]
fn marks_count_once() {
    let mark = [0xb0, 2, 0xe6, layout::MARK_PORT];
    let ran = run(&[&mark[..], &mark, &mark, &POWER_OFF].concat());
    let times = marks::read(&ran.marks).unwrap();
    assert!(times[Mark::Init as usize] > 0);
    assert_eq!(times[Mark::AgentExec as usize], 0);
}

#[test]
fn device_registers_answer_and_the_rest_reads_as_ones() {
    let mut code = vec![];
    for (n, address) in [layout::MMIO_BASE, layout::MMIO_BASE + 0x8000, 0xe000_0000].into_iter().enumerate() {
        code.extend([0x48, 0xb8]); // movabs rax, address
        code.extend(address.to_le_bytes());
        code.extend([0x8b, 0x18]); // mov ebx, [rax]
        code.extend([0x89, 0x1c, 0x25]); // mov [0x3000 + n * 4], ebx
        code.extend((0x3000 + u32::try_from(n).unwrap() * 4).to_le_bytes());
    }
    code.extend(POWER_OFF);
    let ran = run(&code);
    let word = |n: u64| ran.memory.read_obj::<u32>(GuestAddress(0x3000 + n * 4)).unwrap();
    assert_eq!(word(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((word(1), word(2)), (u32::MAX, u32::MAX));
}

#[test]
fn a_layer_is_its_file_and_what_the_guest_writes_there_is_lost() {
    let mut code = vec![0x48, 0xb8]; // movabs rax, LAYER_SEEN_AT
    code.extend(LAYER_SEEN_AT.to_le_bytes());
    code.extend([0xc7, 0x00, 1, 2, 3, 4]); // mov dword [rax], 0x04030201
    code.extend([0x8b, 0x18]); // mov ebx, [rax]
    code.extend([0x89, 0x1c, 0x25, 0x00, 0x30, 0, 0]); // mov [0x3000], ebx
    code.extend([0x8b, 0x98, 0x00, 0x10, 0, 0]); // mov ebx, [rax + 0x1000]
    code.extend([0x89, 0x1c, 0x25, 0x04, 0x30, 0, 0]); // mov [0x3004], ebx
    code.extend(POWER_OFF);
    let ran = run(&code);
    assert_eq!(ran.exit, Exit::PoweredOff);
    let words: [u8; 8] = ran.memory.read_obj(GuestAddress(0x3000)).unwrap();
    assert_eq!(words, *b"laye\0\0\0\0", "and behind the file there is nothing");
}
