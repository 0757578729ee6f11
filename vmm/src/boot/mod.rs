//! What is in guest memory and in the first vCPU's registers when the guest starts.
//! It owns loading the kernel and everything the kernel is told: command line, memory map, initramfs, processors.
//! It does not run anything. Source: Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".

use std::fs::File;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::{self, Memory};

pub mod cpu;
pub mod kernel;

mod cmdline;
mod cpio;
mod mptable;

/// The name under which the guest finds the configuration's boot file.
const BOOT_FILE: &str = "boot.bin";

/// What can go wrong before the first instruction.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("load the kernel")]
    Kernel(#[from] kernel::Error),
    #[error("read the size of the initramfs")]
    Initramfs(#[source] std::io::Error),
    #[error("the initramfs is {0} bytes long, which is not an uncompressed cpio archive")]
    InitramfsSize(u64),
    #[error("kernel and initramfs do not fit into {0} MiB of memory")]
    TooLittleMemory(u64),
    #[error("the kernel command line is too long: {0} bytes")]
    CmdlineTooLong(usize),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("write boot data to guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// What is loaded into a machine.
pub struct Payload<'a> {
    pub kernel: &'a File,
    pub initramfs: &'a File,
    pub boot_file: &'a [u8],
    pub verbose_console: bool,
    pub cpus: u8,
    /// Number of virtio slots in use.
    pub slots: u8,
    /// Start and length of each.
    pub layers: &'a [(u64, u64)],
    pub memory_size: u64,
}

/// Fills guest memory; returns the kernel's entry point.
pub fn load(memory: &Memory, payload: &Payload<'_>) -> Result<GuestAddress, Error> {
    cpu::write_entry(memory)?;
    let kernel = kernel::load(memory, payload.kernel)?;
    let initrd = load_initramfs(memory, payload, kernel.end)?;
    let cmdline = cmdline::build(payload.verbose_console, payload.slots, payload.layers);
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(Error::CmdlineTooLong(cmdline.len()));
    }
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
    memory.write_obj(0_u8, GuestAddress(layout::CMDLINE.0 + cmdline.len() as u64))?;
    mptable::write(memory, payload.cpus, layout::pins(payload.slots))?;
    write_zero_page(memory, initrd, layout::boot_memory(payload.memory_size))?;
    Ok(kernel.entry)
}

/// Maps the initramfs to the end of boot memory, with the boot file behind it in an archive of its own;
/// returns its address and size.
fn load_initramfs(memory: &Memory, payload: &Payload<'_>, kernel_end: u64) -> Result<(u32, u32), Error> {
    const PAGE: u64 = 4096;
    let length = payload.initramfs.metadata().map_err(Error::Initramfs)?.len();
    let boot_memory = layout::boot_memory(payload.memory_size);
    if length == 0 || length % 4 != 0 || length >= boot_memory {
        return Err(Error::InitramfsSize(length));
    }
    let tail = cpio::archive(BOOT_FILE, payload.boot_file);
    let size = length + tail.len() as u64;
    let start = (boot_memory - size) / PAGE * PAGE;
    if start <= kernel_end {
        return Err(Error::TooLittleMemory(boot_memory >> 20));
    }
    memory::map_file(memory, start, payload.initramfs, 0, length)?;
    memory.write_slice(&tail, GuestAddress(start + length))?;
    let fits = "boot memory ends below 4 GiB";
    Ok((u32::try_from(start).expect(fits), u32::try_from(size).expect(fits)))
}

/// Writes the "zero page": what a boot loader tells the kernel.
fn write_zero_page(memory: &Memory, initrd: (u32, u32), boot_memory: u64) -> Result<(), Error> {
    const E820_RAM: u32 = 1;
    const LOADER_UNDEFINED: u8 = 0xff;
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.version = 0x020f;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE.0).expect("in base memory");
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = initrd;
    let high = layout::HIGH_MEMORY.0;
    for (entry, (addr, size)) in
        params.e820_table.iter_mut().zip([(0, layout::BASE_MEMORY_END), (high, boot_memory - high)])
    {
        *entry = boot_e820_entry { addr, size, r#type: E820_RAM };
        params.e820_entries += 1;
    }
    let params = linux_loader::configurator::BootParams::new(&params, layout::ZERO_PAGE);
    memory.write_slice(&params.header, layout::ZERO_PAGE)?;
    Ok(())
}
