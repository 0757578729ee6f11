//! A descriptor chain, checked once and as a whole, and the cursors that read and write it.
//! It owns the rules for what a driver may link together and the only code that hands guest buffers to the
//! host's kernel. It does not know which queue a chain is from or what it carries.
//! Source: virtio 1.2, 2.7.4 "Message Framing" and 2.7.5 "The Virtqueue Descriptor Table".
#![expect(unsafe_code, reason = "guest buffers are given to preadv and its kin as raw iovecs")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{c_int, iovec, off_t};
use virtio_queue::DescriptorChain;
use vm_memory::{
    Address, ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

use super::{BrokenQueue, Memory};
use crate::memory;

/// A chain with more buffers is refused: no driver of ours sends it (virtio-fs sends the most, a page each of a
/// 1 MiB transfer and its headers), and each costs the host an entry in a list.
pub const SEGMENTS_MAX: usize = 320;

/// Having a `Chain` tells you: every buffer lies within guest memory, the writable ones within RAM; the readable ones come
/// before the writable ones, there are at most `SEGMENTS_MAX`, and their lengths add up to less than 4 GiB. Their content may
/// change at any time, so read each field once.
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    buffers: usize,
    last: Option<GuestAddress>,
    pub reader: Reader<'m>,
    pub writer: Writer<'m>,
}

impl<'m> Chain<'m> {
    /// Walks `descriptors` once and checks them.
    pub(super) fn new(
        memory: &'m Memory,
        mut descriptors: DescriptorChain<&GuestMemoryMmap<()>>,
    ) -> Result<Self, BrokenQueue> {
        let (mut readable, mut writable) = (Vec::with_capacity(4), Vec::with_capacity(4));
        let (mut more, mut last) = (true, None);
        for descriptor in descriptors.by_ref() {
            more = descriptor.has_next();
            if readable.len() + writable.len() == SEGMENTS_MAX {
                return Err(BrokenQueue("chain has too many buffers"));
            }
            if !descriptor.is_write_only() && !writable.is_empty() {
                return Err(BrokenQueue("readable buffer after a writable one"));
            }
            // Found once: a transfer of a MiB has 256 of them.
            let (region, at) =
                memory.to_region_addr(descriptor.addr()).ok_or(BrokenQueue("buffer is not in memory"))?;
            let slice = region
                .get_slice(at, descriptor.len() as usize)
                .map_err(|_| BrokenQueue("buffer is not in memory"))?;
            if descriptor.is_write_only() && !memory::is_ram(region) {
                return Err(BrokenQueue("writable buffer in memory that is not"));
            }
            if descriptor.is_write_only() && descriptor.len() > 0 {
                last = descriptor.addr().checked_add(u64::from(descriptor.len()) - 1);
            }
            if descriptor.is_write_only() { &mut writable } else { &mut readable }.push(slice);
        }
        // The iterator ends without a word at a bad link; a chain that ends well ends without `next`.
        if more {
            return Err(BrokenQueue("chain does not end"));
        }
        let buffers = readable.len() + writable.len();
        let (reader, writer) = (Reader::new(readable), Writer::new(writable));
        Ok(Self { head: descriptors.head_index(), buffers, last, reader, writer })
    }

    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Where the one buffer is, of `length` bytes, that is all of the chain; for what the device writes to for as long as
    /// the driver lets it.
    pub fn only_buffer(&self, length: u32) -> Option<GuestAddress> {
        let one =
            self.reader.remaining() == 0 && self.writer.remaining() == length as usize && self.buffers == 1;
        self.last.filter(|_| one)?.checked_sub(u64::from(length) - 1)
    }

    /// Puts the chain aside, to be completed with nothing but its last writable byte; `None` if it has none.
    #[must_use]
    pub fn defer(self) -> Option<Deferred> {
        Some(Deferred { head: self.head, last: self.last? })
    }
}

/// A chain that is completed later, maybe after another thread has done the work. It borrows nothing.
#[derive(Debug)]
pub struct Deferred {
    pub(super) head: u16,
    /// Where its last writable byte is, which was in memory when the chain was checked.
    pub(super) last: GuestAddress,
}

