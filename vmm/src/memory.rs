//! Guest memory: one anonymous mapping per range of RAM, with kernel and initramfs laid over it; and one that can only be read,
//! for a template's layers, so that all machines share what the host's kernel has of them.
//! It owns how memory is mapped and registered with KVM. It does not know what the guest keeps where.
#![expect(unsafe_code, reason = "maps guest memory, files over it, and gives host addresses to KVM")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::layout;

/// The guest's memory, shared by everything that reads or writes it.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// What can go wrong with guest memory; all of it is the host's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("map {mib} MiB of guest memory")]
    Map { mib: u64, source: io::Error },
    #[error("give KVM the memory at {address:#x}")]
    Register { address: u64, source: kvm_ioctls::Error },
    #[error("{length} bytes at {address:#x} are not guest memory")]
    Outside { address: u64, length: u64 },
    #[error("map a file at {address:#x}")]
    MapFile { address: u64, source: io::Error },
}

/// The size of a huge page, which an address has to be a multiple of for the guest and for the host.
const HUGE_PAGE: usize = 2 << 20;
const RAM: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Maps `size` bytes of guest memory and what `layers` (start, length) lie in, until the process ends. Pages are taken from
/// the host when they are first touched, huge ones where it has them: each page is a VM exit.
pub fn map(size: u64, layers: &[(u64, u64)]) -> Result<Memory, Error> {
    let ram = layout::ram(size).into_iter().map(|(start, length)| (start, length, RAM));
    let images = layers.first().zip(layers.last()).map(|(&(start, _), &(last, length))| {
        (start, (last - start + length).next_multiple_of(layout::LAYER_ALIGNMENT), libc::PROT_READ)
    });
    let regions = ram.chain(images).map(|(start, length, protection)| {
        let mapped = usize::try_from(length)
            .map_err(io::Error::other)
            .and_then(|length| region(GuestAddress(start), length, protection));
        mapped.map_err(|source| Error::Map { mib: length >> 20, source })
    });
    let memory = GuestMemoryMmap::from_regions(regions.collect::<Result<_, _>>()?);
    Ok(Arc::new(memory.expect("the layout's ranges are in order and do not overlap")))
}

fn region(start: GuestAddress, length: usize, protection: i32) -> io::Result<GuestRegionMmap<()>> {
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which nothing else refers to.
    let space =
        unsafe { libc::mmap(std::ptr::null_mut(), length + HUGE_PAGE, libc::PROT_NONE, FLAGS, -1, 0) };
    if space == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let aligned = space.wrapping_byte_add(space.addr().next_multiple_of(HUGE_PAGE) - space.addr());
    // SAFETY: `aligned` is at most HUGE_PAGE - 1 bytes into the mapping just made, so `length` bytes of it follow.
    let mapped = unsafe { libc::mmap(aligned, length, protection, FLAGS | libc::MAP_FIXED, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it changes how pages are chosen, not what is in them. A host without huge pages refuses, and does without.
    unsafe { libc::madvise(mapped, length, libc::MADV_HUGEPAGE) };
    let builder = MmapRegionBuilder::new(length).with_mmap_prot(protection).with_mmap_flags(FLAGS);
    // SAFETY: `length` bytes are mapped there with that protection, and nothing ever unmaps them.
    let mapping =
        unsafe { builder.with_raw_mmap_pointer(mapped.cast()) }.build().map_err(io::Error::other)?;
    Ok(GuestRegionMmap::new(mapping, start).expect("the layout ends below 2^64"))
}

/// Makes `memory` the machine's RAM. To be done before the machine has anything else, when KVM need not wait
/// for readers of the old memory map.
pub fn register(vm: &VmFd, memory: &Memory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let guest_phys_addr = region.start_addr().0;
        let region = kvm_userspace_memory_region {
            slot,
            flags: if region.prot() == RAM { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped and stays so: `Machine` keeps `memory` as long as the VM's descriptor.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|source| Error::Register { address: guest_phys_addr, source })?;
    }
    Ok(())
}

/// Lays `length` bytes of `file` from `offset` over the memory at `address`, privately: the guest sees the
/// file's pages without a copy, and its writes go to copies of its own. Address and offset must be page aligned.
/// The rest of the last page is what the file has there, or zero after its end.
pub fn map_file(memory: &Memory, address: u64, file: &File, offset: u64, length: u64) -> Result<(), Error> {
    let outside = || Error::Outside { address, length };
    let size = usize::try_from(length).map_err(|_| outside())?;
    let protection = memory.find_region(GuestAddress(address)).ok_or_else(outside)?.prot();
    let slice = memory.get_slice(GuestAddress(address), size).map_err(|_| outside())?;
    let file_offset = libc::off_t::try_from(offset).map_err(|_| outside())?;
    // SAFETY: the target was just checked to be guest memory, which is replaced by a mapping of the same size
    // and protection; guest memory is only ever accessed as volatile bytes, so its content may change.
    let mapped = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            file_offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(Error::MapFile { address, source: io::Error::last_os_error() });
    }
    Ok(())
}

/// Whether devices may write at `address`. Layers are memory that they may only read.
pub fn is_writable(memory: &Memory, address: GuestAddress) -> bool {
    memory.find_region(address).is_some_and(is_ram)
}

/// As `is_writable`, of a region that was found.
pub fn is_ram(region: &GuestRegionMmap<()>) -> bool {
    region.prot() == RAM
}
