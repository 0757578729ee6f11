//! What a virtual machine is made of: plain data, complete, with every file already open.
//! It owns the limits on what may be asked for. It does not open, create or check anything by name.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::layout;

/// The most vCPUs a machine can have: one local APIC id each, and the MP table has to fit below 1 MiB.
pub const CPUS_MAX: u8 = 64;
/// The least memory, in MiB: the kernel, init and the template's first programs need about half of it.
pub const MEMORY_MIB_MIN: u32 = 128;
/// The most memory, in MiB.
pub const MEMORY_MIB_MAX: u32 = 512 << 10;
/// The most layers of a template.
pub const LAYERS_MAX: usize = 16;
/// The most disks and shares together: device slots left beside vsock, balloon and rng.
pub const DEVICES_MAX: usize = layout::SLOTS_MAX as usize - 3;

/// What a configuration asks for that there is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} vCPUs: there are between 1 and {CPUS_MAX}")]
    Cpus(u8),
    #[error("{0} MiB of memory: there are between {MEMORY_MIB_MIN} and {MEMORY_MIB_MAX}")]
    Memory(u32),
    #[error("{0} layers: at most {LAYERS_MAX} fit")]
    Layers(usize),
    #[error("{0} disks and shares: at most {DEVICES_MAX} fit")]
    Devices(usize),
}

/// A machine to be built.
#[derive(Debug)]
pub struct Config {
    pub cpus: u8,
    pub memory_mib: u32,
    /// Uncompressed x86-64 ELF kernel. It is mapped, so it must not be changed in place while machines run.
    pub kernel: File,
    /// Uncompressed cpio archive with init; mapped as well.
    pub initramfs: File,
    /// Content of the file `boot.bin`, which is added to the initramfs.
    pub boot_file: Vec<u8>,
    /// Kernel messages of every level go to the console, which costs start-up time.
    pub verbose_console: bool,
    /// In the guest: vda, vdb, … in this order.
    pub disks: Vec<Disk>,
    /// Images that the guest only reads; in the guest: layer0, layer1, … in this order. They are mapped as the kernel is.
    pub layers: Vec<File>,
    pub shares: Vec<Share>,
    pub vsock: Vsock,
    /// Receives the guest's serial output, at most `CONSOLE_LOG_MAX` bytes of it.
    pub console: File,
    /// Receives the start-up marks, see `marks`.
    pub marks: File,
}

impl Config {
    /// Device slots in use: vsock, balloon and rng are always there.
    pub(crate) fn slots(&self) -> u8 {
        let count = 3 + self.disks.len() + self.shares.len();
        u8::try_from(count).expect("the limits above are those of slots")
    }

    /// Checks what was asked for against the limits above.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let devices = self.disks.len() + self.shares.len();
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(Error::Cpus(self.cpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(Error::Memory(self.memory_mib));
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(Error::Layers(self.layers.len()));
        }
        if devices > DEVICES_MAX {
            return Err(Error::Devices(devices));
        }
        Ok(())
    }
}

/// A raw disk image.
#[derive(Debug)]
pub struct Disk {
    pub file: File,
    pub read_only: bool,
    /// Bytes that the disk leaves free on the file's file system: what would make the file grow beyond that fails.
    pub keep_free: u64,
}

/// A host folder shown to the guest by virtio-fs.
#[derive(Debug)]
pub struct Share {
    /// The name the guest mounts it by; at most 36 bytes of UTF-8.
    pub tag: String,
    /// The folder, opened with `O_PATH`.
    pub root: OwnedFd,
    /// Enforced here, whatever the guest mounts it as.
    pub read_only: bool,
    /// Serve nothing of the folder but this one entry.
    pub only: Option<Vec<u8>>,
    pub rules: Rules,
}

/// What holds for a part of a share only: patterns of paths, see `virtio::fs::Patterns`. Enforced here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// These do not exist for the guest, nor does what is in them.
    pub hidden: Vec<Vec<u8>>,
    /// These, and what is in them, can be changed although the share is read-only.
    pub writable: Vec<Vec<u8>>,
    /// These, and what is in them, can not be changed although they are in a writable one.
    pub fixed: Vec<Vec<u8>>,
}

/// How the guest's vsock ports are reached, and how it is asked to end.
#[derive(Debug)]
pub struct Vsock {
    /// A connection accepted from the listener becomes a stream to this guest port.
    pub listeners: Vec<(u32, UnixListener)>,
    /// What the guest may open. All other ports of the host are refused.
    pub outbound: Vec<Outbound>,
    /// Ask the guest to end when no client of a listener has been connected for this long; `None` is never. What the guest
    /// opens does not keep it.
    pub idle_timeout: Option<Duration>,
    /// The guest port and the bytes that ask it to end.
    pub goodbye: (u32, Vec<u8>),
}

/// A stream that the guest opens to `port` of the host, which is not 0, becomes a connection to the Unix socket `name` in `folder`.
/// Whoever serves it may be followed by another, with a new socket of that name.
#[derive(Debug)]
pub struct Outbound {
    pub port: u32,
    pub folder: OwnedFd,
    /// One file's name. No link is followed.
    pub name: &'static str,
}
