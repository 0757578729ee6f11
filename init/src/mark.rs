//! Marks: one byte to an I/O port tells the VMM how far the guest is.
//! It owns the port's number and the bytes. It does not time anything: the VMM does, on the host's clock.
#![expect(unsafe_code, reason = "a port write is an instruction, not a call")]

use std::arch::asm;

use rustix::io::Result;

use crate::sys;

/// Where the VMM listens.
const PORT: u16 = 0xF4;

/// A point that init has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    /// The first instruction of PID 1.
    InitStarted = 2,
    /// Everything that a command sees is mounted.
    WorkspaceMounted = 3,
    /// The exec server listens: the VMM lets held connections through.
    Ready = 4,
    /// The first command is about to be executed.
    AgentExec = 5,
    /// There is nothing left to save: the VMM ends the machine at once.
    PowerOff = 0x50,
}

/// The right to set marks. It passes to forked processes, and even through execve, until it is dropped there.
pub struct Port(());

impl Port {
    /// Asks the kernel for the right.
    pub fn open() -> Result<Self> {
        sys::ioperm(PORT, 1, true).map(Self)
    }

    /// Costs one VM exit.
    pub fn mark(&self, mark: Mark) {
        // SAFETY: having a `Port` means that ioperm allowed this port in this process, and nothing but the VMM's
        // marks is behind it.
        unsafe {
            asm!("out dx, al", in("dx") PORT, in("al") mark as u8, options(nomem, nostack, preserves_flags))
        };
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // It cannot fail: taking a right away needs none.
        let _ = sys::ioperm(PORT, 1, false);
    }
}
