//! One request in, one reply out.
//! It owns the framing of FUSE messages, the state of the mount, and that a read-only share is not changed. It does
//! not know of queues: a request is a `Reader` and the room for its reply a `Writer`, over guest memory or any other
//! buffer.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::changes::Changes;
use super::dispatch::{Call, dispatch};
use super::inode::Node;
use super::notices::{Notices, Watching};
use super::opcode::{Effect, Opcode};
use super::ops_dir::READDIR_MAX;
use super::ops_file::IO_MAX;
use super::passthrough::Passthrough;
use super::root::Root;
use super::tokens::Tokens;
use super::watch::Watches;
use super::wire::{Body, InHeader, InitIn, InitOut, MAJOR, MINOR, OutHeader, Wire, WriteIn, init};
use crate::config::Share;
use crate::virtio::{BrokenQueue, Reader, Writer};

/// The longest request, data of a WRITE aside: an extended attribute, and a batch of FORGETs of a like size.
const REQUEST_MAX: usize = 68 << 10;
/// What the server keeps of its buffers between requests.
const BUFFER_KEPT: usize = READDIR_MAX;
/// Requests in the background (reading ahead, writing back) that the guest has in flight before it throttles.
const BACKGROUND_MAX: u16 = 64;
/// The most pages of one READ or WRITE, and the size of a reply's header.
const PAGES_MAX: u16 = 256;
const OUT_HEADER_BYTES: u32 = 16;

const _: () = assert!(IO_MAX == PAGES_MAX as u32 * 4096 && OUT_HEADER_BYTES as usize == OutHeader::SIZE);

/// What the server asks of the guest's kernel. Not among it: WRITEBACK_CACHE, since the host could not see what the guest
/// has written; POSIX_LOCKS and FLOCK_LOCKS, so locks hold among the guest's programs only; DONT_MASK, so a mode comes
/// with the umask applied.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2;
/// What it asks for as well when the guest may keep what it is told.
const CACHING_FEATURES: u32 = init::CACHE_SYMLINKS | init::DO_READDIRPLUS | init::READDIRPLUS_AUTO;

