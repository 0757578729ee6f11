//! What the guest is told about a file: the host's answer to `statx` as FUSE attributes.
//! It owns the translation of ids and numbers. It makes no system call.

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

use super::ids::Ids;
use super::inode::Identity;
use super::wire::{Attr, AttrOut, EntryOut, VALID_TOKEN};

/// What is asked of the host about each file.
pub const STAT_MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);
/// How a name is looked at: the entry itself, without mounting anything for the guest's curiosity.
pub const STAT_FLAGS: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

/// The bits of a mode that are not the file's type.
pub const MODE_BITS: u32 = 0o7777;
/// setuid and setgid.
pub const SET_ID_BITS: u32 = 0o6000;

pub fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// True if a write by someone without privileges has to take setuid or setgid away. A setgid without the group's
/// execute bit is not a privilege: it once meant mandatory locking.
pub fn has_set_id(mode: u32) -> bool {
    mode & 0o4000 != 0 || mode & 0o2010 == 0o2010
}

/// Turns the host's numbers into the guest's.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub ids: Ids,
    /// The device of the share's root.
    pub root_dev: u64,
}

impl Shown {
    pub fn attr(&self, stat: &Statx) -> Attr {
        let (seconds, nanos) = (|time: i64| time.cast_unsigned(), |time: u32| time.min(999_999_999));
        let identity = Identity::of(stat);
        Attr {
            ino: self.ino(identity.dev, identity.ino),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: seconds(stat.stx_atime.tv_sec),
            mtime: seconds(stat.stx_mtime.tv_sec),
            ctime: seconds(stat.stx_ctime.tv_sec),
            atime_ns: nanos(stat.stx_atime.tv_nsec),
            mtime_ns: nanos(stat.stx_mtime.tv_nsec),
            ctime_ns: nanos(stat.stx_ctime.tv_nsec),
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: self.ids.shown_uid(stat.stx_uid),
            gid: self.ids.shown_gid(stat.stx_gid),
            rdev: device_number(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }

    /// `token` says until when that holds: 0 is only now.
    pub fn attr_out(&self, stat: &Statx, token: u64) -> AttrOut {
        AttrOut { valid: token, valid_ns: token_ns(token), padding: 0, attr: self.attr(stat) }
    }

    pub fn entry_out(&self, node: u64, stat: &Statx, entry_token: u64, attr_token: u64) -> EntryOut {
        EntryOut {
            attr_valid: attr_token,
            attr_valid_ns: token_ns(attr_token),
            attr: self.attr(stat),
            ..no_entry(node, entry_token)
        }
    }

    /// The host's inode number; on another device than the root's, spread so that the two do not meet.
    pub fn ino(&self, dev: u64, ino: u64) -> u64 {
        if dev == self.root_dev { ino } else { ino ^ (dev + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }
}

/// An entry without attributes; node 0 says that the name is not there.
pub fn no_entry(node: u64, token: u64) -> EntryOut {
    EntryOut { node, entry_valid: token, entry_valid_ns: token_ns(token), ..EntryOut::default() }
}

fn token_ns(token: u64) -> u32 {
    if token == 0 { 0 } else { VALID_TOKEN }
}

/// How Linux sends a device number to user space: `new_encode_dev` in include/linux/kdev_t.h.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
