//! The shared folder on the host, and the few ways its files are opened.
//! It owns containment: everything is reached by one checked name at a time from a descriptor that was reached the
//! same way, symbolic links are never followed, and what is opened for reading or writing is known to be a regular
//! file or a directory before. It keeps no state about what the guest knows.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, Statx};
use rustix::io::Errno;
use rustix::path::DecInt;
use rustix::thread::{CapabilitySet, capabilities};

use super::attr::{STAT_FLAGS, STAT_MASK, Shown, kind};
use super::ids::Ids;
use super::inode::Identity;
use super::jail::{self, Reach};
use super::patterns::Patterns;
use super::wire::Name;
use crate::config::Share;
use crate::descriptors;

/// File systems whose files are only data. Another one may be mounted below the share by the host's user, and a write
/// to a file of procfs or cgroupfs would act on the host: what is not in this list is not entered.
/// The numbers are those of Linux, include/uapi/linux/magic.h, and of the file systems' own sources.
const STORING_FILES: [u32; 26] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0xf2f5_2010, // f2fs
    0x5265_4973, // reiserfs
    0x3153_464a, // jfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
    0x6573_5546, // fuse, virtio-fs
    0xf15f,      // ecryptfs
    0x6969,      // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2
    0x0102_1997, // 9p
    0x00c3_6400, // ceph
    0x0bd0_0bd0, // lustre
    0xe0f5_e1e2, // erofs
    0x7371_7368, // squashfs
    0x9660,      // iso9660
    0x1501_3346, // udf
    0x4d44,      // fat
    0x2011_bab0, // exfat
    0x7366_746e, // ntfs3
];

/// Those of them that nothing but this host's kernel changes, so that it reports all changes.
const LOCAL: [u32; 9] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0xf2f5_2010, // f2fs
    0x3153_464a, // jfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
];
/// File systems on which an entry has more names than the directory lists.
const GIVING_ALIASES: [u32; 5] = [
    0x4d44,      // fat
    0x2011_bab0, // exfat
    0x7366_746e, // ntfs3
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2
];
/// Linux, include/uapi/linux/fs.h, `FS_CASEFOLD_FL`: a directory of ext4, f2fs or tmpfs.
const FOLDS_CASE: IFlags = IFlags::from_bits_retain(0x4000_0000);

#[derive(Debug)]
pub struct Root {
    pub dir: Arc<OwnedFd>,
    pub identity: Identity,
    pub read_only: bool,
    pub only: Option<CString>,
    pub hidden: Patterns,
    pub writable: Patterns,
    pub fixed: Patterns,
    pub shown: Shown,
    /// All changes of its files go through this host's kernel.
    pub local: bool,
    /// A write by this process leaves setuid and setgid as they are, so that the server has to take them away.
    pub keeps_set_id: bool,
    /// `/proc/self/fd`: an `O_PATH` descriptor is opened for I/O by its entry there.
    fds: OwnedFd,
    /// Numbers from here on are not for the guest's files.
    pub(super) fd_limit: RawFd,
}

impl Root {
    pub fn new(share: Share) -> io::Result<Self> {
        let stat = stat_fd(&share.root)?;
        if kind(&stat) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let only = share.only.map(CString::new).transpose()?;
        if let Some(only) = &only {
            Name::new(only)?;
        }
        let list = |texts: &[Vec<u8>]| Patterns::new(texts).map_err(io::Error::other);
        let fds_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let identity = Identity::of(&stat);
        let root = Self {
            local: is_of(share.root.as_fd(), &LOCAL)?,
            dir: Arc::new(share.root),
            identity,
            read_only: share.read_only,
            only,
            hidden: list(&share.rules.hidden)?,
            writable: list(&share.rules.writable)?,
            fixed: list(&share.rules.fixed)?,
            shown: Shown { ids: Ids::of_process(), root_dev: identity.dev },
            keeps_set_id: capabilities(None)?.effective.contains(CapabilitySet::FSETID),
            fds: rustix::fs::openat(CWD, c"/proc/self/fd", fds_flags, Mode::empty())?,
            fd_limit: descriptors::below_for_files(),
        };
        if root.has_rules() && root.has_aliases(root.dir.as_fd())? {
            return Err(io::Error::other(
                "names in it have aliases, such as other letter cases, so that nothing in it can be hidden",
            ));
        }
        Ok(root)
    }

