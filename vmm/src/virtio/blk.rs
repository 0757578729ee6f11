//! The block device: a raw file as a disk.
//! It owns the checks on sectors and the rule that what is slow stalls nobody but who asked for it. It does not
//! know file systems or image formats. Source: virtio 1.2, 5.2 "Block Device".
//!
//! Reads and writes are done where the kick comes in, on the vCPU's thread: they mostly meet the host's page
//! cache, where handing them to another thread would cost more than the copy, and the vCPU that asks usually waits
//! for the answer. Flushes and discards wait for the host's storage, so the disk's worker does them, and other
//! requests go on meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use self::floor::Floor;
use self::worker::{Range, Work, Worker};
use super::{BrokenQueue, Device, Memory, Profile, Queue, Reader, Writer};
use crate::config;

mod floor;
mod worker;

/// virtio 1.2, 5.2.1 "Device ID".
const DEVICE_ID: u32 = 2;
const SECTOR_SIZE: u64 = 512;
const QUEUE_SIZE: u16 = 128;
/// The most buffers of a request beside header and status, their size, and so the most bytes. One request is read
/// or written in one go, so this is how long the other devices may have to wait for it.
const SEGMENTS_MAX: u32 = 126;
const SEGMENT_SIZE_MAX: u32 = 64 << 10;
const REQUEST_SIZE_MAX: usize = (SEGMENTS_MAX * SEGMENT_SIZE_MAX) as usize;
/// The most ranges of a discard or write-zeroes request, and sectors of a range.
const RANGES_MAX: u32 = 16;
const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// What one call does before other devices have their turn.
const REQUESTS_MAX: usize = 64;
const BYTES_MAX: usize = 2 << 20;

/// virtio 1.2, 5.2.3 "Feature bits".
mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The types of request (5.2.6 "Device Operation").
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// What the last byte of a request says (5.2.6 "Device Operation").
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
    #[error("the image is not a regular file")]
    Kind,
    #[error("the image is {0} bytes long, which is no whole number of 512-byte sectors")]
    Sectors(u64),
    #[error("create an eventfd")]
    EventFd(#[source] io::Error),
}

/// A disk; the queue is there between activation and reset.
#[derive(Debug)]
pub struct Blk {
    image: Image,
    config_space: [u8; 60],
    worker: Worker,
    active: Option<(Memory, Queue)>,
}

impl Blk {
    /// A disk as large as the file is now.
    ///
    /// # Errors
    /// When the file is not a regular one, or no whole number of sectors.
    pub fn new(disk: config::Disk) -> Result<Self, Error> {
        let metadata = disk.file.metadata().map_err(Error::Size)?;
        if !metadata.is_file() {
            return Err(Error::Kind);
        }
        let size = metadata.len();
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::Sectors(size));
        }
        let file = Arc::new(disk.file);
        let worker = Worker::new(Arc::clone(&file)).map_err(Error::EventFd)?;
        let floor = Floor::new(Arc::clone(&file), disk.keep_free);
        let image = Image { file, sectors: size / SECTOR_SIZE, read_only: disk.read_only, floor };
        Ok(Self { config_space: config_space(image.sectors), image, worker, active: None })
    }

    /// Answers what the worker has done, and then requests as far as the budget goes.
    fn serve(&mut self) -> Result<(), BrokenQueue> {
        let Some((memory, queue)) = &mut self.active else { return Ok(()) };
        for (chain, status) in self.worker.take_done() {
            queue.complete_deferred(memory, chain, status as u8)?;
        }
        // What the worker still does for the driver before this one comes first; then it wakes us.
        if !self.worker.is_stale() && drain(&mut self.image, &mut self.worker, memory, queue)? {
            self.worker.wake();
        }
        queue.notify(memory)
    }
}

