//! The FUSE wire format: what each request and reply is made of, taken from bytes and put into bytes.
//! It owns the layouts and the bounds of what is decoded. It does no I/O and knows nothing of files.
//! Source: Linux 6.12, include/uapi/linux/fuse.h (FUSE 7.41); all numbers are in the guest's, that is little-endian, order.

use std::ffi::CStr;

use rustix::io::Errno;

/// The version of the protocol: replies have the layouts of this one.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 40;
/// The node every mount starts from.
pub const ROOT_ID: u64 = 1;
/// The longest name of a directory entry; Linux `NAME_MAX`.
pub const NAME_MAX: usize = 255;

/// `fuse_init_out.flags`.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// `fuse_setattr_in.valid`.
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_getattr_in.getattr_flags`.
pub const GETATTR_FH: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`.
pub const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// `fuse_open_in.open_flags`.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `fuse_open_out.open_flags`.
pub const KEEP_CACHE: u32 = 1 << 1;
/// In place of a time's nanoseconds: the seconds are a token (our kernel's fs/fuse/host_changes.h).
pub const VALID_TOKEN: u32 = u32::MAX;
/// `fuse_write_in.write_flags`: a page of the cache is written, by a handle the kernel picked.
pub const WRITE_CACHE: u32 = 1 << 0;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// A value with one layout on the wire.
pub trait Wire: Sized {
    const SIZE: usize;

    /// Takes the value off the front of `bytes`, or takes nothing it may be used for when they are too few.
    fn decode(bytes: &mut &[u8]) -> Option<Self>;

    /// Puts the value at the end of `bytes`.
    fn encode(&self, bytes: &mut Vec<u8>);
}

macro_rules! wire_integers {
    ($($integer:ty),*) => {$(
        impl Wire for $integer {
            const SIZE: usize = size_of::<$integer>();

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                let (value, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*value))
            }

            fn encode(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

wire_integers!(u16, u32, i32, u64);

macro_rules! wire_structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $(pub $field: $type),* }

        impl Wire for $name {
            const SIZE: usize = 0 $(+ <$type as Wire>::SIZE)*;

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: Wire::decode(bytes)?),* })
            }

            fn encode(&self, bytes: &mut Vec<u8>) {
                $(self.$field.encode(bytes);)*
            }
        }
    )*};
}

wire_structs! {
    InHeader {
        len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32, extensions: u16, padding: u16,
    }
    OutHeader { len: u32, error: i32, unique: u64 }
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    AttrOut { valid: u64, valid_ns: u32, padding: u32, attr: Attr }
    EntryOut {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_ns: u32, attr_valid_ns: u32,
        attr: Attr,
    }
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        unused_0: u64, unused_1: u64, unused_2: u64,
    }
    ForgetIn { lookups: u64 }
    ForgetOne { node: u64, lookups: u64 }
    BatchForgetIn { count: u32, padding: u32 }
    GetattrIn { flags: u32, padding: u32, fh: u64 }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused_4: u32, uid: u32, gid: u32, unused_5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { new_parent: u64 }
    Rename2In { new_parent: u64, flags: u32, padding: u32 }
    LinkIn { old_node: u64 }
    OpenIn { flags: u32, open_flags: u32 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut { size: u32, padding: u32 }
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare_0: u64, spare_1: u64, spare_2: u64,
    }
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    SetxattrIn { size: u32, flags: u32 }
    GetxattrIn { size: u32, padding: u32 }
    GetxattrOut { size: u32, padding: u32 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut { offset: u64 }
    CopyFileRangeIn {
        fh_in: u64, offset_in: u64, node_out: u64, fh_out: u64, offset_out: u64, len: u64, flags: u64,
    }
    /// What stands before the name of what the host has changed (our kernel's fs/fuse/host_changes.h).
    HostChange { parent: u64, node: u64, mask: u32, cookie: u32, namelen: u32, padding: u32 }
    /// What stands before the name of a directory entry.
    Dirent { ino: u64, offset: u64, namelen: u32, kind: u32 }
}

/// What follows the header of a request, from the first byte not yet taken.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn take<T: Wire>(&mut self) -> Result<T, Errno> {
        T::decode(&mut self.0).ok_or(Errno::INVAL)
    }

    /// Takes a string and the NUL that ends it.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[text.count_bytes() + 1..];
        Ok(text)
    }

    pub fn name(&mut self) -> Result<Name<'a>, Errno> {
        self.text().and_then(Name::new)
    }

    /// Takes a value and nothing after it.
    pub fn only<T: Wire>(mut self) -> Result<T, Errno> {
        let value = self.take()?;
        self.end().map(|()| value)
    }

    /// Takes a value, a name and nothing after them.
    pub fn with_name<T: Wire>(mut self) -> Result<(T, Name<'a>), Errno> {
        let (value, name) = (self.take()?, self.name()?);
        self.end().map(|()| (value, name))
    }

    /// Takes a name and nothing after it.
    pub fn only_name(mut self) -> Result<Name<'a>, Errno> {
        let name = self.name()?;
        self.end().map(|()| name)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// There must be nothing left: a request with more than its operation takes is not one of ours.
    pub fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}

/// Having a `Name` tells you: it names one entry of a directory. It is not empty, `.` or `..`, has no slash, and at
/// most `NAME_MAX` bytes. No path can be made of it that leaves its directory, unless the entry is a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    pub fn new(text: &'a CStr) -> Result<Self, Errno> {
        match text.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(Self(text)),
        }
    }

    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    pub fn to_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes in fuse.h, by hand.
    #[test]
    fn layouts_have_the_sizes_of_the_header_file() {
        let sizes = [
            (InHeader::SIZE, 40),
            (OutHeader::SIZE, 16),
            (Attr::SIZE, 88),
            (AttrOut::SIZE, 104),
            (EntryOut::SIZE, 128),
            (InitIn::SIZE, 16),
            (InitOut::SIZE, 64),
            (SetattrIn::SIZE, 88),
            (ReadIn::SIZE, 40),
            (WriteIn::SIZE, 40),
            (StatfsOut::SIZE, 80),
            (ReleaseIn::SIZE, 24),
            (FallocateIn::SIZE, 32),
            (LseekIn::SIZE, 24),
            (CopyFileRangeIn::SIZE, 56),
            (Dirent::SIZE, 24),
        ];
        for (index, (size, expected)) in sizes.into_iter().enumerate() {
            assert_eq!(size, expected, "row {index}");
        }
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for bad in [c"", c".", c"..", c"/", c"a/b", c"/etc", c"../x", c"x/"] {
            assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
        }
        let long = std::ffi::CString::new(vec![b'n'; NAME_MAX + 1]).unwrap();
        assert_eq!(Name::new(&long), Err(Errno::NAMETOOLONG));
        for good in [c"a", c"...", c"..a", c"\n", c"\xff", c"a b"] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_body_gives_no_more_than_it_has() {
        let mut body = Body::new(b"\x01\x00\x00\x00name\0");
        assert_eq!(body.take::<u32>(), Ok(1));
        assert_eq!(body.name().map(Name::to_bytes), Ok(&b"name"[..]));
        assert_eq!(body.take::<u16>(), Err(Errno::INVAL));
        assert_eq!(Body::new(b"no end").text(), Err(Errno::INVAL));
        assert_eq!(Body::new(b"x").end(), Err(Errno::INVAL));
    }
}
