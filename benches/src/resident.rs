//! What a VMM holds of the host's memory beyond the guest's own: the resident pages outside of guest memory.
//! It reads /proc/PID/smaps (Linux Documentation/filesystems/proc.rst, "/proc/PID/smaps"), and changes nothing.

use std::fs;

use anyhow::{Context, Result};

/// A mapping, as far as it matters here.
#[derive(Debug, Default, PartialEq)]
struct Mapping {
    start: u64,
    end: u64,
    resident_kib: u64,
    /// Mapped with MAP_NORESERVE, as guest memory is, and the files that lie over it.
    unreserved: bool,
    /// As a template's layers are, which belong to the host's page cache: unreserved and only to be read.
    layer: bool,
}

impl Mapping {
    /// A layer may lie right beside the guest's memory, and is none of it.
    fn is_guests(&self) -> bool {
        self.unreserved && !self.layer
    }
}

/// Resident KiB of process `pid` outside of its `guest_mib` MiB of guest memory.
///
/// # Errors
/// When the process is not ours, or has no mapping of that size.
pub fn beyond_guest_kib(pid: u32, guest_mib: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mappings = parse(&text).with_context(|| format!("{path} is not what it should be"))?;
    let guest = guest_kib(&mappings, guest_mib << 20);
    let guest = guest.with_context(|| format!("{path} has no {guest_mib} MiB of guest memory"))?;
    let others = mappings.iter().filter(|mapping| !mapping.layer);
    Ok(others.map(|mapping| mapping.resident_kib).sum::<u64>() - guest)
}

/// Resident KiB of guest memory: the run of unreserved mappings without a gap that has room for `size` bytes. Kernel and
/// initramfs, laid over it, are in the run.
fn guest_kib(mappings: &[Mapping], size: u64) -> Option<u64> {
    mappings
        .chunk_by(|a, b| a.end == b.start && a.is_guests() && b.is_guests())
        .find(|run| run[0].is_guests() && run.iter().map(|it| it.end - it.start).sum::<u64>() >= size)
        .map(|run| run.iter().map(|it| it.resident_kib).sum())
}

fn parse(smaps: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (word, rest) = line.split_once(' ')?;
        match word {
            "Rss:" => mappings.last_mut()?.resident_kib = rest.trim().strip_suffix(" kB")?.parse().ok()?,
            "VmFlags:" => {
                let has = |flag| rest.split(' ').any(|it| it == flag);
                let mapping = mappings.last_mut()?;
                mapping.unreserved = has("nr");
                mapping.layer = has("nr") && has("rd") && !has("wr");
            }
            _ if word.ends_with(':') => {}
            range => {
                let (start, end) = range.split_once('-')?;
                let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).ok());
                mappings.push(Mapping { start: start?, end: end?, ..Mapping::default() });
            }
        }
    }
    Some(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program, a layer, 1 MiB of guest memory right behind it with a kernel laid over its middle, and a heap right behind that.
    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:01 7 /usr/bin/coracle
Rss:                 300 kB
VmFlags: rd ex mr mw me
7efffff00000-7f0000000000 r--p 00000000 00:01 11 /usr/share/coracle/templates/shell/rootfs.erofs
Rss:                 500 kB
VmFlags: rd mr mw me nr
7f0000000000-7f0000040000 rw-p 00000000 00:00 0
Size:                256 kB
Rss:                  16 kB
VmFlags: rd wr mr mw me nr hg
7f0000040000-7f0000080000 rw-p 00001000 00:01 9 /usr/share/coracle/vmlinux
Rss:                 200 kB
VmFlags: rd wr mr mw me nr
7f0000080000-7f0000100000 rw-p 00000000 00:00 0
Rss:                   4 kB
VmFlags: rd wr mr mw me nr hg
7f0000100000-7f0000200000 rw-p 00000000 00:00 0 [heap]
Rss:                  40 kB
VmFlags: rd wr mr mw me ac
";

    #[test]
    fn guest_memory_does_not_count() {
        let mappings = parse(SMAPS).unwrap();
        assert_eq!(mappings.len(), 6);
        assert_eq!(guest_kib(&mappings, 1 << 20), Some(220));
        assert_eq!(mappings.iter().filter(|it| it.layer).map(|it| it.resident_kib).sum::<u64>(), 500);
    }

    #[test]
    fn a_process_without_guest_memory_is_said() {
        assert_eq!(guest_kib(&parse(SMAPS).unwrap(), 2 << 20), None);
        assert_eq!(parse("Rss: 5 kB\n"), None);
    }
}