impl Device for Blk {
    fn profile(&self) -> Profile {
        use feature::{BLK_SIZE, DISCARD, FLUSH, READ_ONLY, SEG_MAX, SIZE_MAX, WRITE_ZEROES};
        let access = if self.image.read_only { READ_ONLY } else { FLUSH | DISCARD | WRITE_ZEROES };
        let features = SIZE_MAX | SEG_MAX | BLK_SIZE | access;
        Profile { id: DEVICE_ID, features, queue_sizes: &[QUEUE_SIZE] }
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, memory: Memory, queues: Vec<Queue>) {
        let [queue] = <[Queue; 1]>::try_from(queues).expect("as many as in the profile");
        self.active = Some((memory, queue));
        self.worker.activate();
    }

    fn kick(&mut self, _index: usize) -> Result<(), BrokenQueue> {
        self.serve().inspect_err(|_| self.reset())
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.worker.wake_fd())
    }

    fn ready(&mut self) -> Result<(), BrokenQueue> {
        self.worker.acknowledge();
        self.kick(0)
    }

    /// The disk is as large as the file is now, unless that is smaller: a driver would not expect it.
    fn refresh(&mut self) {
        let size = self.image.file.metadata().map_or(0, |metadata| metadata.len());
        self.image.sectors = self.image.sectors.max(size / SECTOR_SIZE);
        self.config_space = config_space(self.image.sectors);
    }

    fn reset(&mut self) {
        self.active = None;
        self.worker.reset();
    }

    fn is_at_rest(&self) -> bool {
        !self.worker.is_stale()
    }
}

/// Takes requests and answers them or hands them to the worker. True if there may be more.
fn drain(
    image: &mut Image,
    worker: &mut Worker,
    memory: &Memory,
    queue: &mut Queue,
) -> Result<bool, BrokenQueue> {
    let mut bytes = 0;
    queue.mute_kicks(memory)?;
    for _ in 0..REQUESTS_MAX {
        if bytes > BYTES_MAX {
            break;
        }
        let Some(mut chain) = queue.pop(memory)? else {
            if queue.unmute_kicks(memory)? {
                continue;
            }
            return Ok(false);
        };
        bytes += chain.reader.remaining() + chain.writer.remaining();
        let data_length =
            chain.writer.remaining().checked_sub(1).ok_or(BrokenQueue("request has no room for a status"))?;
        let mut data = chain.writer.split(data_length).expect("nothing was written yet");
        match image.execute(&mut chain.reader, &mut data)? {
            Answer::Now(status) => {
                chain.writer.join(&data);
                assert!(chain.writer.write(&[status as u8]), "one byte was left for it");
                queue.complete(memory, chain)?;
            }
            // A driver that waits for its answers cannot have more than there are descriptors.
            Answer::Later(_) if worker.len() >= QUEUE_SIZE.into() => {
                return Err(BrokenQueue("more requests than the queue is long"));
            }
            Answer::Later(work) => worker.start(chain.defer().expect("it has a status byte"), work),
        }
    }
    Ok(true)
}

/// What comes of a request.
enum Answer {
    Now(Status),
    Later(Work),
}

/// The file as sectors.
#[derive(Debug)]
struct Image {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
    floor: Floor,
}

impl Image {
    /// Does what the request in `reader` says; what it reads goes to `data`.
    fn execute(&mut self, reader: &mut Reader<'_>, data: &mut Writer<'_>) -> Result<Answer, BrokenQueue> {
        let mut header = [0; 16];
        if !reader.read(&mut header) {
            return Err(BrokenQueue("request has no header"));
        }
        let kind = u32::from_le_bytes(field(&header, 0));
        let sector = u64::from_le_bytes(field(&header, 8));
        let status = match kind {
            kind::IN => self.read(sector, data),
            kind::OUT => self.write(sector, reader),
            kind::FLUSH if !self.read_only => return Ok(Answer::Later(Work::Flush)),
            kind::GET_ID => write_id(data),
            kind::DISCARD | kind::WRITE_ZEROES if !self.read_only => match self.zero(kind, reader) {
                Ok(work) => return Ok(Answer::Later(work)),
                Err(status) => status,
            },
            _ => Status::Unsupported,
        };
        Ok(Answer::Now(status))
    }