/// Serves the requests of one mount after the other.
#[derive(Debug)]
pub struct Server {
    files: Passthrough,
    /// INIT was answered, and no DESTROY since.
    mounted: bool,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Server {
    /// # Errors
    /// When the share is not a folder, or `/proc` is missing.
    pub fn new(share: Share) -> io::Result<Self> {
        Root::new(share).map(|root| Self::of(Arc::new(root)))
    }

    pub(super) fn of(root: Arc<Root>) -> Self {
        Self { files: Passthrough::new(root), mounted: false, request: Vec::new(), reply: Vec::new() }
    }

    /// From the next mount on the guest is told what the host changes.
    pub(super) fn announce(
        &mut self,
        notices: &Arc<Notices>,
        watches: Watches,
        tokens: Tokens,
        wake: &Arc<OwnedFd>,
    ) {
        notices.begin(Watching::new(watches, tokens, self.files.root.has_rules(), Arc::clone(wake)));
        self.files.changes = Some(Changes::new(Arc::clone(notices)));
    }

    /// Takes note of what the host has changed while there was no request.
    pub fn settle(&mut self) {
        self.files.settle();
    }

    /// What is to be told of the host's changes, if the server knows of any.
    pub(super) fn changes(&mut self) -> Option<&mut Changes> {
        self.files.changes.as_mut()
    }

    /// Puts the calling thread, which is to be the server's own, behind a second wall. On a kernel without Landlock the
    /// checks of `root` and `passthrough` hold alone.
    pub(super) fn enter_jail(&self) {
        let _as_free_as_before = self.files.root.enter_jail();
    }

    /// Serves `request` from plain buffers, and returns the length of the reply. This is what the fuzz target calls;
    /// the bytes may be anything.
    ///
    /// # Errors
    /// As for `serve`.
    pub fn answer(&mut self, request: &mut [u8], reply: &mut [u8]) -> Result<usize, BrokenQueue> {
        let mut writer = Writer::new(vec![VolatileSlice::from(reply)]);
        self.serve(&mut Reader::new(vec![VolatileSlice::from(request)]), &mut writer)?;
        Ok(writer.written() as usize)
    }

    /// Serves one request. Whatever is wrong with it is said in the reply.
    ///
    /// # Errors
    /// When there is no header to answer to, or no room for one.
    pub fn serve<'m>(&mut self, reader: &mut Reader<'m>, writer: &mut Writer<'m>) -> Result<(), BrokenQueue> {
        let mut bytes = [0; InHeader::SIZE];
        let length = reader.remaining();
        if !reader.read(&mut bytes) {
            return Err(BrokenQueue("file system request is shorter than its header"));
        }
        let header = InHeader::decode(&mut &bytes[..]).expect("as long as a header");
        let opcode = Opcode::from_wire(header.opcode).ok_or(Errno::NOSYS);
        // These have no reply: whatever is wrong with them stays unsaid.
        if let Ok(opcode @ (Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt)) = opcode {
            let _unsaid = self.run(opcode, &header, length, reader, writer);
            return Ok(());
        }
        let mut front =
            writer.split(OutHeader::SIZE).ok_or(BrokenQueue("no room for a file system reply"))?;
        self.reply.clear();
        let done = opcode.and_then(|opcode| self.run(opcode, &header, length, reader, writer));
        self.files.settle();
        let done = done.and_then(|()| writer.write(&self.reply).then_some(()).ok_or(Errno::IO));
        let error = done.err().map_or(0, |error| -error.raw_os_error());
        let body = if error == 0 { writer.written() } else { 0 };
        self.reply.clear();
        OutHeader { len: body + OUT_HEADER_BYTES, error, unique: header.unique }.encode(&mut self.reply);
        let fits = front.write(&self.reply);
        assert!(fits, "the room was split off for it");
        writer.join(&front);
        self.reply.shrink_to(BUFFER_KEPT);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn forget_descriptors(&mut self) {
        self.files.forget_descriptors();
    }

    #[cfg(test)]
    pub(super) fn known_inodes(&self) -> usize {
        self.files.table.len()
    }

    #[cfg(test)]
    pub(super) fn limit_descriptors(&mut self, limit: i32) {
        let root = Arc::get_mut(&mut self.files.root).expect("not shared in a test");
        root.fd_limit = limit;
    }

    /// Checks the frame and the server's state, and runs the operation.
    fn run<'m>(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        length: usize,
        reader: &mut Reader<'m>,
        writer: &mut Writer<'m>,
    ) -> Result<(), Errno> {
        if !self.mounted && opcode != Opcode::Init {
            return Err(Errno::IO);
        }
        if opcode.effect() == Effect::Changes && self.files.root.never_changes() {
            return Err(Errno::ROFS);
        }
        // A WRITE's data goes to the file from where it is.
        let taken = if opcode == Opcode::Write { WriteIn::SIZE } else { reader.remaining() };
        if header.len as usize != length || header.extensions != 0 || taken > REQUEST_MAX {
            return Err(Errno::INVAL);
        }
        self.request.resize(taken, 0);
        if !reader.read(&mut self.request) {
            return Err(Errno::INVAL);
        }
        let body = Body::new(&self.request);
        if opcode == Opcode::Init {
            self.files.clear();
            let features = FEATURES | if self.files.changes.is_some() { CACHING_FEATURES } else { 0 };
            let out = initialize(body, features)?;
            self.mounted = out.flags != 0;
            self.files.watch(Node::ROOT);
            out.encode(&mut self.reply);
            return Ok(());
        }
        if opcode == Opcode::Destroy {
            self.files.clear();
            self.mounted = false;
            return Ok(());
        }
        let call = Call { node: Node(header.node), reader, writer, reply: &mut self.reply };
        dispatch(&mut self.files, opcode, body, call)
    }
}

/// Answers INIT: what the guest offers and the server wants. A guest of another major version is told ours; it asks
/// again, or gives up.
fn initialize(mut body: Body<'_>, features: u32) -> Result<InitOut, Errno> {
    let request: InitIn = body.take()?;
    let version = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
    match request.major {
        ..MAJOR => Err(Errno::PROTO),
        MAJOR => Ok(InitOut {
            minor: MINOR.min(request.minor),
            max_readahead: request.max_readahead.min(IO_MAX),
            flags: features & request.flags,
            max_background: BACKGROUND_MAX,
            congestion_threshold: BACKGROUND_MAX / 4 * 3,
            max_write: IO_MAX,
            time_gran: 1,
            max_pages: PAGES_MAX,
            ..version
        }),
        _ => Ok(version),
    }
}
