//! Whether this KVM runs an unmodified kernel, found out by a guest of ten instructions.
//! It owns that guest. It does not explain what to do about the answer.

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::cpu;
use crate::vm::{Error, create_vcpus};
use crate::{layout, memory};

/// What KVM is able to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Kernel code runs on the processor.
    Able,
    /// Kernel code is interpreted, or not run at all; why we think so.
    Unable(String),
}

/// Runs the first instructions of every machine in one that has nothing else.
///
/// # Errors
/// When there is no KVM, or it cannot make a machine.
pub fn probe() -> Result<Probe, Error> {
    const SIZE: u64 = 2 << 20;
    const HLT: u8 = 0xf4;
    let kvm_error = |operation| move |source| Error::Kvm { operation, source };
    let kvm = Kvm::new().map_err(Error::OpenKvm)?;
    let vm = kvm.create_vm().map_err(kvm_error("create a virtual machine"))?;
    let memory = memory::map(SIZE, &[])?;
    memory::register(&vm, &memory)?;
    let mut vcpu = create_vcpus(&kvm, &vm, 1)?.remove(0);
    let kernel = layout::HIGH_MEMORY;
    cpu::write_entry(&memory)
        .and_then(|()| memory.write_obj(HLT, kernel))
        .map_err(crate::boot::Error::Write)?;
    cpu::set_registers(&vcpu, GuestAddress(kernel.0)).map_err(kvm_error("set registers"))?;
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, [1])) if port == u16::from(layout::MARK_PORT) => Ok(Probe::Able),
        Ok(VcpuExit::InternalError) => Ok(Probe::Unable("it cannot emulate cmpxchg16b in ring 0".into())),
        Ok(exit) => Ok(Probe::Unable(format!("unexpected exit {exit:?}"))),
        Err(error) => Ok(Probe::Unable(format!("KVM_RUN: {error}"))),
    }
}