    fn read(&self, sector: u64, data: &mut Writer<'_>) -> Status {
        let Some(mut offset) = self.offset(sector, data.remaining()) else { return Status::IoError };
        while data.remaining() > 0 {
            match data.read_from_file(self.file.as_fd(), offset, data.remaining()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file has become shorter, or the storage failed.
                Ok(0) | Err(_) => return Status::IoError,
                Ok(count) => offset += count as u64,
            }
        }
        Status::Ok
    }

    fn write(&mut self, sector: u64, data: &mut Reader<'_>) -> Status {
        let Some(mut offset) = self.offset(sector, data.remaining()).filter(|_| !self.read_only) else {
            return Status::IoError;
        };
        // No status says that there is no space (5.2.6 "Device Operation").
        if !self.floor.allows(offset, data.remaining() as u64) {
            return Status::IoError;
        }
        while data.remaining() > 0 {
            match data.write_to_file(self.file.as_fd(), offset, data.remaining()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return Status::IoError,
                Ok(count) => offset += count as u64,
            }
        }
        Status::Ok
    }

    /// The ranges of a discard or write-zeroes request.
    fn zero(&mut self, kind: u32, reader: &mut Reader<'_>) -> Result<Work, Status> {
        const UNMAP: u32 = 1;
        const RANGE_SIZE: usize = 16;
        let mut ranges = Vec::new();
        let mut keep = false;
        if reader.remaining() > RANGES_MAX as usize * RANGE_SIZE {
            return Err(Status::IoError);
        }
        while reader.remaining() > 0 {
            let mut bytes = [0; RANGE_SIZE];
            if !reader.read(&mut bytes) {
                return Err(Status::IoError);
            }
            let count = u32::from_le_bytes(field(&bytes, 8));
            let flags = u32::from_le_bytes(field(&bytes, 12));
            if flags & !UNMAP != 0 || kind == kind::DISCARD && flags != 0 {
                return Err(Status::Unsupported);
            }
            // Space that is to be kept in one range is kept in all.
            keep |= kind == kind::WRITE_ZEROES && flags & UNMAP == 0;
            let length = u64::from(count) * SECTOR_SIZE;
            let offset = self.range(u64::from_le_bytes(field(&bytes, 0)), length);
            let offset = offset.filter(|_| count <= RANGE_SECTORS_MAX).ok_or(Status::IoError)?;
            if keep && !self.floor.allows(offset, length) {
                return Err(Status::IoError);
            }
            if length > 0 {
                ranges.push(Range { offset, length });
            }
        }
        Ok(Work::Zero { ranges, keep })
    }

    /// Where in the file `sector` is, if a request for `length` bytes from there may be served.
    fn offset(&self, sector: u64, length: usize) -> Option<u64> {
        self.range(sector, length as u64).filter(|_| length <= REQUEST_SIZE_MAX)
    }

    /// Where in the file `sector` is, if `length` bytes from there are whole sectors of the disk.
    fn range(&self, sector: u64, length: u64) -> Option<u64> {
        let end = sector.checked_add(length / SECTOR_SIZE)?;
        (length.is_multiple_of(SECTOR_SIZE) && end <= self.sectors).then(|| sector * SECTOR_SIZE)
    }
}

/// As much of the name as there is room for.
fn write_id(data: &mut Writer<'_>) -> Status {
    const ID: &[u8; 20] = b"coracle\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert!(data.write(&ID[..data.remaining().min(ID.len())]), "it is cut to fit");
    Status::Ok
}

/// 5.2.4 "Device configuration layout".
fn config_space(sectors: u64) -> [u8; 60] {
    /// Holes of less than a page of the host give nothing back.
    const DISCARD_ALIGNMENT: u32 = 8;
    let mut config = [0; 60];
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(8, SEGMENT_SIZE_MAX);
    put(12, SEGMENTS_MAX);
    put(20, 512);
    put(36, RANGE_SECTORS_MAX);
    put(40, RANGES_MAX);
    put(44, DISCARD_ALIGNMENT);
    put(48, RANGE_SECTORS_MAX);
    put(52, RANGES_MAX);
    // A write of zeroes may free space.
    put(56, 1);
    config[..8].copy_from_slice(&sectors.to_le_bytes());
    config
}

fn field<const N: usize>(bytes: &[u8; 16], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests;
