//! The jail of a share's thread: a Landlock domain in which the host's kernel lets it reach the share's folder alone.
//! It is the second wall, and knows nothing of names, links or what the guest asked for. It does not mediate what works
//! on a path without opening it: stat, access, statfs, readlink, chmod, chown, the times, extended attributes, and
//! watches. For those the checks in `root` and `passthrough` are the only wall.
//! Source: Linux Documentation/userspace-api/landlock.rst.
#![expect(unsafe_code, reason = "neither rustix nor libc has a function for the calls of Landlock")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// The oldest Landlock that can be used: the first one refuses every rename and link from one directory to another.
const ABI_MIN: libc::c_long = 2;
const CREATE_RULESET_VERSION: libc::c_ulong = 1;
const RULE_PATH_BENEATH: libc::c_ulong = 1;

/// Rights on files: Linux include/uapi/linux/landlock.h, "Filesystem flags".
mod right {
    pub const WRITE_FILE: u64 = 1 << 1;
    pub const READ_FILE: u64 = 1 << 2;
    pub const READ_DIR: u64 = 1 << 3;
    pub const REMOVE_DIR: u64 = 1 << 4;
    pub const REMOVE_FILE: u64 = 1 << 5;
    pub const MAKE_CHAR: u64 = 1 << 6;
    pub const MAKE_DIR: u64 = 1 << 7;
    pub const MAKE_REG: u64 = 1 << 8;
    pub const MAKE_SOCK: u64 = 1 << 9;
    pub const MAKE_FIFO: u64 = 1 << 10;
    pub const MAKE_SYM: u64 = 1 << 12;
    pub const REFER: u64 = 1 << 13;
    pub const TRUNCATE: u64 = 1 << 14;
    pub const IOCTL_DEV: u64 = 1 << 15;
}

/// To list and to read, which is all there is in a read-only share.
const READ: u64 = right::READ_FILE | right::READ_DIR;
/// To change the content of files.
const WRITE: u64 = right::WRITE_FILE | right::TRUNCATE;
/// To change directories. Running a file and making a block device are in no share's rights.
const ENTRIES: u64 = right::REMOVE_DIR
    | right::REMOVE_FILE
    | right::MAKE_CHAR
    | right::MAKE_DIR
    | right::MAKE_REG
    | right::MAKE_SOCK
    | right::MAKE_FIFO
    | right::MAKE_SYM
    | right::REFER;

/// What a share's thread may do below the share's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Read,
    /// A share of a single file. The jail holds at its folder: a rule for the file would be one for its inode, and
    /// editors put a new one in its place.
    Content,
    All,
}

impl Reach {
    fn rights(self) -> u64 {
        match self {
            Self::Read => READ,
            Self::Content => READ | WRITE,
            Self::All => READ | WRITE | ENTRIES,
        }
    }
}

/// `struct landlock_ruleset_attr`. A kernel that does not know the last fields takes them as long as they are zero.
#[repr(C)]
struct RulesetAttr {
    files: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed: u64,
    parent: RawFd,
}

impl RulesetAttr {
    /// Everything a Landlock of this version can take away.
    fn all(abi: libc::c_long) -> Self {
        // Rights are numbered in the order they came.
        let files = match abi {
            ..=2 => right::TRUNCATE - 1,
            3..=4 => right::IOCTL_DEV - 1,
            5.. => (right::IOCTL_DEV << 1) - 1,
        };
        // Both of TCP (bind and connect); then abstract sockets and signals outside the domain.
        Self { files, net: if abi >= 4 { 0b11 } else { 0 }, scoped: if abi >= 6 { 0b11 } else { 0 } }
    }
}

/// Puts the calling thread, and no other, into the jail for good. What it has open already stays open.
///
/// # Errors
/// When this kernel has no Landlock of use; the thread is then as free as before.
pub fn enter(root: BorrowedFd<'_>, reach: Reach) -> Result<(), Errno> {
    let all = RulesetAttr::all(version()?);
    let ruleset = create(&all)?;
    let rule = PathBeneathAttr { allowed: reach.rights() & all.files, parent: root.as_raw_fd() };
    // SAFETY: the kernel reads `rule`, which is laid out as the type of rule says and outlives the call.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    checked(added)?;
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: no memory is passed. It only takes rights away from this thread, on which no memory depends.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) }).map(drop)
}

/// The version of the kernel's Landlock.
///
/// # Errors
/// When there is none, or one that is too old.
pub fn version() -> Result<libc::c_long, Errno> {
    let none: *const RulesetAttr = std::ptr::null();
    // SAFETY: to be asked for its version, the kernel wants no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION) };
    let version = checked(version)?;
    if version < ABI_MIN { Err(Errno::OPNOTSUPP) } else { Ok(version) }
}

fn create(attr: &RulesetAttr) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads `attr`, of the size that is given, and it outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *attr, size_of::<RulesetAttr>(), 0_u32)
    };
    let fd = RawFd::try_from(checked(fd)?).expect("a descriptor");
    // SAFETY: the kernel has just made it, close-on-exec, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned >= 0 {
        return Ok(returned);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).expect("it came from errno"))
}
