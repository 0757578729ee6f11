//! A vCPU's thread: enter the guest, answer its exit, again.
//! It owns the meaning of KVM's exit reasons. It does not know what is behind a port or an address.
//! Source: Linux `Documentation/virt/kvm/api.rst`, 5 "The kvm_run structure".

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::machine::{Exit, Machine};
use crate::marks::Mark;

/// Runs until the machine has ended, for whatever reason.
pub fn run(mut vcpu: VcpuFd, machine: &Machine) {
    while machine.exit().is_none() {
        if let Err(exit) = step(&mut vcpu, machine) {
            machine.end(exit);
        }
    }
}

/// Enters the guest once and answers why it came back; an error is the end of the machine.
fn step(vcpu: &mut VcpuFd, machine: &Machine) -> Result<(), Exit> {
    const SIGNAL: i32 = libc::EINTR;
    const AGAIN: i32 = libc::EAGAIN;
    match vcpu.run() {
        Ok(VcpuExit::MmioWrite(address, data)) => machine.write_mmio(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => machine.read_mmio(address, data),
        Ok(VcpuExit::IoOut(port, data)) => machine.write_port(port, data),
        Ok(VcpuExit::IoIn(port, data)) => machine.read_port(port, data),
        // No line is level triggered, so an end of interrupt concerns nobody.
        Ok(VcpuExit::IoapicEoi(_) | VcpuExit::Intr | VcpuExit::Hlt) => {}
        Ok(VcpuExit::Shutdown) => return Err(restarted(machine)),
        Ok(VcpuExit::InternalError) => return Err(internal_error(vcpu, machine)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            let reason = format!("the processor refuses to enter the guest: reason {reason:#x} on CPU {cpu}");
            return Err(crashed(machine, reason));
        }
        Ok(other) => {
            let reason = format!("KVM exit {other:?}, which a machine without that device cannot cause");
            return Err(crashed(machine, reason));
        }
        Err(error) if matches!(error.errno(), SIGNAL | AGAIN) => {}
        Err(error) => return Err(crashed(machine, format!("KVM_RUN: {error}"))),
    }
    Ok(())
}

/// A triple fault: how the kernel restarts the machine, also after a panic.
fn restarted(machine: &Machine) -> Exit {
    let console = machine.console_tail();
    if console.contains("Kernel panic") { Exit::Panicked { console } } else { Exit::Reset }
}

/// KVM gave up on an instruction. Before the kernel's own first one that means it could not run our test.
fn internal_error(vcpu: &mut VcpuFd, machine: &Machine) -> Exit {
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    let reason = format!("KVM cannot emulate the instruction at {rip:#x}");
    if machine.has_passed(Mark::KernelEntry) {
        crashed(machine, reason)
    } else {
        Exit::UnsupportedKvm { reason }
    }
}

fn crashed(machine: &Machine, reason: String) -> Exit {
    Exit::Crashed { reason, console: machine.console_tail() }
}

#[cfg(test)]
mod tests;
