//! A FUSE client over `Server::answer`, with a folder of its own to serve.
//! It owns how a request is laid out. It asserts nothing about answers but their frame.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tempfile::TempDir;
use vm_memory::GuestAddress;

use crate::config::{Rules, Share};
use crate::virtio::Memory;
use crate::virtio::fs::notices::Notices;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::server::Server;
use crate::virtio::fs::tokens::Tokens;
use crate::virtio::fs::watch::{self, Watches};
use crate::virtio::fs::wire::{
    AttrOut, CreateIn, Dirent, EntryOut, ForgetIn, GetattrIn, InHeader, InitIn, InitOut, LinkIn, MAJOR,
    MkdirIn, MknodIn, OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn, ReleaseIn, Rename2In, SetattrIn, Wire,
    WriteIn, WriteOut,
};
use crate::virtio::fs::worker::apply_no_umask;

pub type Answer<T> = Result<T, Errno>;

/// Room for a reply: the largest there is.
const ROOM: usize = (1 << 20) + 4096;

pub struct Client {
    pub server: Server,
    pub root: u64,
    unique: u64,
    folder: TempDir,
    room: Vec<u8>,
    /// What no reply may contain.
    pub secret: &'static [u8],
    /// What another way to the guest would ask.
    pub notices: Arc<Notices>,
}

