//! The block device: a raw file as a disk.
//! It owns the checks on sectors and the rule that a slow flush stalls nobody but this disk. It does not know
//! file systems or image formats. Source: virtio 1.2, 5.2 "Block Device".
//!
//! Reads and writes are done where the kick comes in, on the vCPU's thread: they mostly meet the host's page
//! cache, and the vCPU that asks usually waits for the answer. A flush waits for hardware, so a thread does it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use self::flush::Flush;
use super::{BrokenQueue, Device, Memory, Profile, Queue, Reader, Writer};
use crate::config;

mod flush;
#[cfg(test)]
mod tests;

const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 128;
/// Buffers of one request; with header and status they stay below `SEGMENTS_MAX`.
const SEGMENTS: u32 = 126;
/// The most sectors one discard or write-zeroes segment may name, and the most segments.
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
const DISCARD_SEGMENTS_MAX: u32 = 16;

/// 5.2.3 "Feature bits"
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// 5.2.6 "Device Operation"
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the size of the image")]
    Size(#[source] io::Error),
    #[error("the image is {0} bytes long, which is no whole number of 512-byte sectors")]
    Sectors(u64),
    #[error("create an eventfd")]
    EventFd(#[source] io::Error),
}

/// A disk; the queue is there between activation and reset.
#[derive(Debug)]
pub struct Blk {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
    config: [u8; 60],
    active: Option<(Memory, Queue)>,
    flush: Flush,
}

impl Blk {
    /// A disk as large as the file is now.
    ///
    /// # Errors
    /// When the file is not a whole number of sectors.
    pub fn new(disk: config::Disk) -> Result<Self, Error> {
        let size = disk.file.metadata().map_err(Error::Size)?.len();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Error::Sectors(size));
        }
        let file = Arc::new(disk.file);
        Ok(Self {
            flush: Flush::new(Arc::clone(&file)).map_err(Error::EventFd)?,
            file,
            sectors: size / SECTOR,
            read_only: disk.read_only,
            config: config_space(size / SECTOR),
            active: None,
        })
    }

    /// Serves requests until there is none, or one is a flush that has to be waited for.
    fn serve(&mut self) -> Result<(), BrokenQueue> {
        // Taken out so that the disk can be borrowed beside it.
        let Some((memory, mut queue)) = self.active.take() else { return Ok(()) };
        let result = self.drain_and_rearm(&memory, &mut queue);
        let notified = queue.notify(&memory);
        self.active = Some((memory, queue));
        result.and(notified)
    }

    fn drain_and_rearm(&mut self, memory: &Memory, queue: &mut Queue) -> Result<(), BrokenQueue> {
        loop {
            self.drain(memory, queue)?;
            // The end of the flush goes on with the queue, so that needs no kick.
            if self.flush.is_running() || !queue.unmute_kicks(memory)? {
                return Ok(());
            }
        }
    }

    fn drain(&mut self, memory: &Memory, queue: &mut Queue) -> Result<(), BrokenQueue> {
        while !self.flush.is_running()
            && let Some(mut chain) = queue.pop(memory)?
        {
            let header = read_header(&mut chain.reader)?;
            let data_length =
                chain.writer.remaining().checked_sub(1).ok_or(BrokenQueue("no room for a status"))?;
            if header.kind == request::FLUSH && !self.flush.take_done() {
                // It comes out again, checked again, when the host's disk has it.
                queue.put_back(chain);
                self.flush.start();
                return Ok(());
            }
            let mut data = chain.writer.split(data_length).ok_or(BrokenQueue("buffer shrank"))?;
            let status = self.execute(header, &mut chain.reader, &mut data);
            chain.writer.join(&data);
            if !chain.writer.write(&[status as u8]) {
                return Err(BrokenQueue("no room for a status"));
            }
            queue.complete(memory, chain)?;
        }
        Ok(())
    }

    fn execute(&self, header: Header, reader: &mut Reader<'_>, data: &mut Writer<'_>) -> Status {
        let done = match header.kind {
            request::IN => self.read(header.sector, data),
            request::OUT => self.write(header.sector, reader),
            request::FLUSH => return if self.flush.failed() { Status::IoError } else { Status::Ok },
            request::GET_ID => write_id(data),
            request::DISCARD | request::WRITE_ZEROES if !self.read_only => {
                return self.zero(header.kind, reader);
            }
            _ => return Status::Unsupported,
        };
        if done.is_some() { Status::Ok } else { Status::IoError }
    }

    fn read(&self, sector: u64, data: &mut Writer<'_>) -> Option<()> {
        let mut offset = self.range(sector, data.remaining())?;
        while data.remaining() > 0 {
            match data.read_from_file(self.file.as_fd(), offset, data.remaining()).ok()? {
                0 => return None,
                count => offset += count as u64,
            }
        }
        Some(())
    }

    fn write(&self, sector: u64, reader: &mut Reader<'_>) -> Option<()> {
        if self.read_only {
            return None;
        }
        let mut offset = self.range(sector, reader.remaining())?;
        while reader.remaining() > 0 {
            match reader.write_to_file(self.file.as_fd(), offset, reader.remaining()).ok()? {
                0 => return None,
                count => offset += count as u64,
            }
        }
        Some(())
    }

    /// Discards or zeroes the segments listed in the request (5.2.6, `virtio_blk_discard_write_zeroes`).
    fn zero(&self, kind: u32, reader: &mut Reader<'_>) -> Status {
        const UNMAP: u32 = 1;
        const SEGMENT_SIZE: usize = 16;
        if reader.remaining() > SEGMENT_SIZE * DISCARD_SEGMENTS_MAX as usize {
            return Status::IoError;
        }
        while reader.remaining() > 0 {
            let mut segment = [0; SEGMENT_SIZE];
            if !reader.read(&mut segment) {
                return Status::IoError;
            }
            let (sector, rest) = segment.split_at(8);
            let sector = u64::from_le_bytes(sector.try_into().expect("8 bytes"));
            let (count, flags) = rest.split_at(4);
            let count = u32::from_le_bytes(count.try_into().expect("4 bytes"));
            let flags = u32::from_le_bytes(flags.try_into().expect("4 bytes"));
            if flags & !UNMAP != 0 || (kind == request::DISCARD && flags != 0) {
                return Status::Unsupported;
            }
            if count > DISCARD_SECTORS_MAX || self.punch(sector, count).is_none() {
                return Status::IoError;
            }
        }
        Status::Ok
    }

    /// Gives the sectors' space back to the host; they read as zeroes.
    fn punch(&self, sector: u64, count: u32) -> Option<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let length = u64::from(count) * SECTOR;
        let offset = self.range(sector, usize::try_from(length).ok()?)?;
        if length == 0 {
            return Some(());
        }
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length).ok()
    }

    /// The byte offset of `sector` if `length` bytes from there are whole sectors of the disk.
    fn range(&self, sector: u64, length: usize) -> Option<u64> {
        let length = u64::try_from(length).ok()?;
        let end = sector.checked_add(length / SECTOR)?;
        (length.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }
}