/// The readable buffers of a chain, from the first byte not yet read.
#[derive(Debug)]
pub struct Reader<'m>(Cursor<'m>);

impl<'m> Reader<'m> {
    /// Reads `buffers` in order; together they are shorter than 4 GiB.
    #[must_use]
    pub fn new(buffers: Vec<VolatileSlice<'m>>) -> Self {
        Self(Cursor::new(buffers))
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Fills `bytes`, or takes nothing and returns false when there are too few left.
    #[must_use]
    pub fn read(&mut self, bytes: &mut [u8]) -> bool {
        if self.0.remaining < bytes.len() {
            return false;
        }
        let mut filled = 0;
        self.0.advance(bytes.len(), |slice| filled += slice.copy_to(&mut bytes[filled..]));
        true
    }

    /// Reads a value as it lies in memory, or `None` when there are too few bytes left.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Option<T> {
        let mut value = T::default();
        self.read(value.as_mut_slice()).then_some(value)
    }

    /// Writes up to `count` bytes to `file` at `offset`. Takes as many as were written.
    ///
    /// # Errors
    /// What pwritev(2) says.
    pub fn write_to_file(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        self.0.transfer(count, |iovecs, n| {
            // SAFETY: the iovecs point into guest memory, which outlives the call, and `n` is their number.
            unsafe { libc::pwritev(file.as_raw_fd(), iovecs, n, offset) }
        })
    }

    /// Writes up to `count` bytes to the end of `file`, wherever that is by then. Takes as many as were written.
    ///
    /// # Errors
    /// What pwritev2(2) says.
    pub fn append_to_file(&mut self, file: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        self.0.transfer(count, |iovecs, n| {
            // SAFETY: as in `write_to_file`.
            unsafe { libc::pwritev2(file.as_raw_fd(), iovecs, n, 0, libc::RWF_APPEND) }
        })
    }

    /// Writes up to `count` bytes to a socket, without waiting. Takes as many as were written.
    ///
    /// # Errors
    /// What sendmsg(2) says; for a peer that is gone that is EPIPE, and no signal.
    pub fn write_to_stream(&mut self, stream: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        self.0.transfer(count, |iovecs, n| {
            let message = libc::msghdr {
                msg_name: ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: iovecs.cast_mut(),
                msg_iovlen: usize::try_from(n).expect("a count"),
                msg_control: ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            };
            // SAFETY: as in `write_to_file`; the kernel does not write to the iovecs.
            unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
        })
    }
}

/// The writable buffers of a chain, from the first byte not yet written.
#[derive(Debug)]
pub struct Writer<'m>(Cursor<'m>);

impl<'m> Writer<'m> {
    /// Fills `buffers` in order; together they are shorter than 4 GiB.
    #[must_use]
    pub fn new(buffers: Vec<VolatileSlice<'m>>) -> Self {
        Self(Cursor::new(buffers))
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Bytes written so far; the driver is told this number.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.0.done
    }