    /// What the guest may do is not the same all over the share.
    pub fn has_rules(&self) -> bool {
        !self.hidden.is_empty() || !self.writable.is_empty()
    }

    /// There is nothing in the share that the guest may change.
    pub fn never_changes(&self) -> bool {
        self.read_only && self.writable.is_empty()
    }

    /// Whether the entries of a directory can be reached by other names than those it lists: other letter cases, or
    /// short names of DOS. A rule about a name would not hold there.
    pub fn has_aliases(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        let magic = rustix::fs::fstatfs(dir)?.f_type;
        if u32::try_from(magic).is_ok_and(|magic| GIVING_ALIASES.contains(&magic)) {
            return Ok(true);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.admit(rustix::fs::openat(dir, c".", flags, Mode::empty())?)?;
        match rustix::fs::ioctl_getflags(&fd) {
            Ok(flags) => Ok(flags.contains(FOLDS_CASE)),
            // What has no such flags has no such directories.
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the calling thread into a jail that holds at the share's root.
    pub fn enter_jail(&self) -> Result<(), Errno> {
        let reach = match (self.never_changes(), &self.only) {
            (true, _) => Reach::Read,
            (false, Some(_)) => Reach::Content,
            (false, None) => Reach::All,
        };
        jail::enter(self.dir.as_fd(), reach)
    }

    /// Opens an entry of a directory without following or opening what it is.
    /// `entered` is the device of the directory.
    pub fn open_entry(
        &self,
        dir: BorrowedFd<'_>,
        entered: u64,
        name: Name<'_>,
    ) -> Result<(OwnedFd, Statx), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.admit(rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty())?)?;
        let stat = stat_fd(&fd)?;
        if Identity::of(&stat).dev != entered && !is_of(fd.as_fd(), &STORING_FILES)? {
            return Err(Errno::ACCESS);
        }
        Ok((fd, stat))
    }

    /// Looks at an entry of a directory.
    pub fn stat_entry(&self, dir: BorrowedFd<'_>, entered: u64, name: Name<'_>) -> Result<Statx, Errno> {
        let stat = rustix::fs::statx(dir, name.as_c_str(), STAT_FLAGS, STAT_MASK)?;
        if Identity::of(&stat).dev == entered {
            return Ok(stat);
        }
        self.open_entry(dir, entered, name).map(|(_, stat)| stat)
    }

    /// Opens for I/O what `fd` refers to, which must be known to be a regular file or a directory: opening a FIFO
    /// would wait, and opening a device might do anything.
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.admit(rustix::fs::openat(
            &self.fds,
            DecInt::from_fd(fd),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Sets the mode of what `fd` refers to, which must not be a symbolic link.
    pub fn set_mode(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        rustix::fs::chmodat(&self.fds, DecInt::from_fd(fd), Mode::from_raw_mode(mode), AtFlags::empty())
    }

    /// Gives what `fd` refers to another name.
    pub fn link(&self, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<(), Errno> {
        let old = DecInt::from_fd(fd);
        rustix::fs::linkat(&self.fds, old, dir, name.as_c_str(), AtFlags::SYMLINK_FOLLOW)
    }

    /// Takes a descriptor into use, unless the process is running out of them: the kernel gives out the lowest free
    /// number, so a high one says how many are open.
    pub fn admit(&self, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        if fd.as_raw_fd() < self.fd_limit { Ok(fd) } else { Err(Errno::NFILE) }
    }
}

pub fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", STAT_FLAGS | AtFlags::EMPTY_PATH, STAT_MASK)
}

/// The name of a descriptor for calls that take only a path: the extended attributes.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn is_of(fd: BorrowedFd<'_>, kinds: &[u32]) -> Result<bool, Errno> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    Ok(u32::try_from(magic).is_ok_and(|magic| kinds.contains(&magic)))
}