/// A request's body, put together.
#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn of(value: &impl Wire) -> Self {
        Self::default().and(value)
    }

    pub fn and(mut self, value: &impl Wire) -> Self {
        value.encode(&mut self.0);
        self
    }

    /// A name with its NUL.
    pub fn name(mut self, name: &str) -> Self {
        self.0.extend_from_slice(CString::new(name).unwrap().as_bytes_with_nul());
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub fn path_fd(path: &std::path::Path) -> OwnedFd {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

impl Client {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// Serves a fresh folder the way `change` wants it.
    pub fn with(change: impl FnOnce(&mut Share)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("share")).unwrap();
        let root = path_fd(&folder.path().join("share"));
        let mut share =
            Share { tag: "test".to_owned(), root, read_only: false, only: None, rules: Rules::default() };
        change(&mut share);
        let mut client = Self::mount(share, folder);
        client.init().unwrap();
        client
    }

    fn mount(share: Share, folder: TempDir) -> Self {
        apply_no_umask();
        Self {
            server: Server::new(share).unwrap(),
            root: ROOT_ID,
            unique: 0,
            folder,
            room: vec![0; ROOM],
            secret: b"",
            notices: Arc::default(),
        }
    }

    /// Serves a fresh folder to a guest that wants to know what the host changes, with the table of tokens in `memory`.
    pub fn told(memory: &Memory) -> Self {
        Self::new().announced(memory)
    }

    /// The same mount anew, for a guest that wants to know what the host changes.
    pub fn announced(mut self, memory: &Memory) -> Self {
        let inotify = watch::inotify().expect("this test needs inotify");
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let tokens = Tokens::new(Arc::clone(memory), GuestAddress(0));
        self.server.announce(&self.notices, Watches::new(inotify), tokens, &Arc::new(wake));
        self.init().unwrap();
        self
    }

    /// The same folder, served anew and differently.
    pub fn again(self, change: impl FnOnce(&mut Share)) -> Self {
        let root = path_fd(&self.folder.path().join("share"));
        let mut share =
            Share { tag: "test".to_owned(), root, read_only: false, only: None, rules: Rules::default() };
        change(&mut share);
        let mut client = Self::mount(share, self.folder);
        client.init().unwrap();
        client
    }

    /// A path on the host, in the share.
    pub fn host(&self, path: &str) -> PathBuf {
        self.folder.path().join("share").join(path)
    }

    /// A path on the host, beside the share.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn init(&mut self) -> Answer<InitOut> {
        let request = InitIn { major: MAJOR, minor: 41, max_readahead: 1 << 17, flags: u32::MAX };
        self.get(Opcode::Init, 0, &Bytes::of(&request))
    }

    /// Sends a request and takes the body of the reply.
    pub fn call(&mut self, opcode: Opcode, node: u64, body: &Bytes) -> Answer<&[u8]> {
        self.unique += 1;
        let header = InHeader {
            len: u32::try_from(InHeader::SIZE + body.0.len()).unwrap(),
            opcode: opcode as u32,
            unique: self.unique,
            node,
            ..InHeader::default()
        };
        let mut request = Bytes::of(&header).raw(&body.0).0;
        let length = self.server.answer(&mut request, &mut self.room).expect("the frame is whole");
        if matches!(opcode, Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt) {
            assert_eq!(length, 0, "{opcode:?} has no reply");
            return Ok(&[]);
        }
        let mut reply = &self.room[..length];
        let told = !self.secret.is_empty() && reply.windows(self.secret.len()).any(|at| at == self.secret);
        assert!(!told, "the answer to {opcode:?} has the secret");
        let header = OutHeader::decode(&mut reply).expect("a reply has a header");
        assert_eq!((header.unique, header.len as usize), (self.unique, length));
        match header.error {
            0 => Ok(reply),
            error => {
                assert!(reply.is_empty(), "an error has no body");
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    /// Sends a request whose reply is one value.
    pub fn get<T: Wire>(&mut self, opcode: Opcode, node: u64, body: &Bytes) -> Answer<T> {
        let mut reply = self.call(opcode, node, body)?;
        let value = T::decode(&mut reply).expect("reply is too short");
        assert!(reply.is_empty(), "reply is too long");
        Ok(value)
    }

    pub fn run(&mut self, opcode: Opcode, node: u64, body: &Bytes) -> Answer<()> {
        self.call(opcode, node, body).map(|reply| assert!(reply.is_empty(), "reply is not empty"))
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Answer<EntryOut> {
        self.get(Opcode::Lookup, parent, &Bytes::default().name(name))
    }

    /// The node of a path of existing entries.
    pub fn walk(&mut self, path: &str) -> Answer<u64> {
        path.split('/').try_fold(self.root, |node, name| self.lookup(node, name).map(|entry| entry.node))
    }

    pub fn forget(&mut self, node: u64, lookups: u64) {
        self.run(Opcode::Forget, node, &Bytes::of(&ForgetIn { lookups })).unwrap();
    }

    pub fn getattr(&mut self, node: u64) -> Answer<AttrOut> {
        self.get(Opcode::Getattr, node, &Bytes::of(&GetattrIn::default()))
    }

    pub fn setattr(&mut self, node: u64, request: SetattrIn) -> Answer<AttrOut> {
        self.get(Opcode::Setattr, node, &Bytes::of(&request))
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> Answer<EntryOut> {
        self.get(Opcode::Mkdir, parent, &Bytes::of(&MkdirIn { mode: 0o755, umask: 0 }).name(name))
    }

    pub fn mknod(&mut self, parent: u64, name: &str, mode: u32, rdev: u32) -> Answer<EntryOut> {
        self.get(Opcode::Mknod, parent, &Bytes::of(&MknodIn { mode, rdev, ..MknodIn::default() }).name(name))
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Answer<EntryOut> {
        self.get(Opcode::Symlink, parent, &Bytes::default().name(name).name(target))
    }

    pub fn link(&mut self, old_node: u64, parent: u64, name: &str) -> Answer<EntryOut> {
        self.get(Opcode::Link, parent, &Bytes::of(&LinkIn { old_node }).name(name))
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Answer<()> {
        self.run(Opcode::Unlink, parent, &Bytes::default().name(name))
    }

    pub fn rename(&mut self, old: (u64, &str), new: (u64, &str), flags: u32) -> Answer<()> {
        let request = Rename2In { new_parent: new.0, flags, padding: 0 };
        self.run(Opcode::Rename2, old.0, &Bytes::of(&request).name(old.1).name(new.1))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Answer<u64> {
        let request = OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        self.get::<OpenOut>(Opcode::Open, node, &Bytes::of(&request)).map(|out| out.fh)
    }

    pub fn opendir(&mut self, node: u64) -> Answer<u64> {
        self.get::<OpenOut>(Opcode::Opendir, node, &Bytes::of(&OpenIn::default())).map(|out| out.fh)
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Answer<(EntryOut, u64)> {
        let request = CreateIn { flags: flags.cast_unsigned(), mode, umask: 0o777, open_flags: 0 };
        let mut reply = self.call(Opcode::Create, parent, &Bytes::of(&request).name(name))?;
        let entry = EntryOut::decode(&mut reply).unwrap();
        Ok((entry, OpenOut::decode(&mut reply).unwrap().fh))
    }

    pub fn release(&mut self, node: u64, fh: u64) -> Answer<()> {
        self.run(Opcode::Release, node, &Bytes::of(&ReleaseIn { fh, ..ReleaseIn::default() }))
    }

    pub fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let request = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.call(Opcode::Read, node, &Bytes::of(&request)).map(<[u8]>::to_vec)
    }

    pub fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        self.write_with(node, WriteIn { fh, offset, ..WriteIn::default() }, data)
    }

    pub fn write_with(&mut self, node: u64, request: WriteIn, data: &[u8]) -> Answer<u32> {
        let request = WriteIn { size: u32::try_from(data.len()).unwrap(), ..request };
        self.get::<WriteOut>(Opcode::Write, node, &Bytes::of(&request).raw(data)).map(|out| out.size)
    }

    /// One READDIR or READDIRPLUS: entries with their node, which is 0 for READDIR.
    pub fn readdir(
        &mut self,
        opcode: Opcode,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Answer<Vec<(u64, Dirent, String)>> {
        let request = ReadIn { fh, offset, size, ..ReadIn::default() };
        let mut reply = self.call(opcode, node, &Bytes::of(&request))?;
        assert!(reply.len() <= size as usize);
        let mut entries = Vec::new();
        while !reply.is_empty() {
            let entry =
                if opcode == Opcode::Readdirplus { EntryOut::decode(&mut reply).unwrap().node } else { 0 };
            let dirent = Dirent::decode(&mut reply).unwrap();
            let (name, rest) = reply.split_at(dirent.namelen as usize);
            reply = &rest[(Dirent::SIZE + name.len()).next_multiple_of(8) - Dirent::SIZE - name.len()..];
            entries.push((entry, dirent, String::from_utf8_lossy(name).into_owned()));
        }
        Ok(entries)
    }

    /// The names of a whole directory, without the dots.
    pub fn names(&mut self, node: u64, size: u32) -> Vec<String> {
        let fh = self.opendir(node).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let entries = self.readdir(Opcode::Readdir, node, fh, offset, size).unwrap();
            let Some((_, last, _)) = entries.last() else { break };
            offset = last.offset;
            names.extend(
                entries.into_iter().map(|(_, _, name)| name).filter(|name| name != "." && name != ".."),
            );
        }
        self.run(Opcode::Releasedir, node, &Bytes::of(&ReleaseIn { fh, ..ReleaseIn::default() })).unwrap();
        names.sort();
        names
    }
}
