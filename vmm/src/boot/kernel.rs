//! Loading an uncompressed x86-64 ELF kernel by mapping its segments into guest memory.
//! It owns the checks on the file. It does not run it or decompress anything.
//! Source: System V ABI, "Object Files" (ELF header and program header).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{EM_X86_64, PT_LOAD};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::{self, Memory};

const PAGE: u64 = 4096;
/// ELF header and program headers are within the first page in every kernel we have seen.
const HEAD_SIZE: usize = 4096;
const PROGRAM_HEADER_SIZE: usize = 56;

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the file")]
    Read(#[from] io::Error),
    #[error("not an uncompressed x86-64 ELF kernel (vmlinux)")]
    NotElf,
    #[error("truncated: a segment ends at byte {end}, the file at byte {size}")]
    Truncated { end: u64, size: u64 },
    #[error("segment at {address:#x} cannot be mapped: it is not aligned to pages as the file is")]
    Misaligned { address: u64 },
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("clear memory behind a segment")]
    Clear(#[from] vm_memory::GuestMemoryError),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    pub entry: GuestAddress,
    /// First address behind the kernel and its zeroed data.
    pub end: u64,
}

/// A loadable segment.
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// Maps the segments of `file` to their physical addresses.
pub fn load(memory: &Memory, file: &File) -> Result<Loaded, Error> {
    let size = file.metadata()?.len();
    let mut head = [0; HEAD_SIZE];
    file.read_exact_at(&mut head, 0).map_err(|_| Error::NotElf)?;
    let entry = GuestAddress(check_header(&head)?);
    let mut end = 0;
    for segment in segments(&head)? {
        let file_end = segment.offset.saturating_add(segment.file_size);
        if file_end > size {
            return Err(Error::Truncated { end: file_end, size });
        }
        map_segment(memory, file, &segment)?;
        end = end.max(segment.address.saturating_add(segment.memory_size));
    }
    Ok(Loaded { entry, end })
}

/// Checks that this is an ELF file for our processor; returns the entry point.
fn check_header(head: &[u8; HEAD_SIZE]) -> Result<u64, Error> {
    const CLASS_64_LITTLE_ENDIAN_V1: &[u8] = &[2, 1, 1];
    let is_ours = head.starts_with(b"\x7fELF")
        && head[4..7] == *CLASS_64_LITTLE_ENDIAN_V1
        && u16_at(head, 18) == EM_X86_64
        && usize::from(u16_at(head, 54)) == PROGRAM_HEADER_SIZE;
    is_ours.then(|| u64_at(head, 24)).ok_or(Error::NotElf)
}

fn segments(head: &[u8; HEAD_SIZE]) -> Result<Vec<Segment>, Error> {
    let start = usize::try_from(u64_at(head, 32)).map_err(|_| Error::NotElf)?;
    let count = usize::from(u16_at(head, 56));
    let end = start.checked_add(count * PROGRAM_HEADER_SIZE).ok_or(Error::NotElf)?;
    let table = head.get(start..end).ok_or(Error::NotElf)?;
    let loadable = table.chunks_exact(PROGRAM_HEADER_SIZE).filter(|header| u32_at(header, 0) == PT_LOAD);
    Ok(loadable
        .map(|header| Segment {
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            file_size: u64_at(header, 32),
            memory_size: u64_at(header, 40),
        })
        .collect())
}

/// Maps the whole pages and clears what the file has behind the segment in the last one.
/// Memory behind that is zero already.
fn map_segment(memory: &Memory, file: &File, segment: &Segment) -> Result<(), Error> {
    let &Segment { offset, address, file_size, memory_size } = segment;
    if file_size == 0 {
        return Ok(());
    }
    let outside = || memory::Error::Outside { address, length: memory_size };
    let end = address.checked_add(file_size.max(memory_size)).ok_or_else(outside)?;
    if address < layout::HIGH_MEMORY.0 || end > layout::BOOT_MEMORY_MAX {
        return Err(outside().into());
    }
    if address % PAGE != offset % PAGE {
        return Err(Error::Misaligned { address });
    }
    let head = address % PAGE;
    memory::map_file(memory, address - head, file, offset - head, file_size + head)?;
    let file_end = address + file_size;
    let tail = (file_end.next_multiple_of(PAGE) - file_end).min(memory_size.saturating_sub(file_size));
    let zeros = vec![0; usize::try_from(tail).expect("less than a page")];
    memory.write_slice(&zeros, GuestAddress(file_end))?;
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ADDRESS: u64 = 0x100_0000;

    /// A kernel with one segment of `content` at `offset`, whose headers `change` may spoil.
    fn kernel(content: &[u8], memory_size: u64, change: impl FnOnce(&mut Vec<u8>)) -> File {
        let offset = PAGE;
        let mut head = vec![0; HEAD_SIZE];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        head[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        head[24..32].copy_from_slice(&(ADDRESS + 8).to_le_bytes());
        head[32] = 64;
        head[54] = u8::try_from(PROGRAM_HEADER_SIZE).unwrap();
        head[56] = 1;
        head[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        for (at, value) in [(72, offset), (88, ADDRESS), (96, content.len() as u64), (104, memory_size)] {
            head[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        change(&mut head);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&head).unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn load_into(file: &File) -> (Memory, Result<Loaded, Error>) {
        let memory = memory::map(32 << 20, &[]).unwrap();
        let loaded = load(&memory, file);
        (memory, loaded)
    }

    #[test]
    fn a_segment_is_mapped_and_its_bss_is_zero() {
        let mut file = kernel(&[7; 5000], 9000, |_| ());
        file.write_all(&[9; 3000]).unwrap();
        let (memory, loaded) = load_into(&file);
        let loaded = loaded.unwrap();
        assert_eq!((loaded.entry.0, loaded.end), (ADDRESS + 8, ADDRESS + 9000));
        let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(ADDRESS + at)).unwrap();
        assert_eq!((byte(0), byte(4999), byte(5000), byte(8191), byte(8999)), (7, 7, 0, 0, 0));
    }

    #[test]
    fn the_guest_does_not_write_to_the_file() {
        let file = kernel(&[7; 100], 100, |_| ());
        let (memory, loaded) = load_into(&file);
        loaded.unwrap();
        memory.write_obj(1_u8, GuestAddress(ADDRESS)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, PAGE).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let empty = tempfile::tempfile().unwrap();
        assert!(matches!(load_into(&empty).1, Err(Error::NotElf)));
        let spoilt: [(usize, u8); 5] = [(0, 0), (4, 1), (18, 3), (54, 0), (33, 0xff)];
        for (at, value) in spoilt {
            let file = kernel(&[7; 100], 100, |head| head[at] = value);
            assert!(matches!(load_into(&file).1, Err(Error::NotElf)), "byte {at}");
        }
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() {
        let truncated = kernel(&[7; 100], 100, |head| head[98] = 1);
        assert!(matches!(load_into(&truncated).1, Err(Error::Truncated { .. })));
        let misaligned = kernel(&[7; 100], 100, |head| head[88] = 1);
        assert!(matches!(load_into(&misaligned).1, Err(Error::Misaligned { .. })));
        for high_byte in [0x10, 0xff] {
            let outside = kernel(&[7; 100], 100, |head| head[95] = high_byte);
            assert!(matches!(load_into(&outside).1, Err(Error::Memory(_))));
        }
        let below_one_mib = kernel(&[7; 100], 100, |head| head[88..96].fill(0));
        assert!(matches!(load_into(&below_one_mib).1, Err(Error::Memory(_))));
    }
}