impl Device for Blk {
    fn profile(&self) -> Profile {
        let writable = if self.read_only { READ_ONLY } else { FLUSH | DISCARD | WRITE_ZEROES };
        Profile { id: 2, features: SEG_MAX | BLK_SIZE | writable, queue_sizes: &[QUEUE_SIZE] }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        self.active = queues.into_iter().next().map(|queue| (memory, queue));
    }

    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        self.serve()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.flush.done_fd())
    }

    fn ready(&mut self) -> Result<(), BrokenQueue> {
        self.flush.acknowledge();
        self.serve()
    }

    fn reset(&mut self) {
        // A flush that is under way touches no guest memory; its result is forgotten.
        self.active = None;
        self.flush.forget();
    }
}

/// The first 16 bytes of every request.
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

fn read_header(reader: &mut Reader<'_>) -> Result<Header, BrokenQueue> {
    let mut bytes = [0; 16];
    if !reader.read(&mut bytes) {
        return Err(BrokenQueue("request without a header"));
    }
    let (kind, sector) = (bytes[..4].try_into(), bytes[8..].try_into());
    Ok(Header {
        kind: u32::from_le_bytes(kind.expect("4 bytes")),
        sector: u64::from_le_bytes(sector.expect("8 bytes")),
    })
}

fn write_id(data: &mut Writer<'_>) -> Option<()> {
    const ID: &[u8; 20] = b"coracle\0\0\0\0\0\0\0\0\0\0\0\0\0";
    data.write(&ID[..data.remaining().min(ID.len())]).then_some(())
}

/// 5.2.4 "Device configuration layout"
fn config_space(sectors: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(12, SEGMENTS);
    put(20, 512); // blk_size
    put(36, DISCARD_SECTORS_MAX);
    put(40, DISCARD_SEGMENTS_MAX);
    put(44, 8); // discard_sector_alignment: a page of the host
    put(48, DISCARD_SECTORS_MAX);
    put(52, DISCARD_SEGMENTS_MAX);
    config[0..8].copy_from_slice(&sectors.to_le_bytes());
    config[56] = 1; // write zeroes may unmap
    config
}