    /// Writes all of `bytes`, or nothing and returns false when they do not fit.
    #[must_use]
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if self.0.remaining < bytes.len() {
            return false;
        }
        let mut used = 0;
        self.0.advance(bytes.len(), |slice| {
            slice.copy_from(&bytes[used..]);
            used += slice.len();
        });
        true
    }

    /// Writes a value as it lies in memory; false when it does not fit.
    #[must_use]
    pub fn write_obj<T: ByteValued>(&mut self, value: &T) -> bool {
        self.write(value.as_slice())
    }

    /// Reads up to `count` bytes of `file` at `offset` into the buffers.
    ///
    /// # Errors
    /// What preadv(2) says.
    pub fn read_from_file(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        self.0.transfer(count, |iovecs, n| {
            // SAFETY: the iovecs point into guest memory, which is writable and outlives the call, and `n` is
            // their number. Nothing in the process holds a reference into guest memory.
            unsafe { libc::preadv(file.as_raw_fd(), iovecs, n, offset) }
        })
    }

    /// Reads up to `count` bytes from a socket or pipe into the buffers.
    ///
    /// # Errors
    /// What readv(2) says.
    pub fn read_from_stream(&mut self, stream: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        self.0.transfer(count, |iovecs, n| {
            // SAFETY: as in `read_from_file`.
            unsafe { libc::readv(stream.as_raw_fd(), iovecs, n) }
        })
    }

    /// Gives the pages that lie wholly within the buffers back to the host. What is read there next is zero, or what a file
    /// that is mapped there holds.
    pub fn give_back(&self) {
        const PAGE: usize = 4096;
        for slice in &self.0.slices {
            let guard = slice.ptr_guard_mut();
            let address = guard.as_ptr();
            let skipped = address.addr().next_multiple_of(PAGE) - address.addr();
            let length = slice.len().saturating_sub(skipped) / PAGE * PAGE;
            if length > 0 {
                // SAFETY: the range lies in guest memory, which stays mapped. Its content may change at any time, as nothing
                // in the process holds a reference into it; a file's pages are only let go of. If it fails, they stay.
                unsafe { libc::madvise(address.wrapping_add(skipped).cast(), length, libc::MADV_DONTNEED) };
            }
        }
    }

    /// Sets the first `count` bytes aside, for a header that is known only after what follows it.
    /// `None` when fewer are left; `join` puts both together again.
    pub fn split(&mut self, count: usize) -> Option<Writer<'m>> {
        if self.0.done != 0 || self.0.remaining < count {
            return None;
        }
        let mut front = Vec::with_capacity(1);
        self.0.advance(count, |slice| front.push(slice));
        self.0.done = 0;
        Some(Writer::new(front))
    }

    /// Counts what was written to a part that `split` had set aside.
    pub fn join(&mut self, front: &Writer<'m>) {
        self.0.done += front.0.done;
    }
}

/// A position in a list of buffers.
#[derive(Debug)]
struct Cursor<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// The first buffer with bytes left, and how many of its bytes are used up.
    index: usize,
    used: usize,
    remaining: usize,
    done: u32,
}

impl<'m> Cursor<'m> {
    fn new(slices: Vec<VolatileSlice<'m>>) -> Self {
        let remaining = slices.iter().map(VolatileSlice::len).sum();
        Self { slices, index: 0, used: 0, remaining, done: 0 }
    }

    /// Visits the next `count` bytes, which the caller has checked to be there, and moves past them.
    fn advance(&mut self, count: usize, mut visit: impl FnMut(VolatileSlice<'m>)) {
        let mut left = count;
        while left > 0 {
            let slice = &self.slices[self.index];
            let length = left.min(slice.len() - self.used);
            visit(slice.subslice(self.used, length).expect("within the buffer by the line above"));
            left -= length;
            self.used += length;
            if self.used == slice.len() {
                (self.index, self.used) = (self.index + 1, 0);
            }
        }
        self.remaining -= count;
        self.done += u32::try_from(count).expect("a chain is shorter than 4 GiB");
    }

    /// Calls `transfer` with iovecs over at most `count` of the next bytes and moves past what it returns.
    fn transfer(
        &mut self,
        count: usize,
        transfer: impl FnOnce(*const iovec, c_int) -> isize,
    ) -> io::Result<usize> {
        let mut iovecs = Vec::with_capacity(self.slices.len() - self.index);
        let (mut left, mut used) = (count.min(self.remaining), self.used);
        for slice in &self.slices[self.index..] {
            if left == 0 {
                break;
            }
            let part = slice.offset(used).expect("within the buffer");
            let length = left.min(part.len());
            iovecs.push(iovec { iov_base: part.ptr_guard_mut().as_ptr().cast(), iov_len: length });
            (left, used) = (left - length, 0);
        }
        let n = c_int::try_from(iovecs.len()).expect("at most SEGMENTS_MAX");
        let moved = usize::try_from(transfer(iovecs.as_ptr(), n)).map_err(|_| io::Error::last_os_error())?;
        self.advance(moved, |_| ());
        Ok(moved)
    }
}

/// An offset the kernel takes; a larger one is invalid, as the kernel would say.
fn file_offset(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

const _: () =
    assert!(SEGMENTS_MAX < libc::UIO_MAXIOV as usize, "one system call takes all buffers of a chain");
