//! Extended attributes: those of users only.
//! Security labels, capabilities and access lists of the host's files are neither shown nor changed, so that nothing
//! the guest sets has a meaning for the host's kernel.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::inode::Node;
use super::passthrough::Passthrough;
use super::root::proc_path;
use super::wire::{GetxattrOut, NAME_MAX, Wire};

/// The largest value, and the largest list of names: Linux `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
pub const XATTR_MAX: usize = 64 << 10;
const USER_PREFIX: &[u8] = b"user.";

impl Passthrough {
    /// Appends the value to `reply`, or its size when `size` is zero.
    pub fn getxattr(&mut self, node: Node, name: &CStr, size: u32, reply: &mut Vec<u8>) -> Result<(), Errno> {
        check_name(name)?;
        let (_fd, path) = self.named(node)?;
        fill(size, reply, |buffer| match buffer {
            Some(buffer) => rustix::fs::getxattr(&path, name, buffer),
            None => rustix::fs::getxattr_query(&path, name),
        })
    }

    /// Appends the names that are shown, or their size when `size` is zero.
    pub fn listxattr(&mut self, node: Node, size: u32, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let (_fd, path) = self.named(node)?;
        let mut all = vec![0; XATTR_MAX];
        let length = rustix::fs::listxattr(&path, &mut all[..])?;
        let shown =
            all[..length].split_inclusive(|&byte| byte == 0).filter(|name| name.starts_with(USER_PREFIX));
        let shown: Vec<u8> = shown.flatten().copied().collect();
        fill(size, reply, |buffer| match buffer {
            Some(buffer) => {
                buffer.get_mut(..shown.len()).ok_or(Errno::RANGE)?.copy_from_slice(&shown);
                Ok(shown.len())
            }
            None => Ok(shown.len()),
        })
    }

    pub fn setxattr(&mut self, node: Node, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        self.check_owned(node)?;
        check_name(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        if !(XattrFlags::CREATE | XattrFlags::REPLACE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (_fd, path) = self.named(node)?;
        rustix::fs::setxattr(path, name, value, flags)
    }

    pub fn removexattr(&mut self, node: Node, name: &CStr) -> Result<(), Errno> {
        self.check_owned(node)?;
        check_name(name)?;
        let (_fd, path) = self.named(node)?;
        rustix::fs::removexattr(path, name)
    }

    /// A path to `node` that holds as long as the descriptor beside it.
    fn named(&mut self, node: Node) -> Result<(Arc<OwnedFd>, String), Errno> {
        let fd = self.fd(node)?;
        let path = proc_path(fd.as_fd());
        Ok((fd, path))
    }
}

fn check_name(name: &CStr) -> Result<(), Errno> {
    match name.to_bytes() {
        name if name.len() > NAME_MAX => Err(Errno::RANGE),
        name if name.starts_with(USER_PREFIX) => Ok(()),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Lets `get` fill room for `size` bytes at the end of `reply`, or say how many there are.
fn fill(
    size: u32,
    reply: &mut Vec<u8>,
    get: impl FnOnce(Option<&mut [u8]>) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    if size == 0 {
        let size = u32::try_from(get(None)?).map_err(|_| Errno::TOOBIG)?;
        GetxattrOut { size, padding: 0 }.encode(reply);
        return Ok(());
    }
    let start = reply.len();
    reply.resize(start + XATTR_MAX.min(size as usize), 0);
    let length = get(Some(&mut reply[start..]))?;
    reply.truncate(start + length);
    Ok(())
}
