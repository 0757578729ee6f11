//! Open files: what is read, written, sized, copied and kept.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{
    CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FsyncIn, LseekIn, LseekOut, OpenOut, SetattrIn,
    WRITE_CACHE, WRITE_KILL_SUIDGID, Wire as _, WriteIn, WriteOut, set,
};

const FILE: u32 = libc::S_IFREG | 0o644;

#[test]
fn what_is_written_is_read_back() {
    let mut client = Client::new();
    let (entry, fh) = client.create(client.root, "f", libc::O_RDWR, FILE).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|index: u32| index.to_le_bytes()[1]).collect();
    assert_eq!(client.write(entry.node, fh, 3, &data), Ok(1 << 20));
    assert_eq!(client.read(entry.node, fh, 3, 1 << 20).unwrap(), data);
    assert_eq!(client.read(entry.node, fh, (1 << 20) + 1, u32::MAX).unwrap().len(), 2);
    assert_eq!(client.read(entry.node, fh, 1 << 40, 10).unwrap(), b"");
    assert_eq!(client.read(entry.node, fh, 0, 0).unwrap(), b"");
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(client.read(entry.node, fh, offset, 10), Err(Errno::INVAL));
        assert_eq!(client.write(entry.node, fh, offset, b"x"), Err(Errno::INVAL));
    }
    client.run(Opcode::Fsync, entry.node, &Bytes::of(&FsyncIn { fh, flags: 1, padding: 0 })).unwrap();
    client.run(Opcode::Fsync, entry.node, &Bytes::of(&FsyncIn { fh, ..FsyncIn::default() })).unwrap();
}

#[test]
fn a_write_of_another_size_than_its_data_is_refused() {
    let mut client = Client::new();
    let (entry, fh) = client.create(client.root, "f", libc::O_RDWR, FILE).unwrap();
    for (size, data) in [(5, &b"four"[..]), (3, b"four"), (u32::MAX, b"x"), (0, b"x")] {
        let body = Bytes::of(&WriteIn { fh, size, ..WriteIn::default() }).raw(data);
        assert_eq!(client.get::<WriteOut>(Opcode::Write, entry.node, &body), Err(Errno::INVAL));
    }
    assert_eq!(client.write(entry.node, fh, 0, &vec![0; (1 << 20) + 1]), Err(Errno::INVAL));
    assert_eq!(std::fs::metadata(client.host("f")).unwrap().len(), 0);
}

#[test]
fn handles_are_good_for_their_own_file_only() {
    let mut client = Client::new();
    let root = client.root;
    let (one, fh) = client.create(root, "one", libc::O_RDWR, FILE).unwrap();
    let (two, other) = client.create(root, "two", libc::O_WRONLY, FILE).unwrap();
    for fh in [other, 0, u64::MAX] {
        assert_eq!(client.read(one.node, fh, 0, 1), Err(Errno::BADF));
        assert_eq!(client.write(one.node, fh, 0, b"x"), Err(Errno::BADF));
        assert_eq!(client.release(one.node, fh), Err(Errno::BADF));
    }
    assert_eq!(client.read(two.node, other, 0, 1), Err(Errno::BADF));
    client.release(one.node, fh).unwrap();
    assert_eq!(client.release(one.node, fh), Err(Errno::BADF));
    assert_eq!(client.open(root, libc::O_RDONLY), Err(Errno::ISDIR));
    assert_eq!(client.open(one.node, libc::O_ACCMODE), Err(Errno::INVAL));
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    let mut client = Client::new();
    let root = client.root;
    let (entry, fh) = client.create(root, "f", libc::O_RDWR, FILE).unwrap();
    client.write(entry.node, fh, 0, b"text").unwrap();
    client.unlink(root, "f").unwrap();
    std::fs::write(client.host("f"), "another").unwrap();
    let attr = client.getattr(entry.node).unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 4));
    let shorter = SetattrIn { valid: set::SIZE, size: 2, ..SetattrIn::default() };
    assert_eq!(client.setattr(entry.node, shorter).unwrap().attr.size, 2);
    let second = client.open(entry.node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(entry.node, second, 0, 10).unwrap(), b"te");
    // Forgotten while it is open: the handle still is what it was.
    client.forget(entry.node, 1);
    assert_eq!(client.read(entry.node, fh, 0, 10).unwrap(), b"te");
    client.release(entry.node, fh).unwrap();
    client.release(entry.node, second).unwrap();
    assert_eq!(client.getattr(entry.node), Err(Errno::STALE));
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"another");
}

#[test]
fn appends_go_to_the_end_and_mapped_pages_to_their_place() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "0123").unwrap();
    let node = client.walk("f").unwrap();
    let fh = client.open(node, libc::O_RDWR | libc::O_APPEND).unwrap();
    // The host appends behind the guest's back.
    std::fs::write(client.host("f"), "012345").unwrap();
    let append = WriteIn { fh, offset: 4, flags: libc::O_APPEND.cast_unsigned(), ..WriteIn::default() };
    client.write_with(node, append, b"ab").unwrap();
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"012345ab");
    client.write_with(node, WriteIn { offset: 1, write_flags: WRITE_CACHE, ..append }, b"X").unwrap();
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"0X2345ab");
}

#[test]
fn create_opens_what_is_there_only_if_it_is_a_file() {
    let mut client = Client::new();
    let root = client.root;
    std::fs::write(client.host("f"), "text").unwrap();
    let (entry, fh) = client.create(root, "f", libc::O_RDWR, FILE).unwrap();
    assert_eq!(client.read(entry.node, fh, 0, 10).unwrap(), b"text");
    let exclusive = libc::O_RDWR | libc::O_EXCL;
    assert_eq!(client.create(root, "f", exclusive, FILE).map(|_| ()), Err(Errno::EXIST));
    client.create(root, "f", libc::O_RDWR | libc::O_TRUNC, FILE).unwrap();
    assert_eq!(std::fs::metadata(client.host("f")).unwrap().len(), 0);
    client.mknod(root, "fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    client.mknod(root, "socket", libc::S_IFSOCK | 0o666, 0).unwrap();
    client.symlink(root, "link", "f").unwrap();
    client.mkdir(root, "dir").unwrap();
    for (name, error) in
        [("fifo", Errno::NXIO), ("socket", Errno::NXIO), ("link", Errno::LOOP), ("dir", Errno::ISDIR)]
    {
        let known = client.server.known_inodes();
        assert_eq!(client.create(root, name, libc::O_RDWR, FILE).map(|_| ()), Err(error), "{name}");
        assert_eq!(client.create(root, name, libc::O_WRONLY, FILE).map(|_| ()), Err(error), "{name}");
        let node = client.walk(name).unwrap();
        assert_eq!(client.open(node, libc::O_RDONLY), Err(error));
        assert_eq!(client.server.known_inodes(), known, "a failure leaves no lookup behind");
    }
}

#[test]
fn a_file_without_a_name_can_get_one() {
    let mut client = Client::new();
    let root = client.root;
    let tmpfile = |flags: i32| {
        let flags = (libc::O_TMPFILE | flags).cast_unsigned();
        Bytes::of(&CreateIn { flags, mode: FILE, ..CreateIn::default() }).name("/")
    };
    let mut reply = client.call(Opcode::Tmpfile, root, &tmpfile(libc::O_RDWR)).unwrap();
    let entry = EntryOut::decode(&mut reply).unwrap();
    let fh = OpenOut::decode(&mut reply).unwrap().fh;
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, FILE));
    client.write(entry.node, fh, 0, b"text").unwrap();
    assert_eq!(client.link(entry.node, root, "named").unwrap().node, entry.node);
    client.release(entry.node, fh).unwrap();
    assert_eq!(client.getattr(entry.node).unwrap().attr.size, 4);
    let mut reply = client.call(Opcode::Tmpfile, root, &tmpfile(libc::O_RDWR | libc::O_EXCL)).unwrap();
    let entry = EntryOut::decode(&mut reply).unwrap();
    assert_eq!(client.link(entry.node, root, "never"), Err(Errno::NOENT));
    assert_eq!(client.call(Opcode::Tmpfile, root, &tmpfile(libc::O_RDONLY)).map(|_| ()), Err(Errno::INVAL));
}

#[test]
fn holes_are_made_found_and_not_filled() {
    let mut client = Client::new();
    let (entry, fh) = client.create(client.root, "f", libc::O_RDWR, FILE).unwrap();
    let node = entry.node;
    client.write(node, fh, 1 << 20, &[1; 65536]).unwrap();
    let mut seek = |offset: u64, whence: i32| {
        let request = LseekIn { fh, offset, whence: whence.cast_unsigned(), padding: 0 };
        client.get::<LseekOut>(Opcode::Lseek, node, &Bytes::of(&request)).map(|out| out.offset)
    };
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(1 << 20));
    assert_eq!(seek(1 << 20, libc::SEEK_HOLE), Ok((1 << 20) + 65536));
    assert_eq!(seek(1 << 30, libc::SEEK_DATA), Err(Errno::NXIO));
    for whence in [libc::SEEK_SET, libc::SEEK_END, 99, -1] {
        assert_eq!(seek(0, whence), Err(Errno::INVAL));
    }
    let mut allocate = |mode: i32, offset: u64, length: u64| {
        let request = FallocateIn { fh, offset, length, mode: mode.cast_unsigned(), padding: 0 };
        client.run(Opcode::Fallocate, node, &Bytes::of(&request))
    };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    allocate(punch, 1 << 20, 65536).unwrap();
    allocate(0, 0, (1 << 20) + (1 << 17)).unwrap();
    assert_eq!(allocate(punch, u64::MAX, u64::MAX), Err(Errno::INVAL));
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, 1 << 30, -1] {
        assert_eq!(allocate(mode, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(client.read(node, fh, 1 << 20, 4).unwrap(), [0; 4]);
    assert_eq!(client.getattr(node).unwrap().attr.size, (1 << 20) + (1 << 17));
}

#[test]
fn ranges_are_copied_within_the_share() {
    let mut client = Client::new();
    let root = client.root;
    std::fs::write(client.host("from"), "0123456789").unwrap();
    let from = client.walk("from").unwrap();
    let fh_in = client.open(from, libc::O_RDONLY).unwrap();
    let (to, fh_out) = client.create(root, "to", libc::O_RDWR, FILE).unwrap();
    let request = CopyFileRangeIn {
        fh_in,
        offset_in: 2,
        node_out: to.node,
        fh_out,
        len: u64::MAX,
        ..Default::default()
    };
    let copied: WriteOut = client.get(Opcode::CopyFileRange, from, &Bytes::of(&request)).unwrap();
    assert_eq!(copied.size, 8);
    assert_eq!(std::fs::read(client.host("to")).unwrap(), b"23456789");
    let overlap = CopyFileRangeIn {
        fh_in: fh_out,
        node_out: to.node,
        fh_out,
        offset_in: 0,
        offset_out: 1,
        len: 4,
        flags: 0,
    };
    let bad = [
        (from, CopyFileRangeIn { flags: 1, ..request }, Errno::INVAL),
        (from, CopyFileRangeIn { node_out: from, ..request }, Errno::BADF),
        (from, CopyFileRangeIn { offset_in: u64::MAX, ..request }, Errno::OVERFLOW),
        (to.node, overlap, Errno::INVAL),
    ];
    for (node, request, error) in bad {
        let answer = client.get::<WriteOut>(Opcode::CopyFileRange, node, &Bytes::of(&request));
        assert_eq!(answer, Err(error), "{request:?}");
    }
}

#[test]
fn a_write_takes_set_id_away_also_from_a_privileged_server() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "text").unwrap();
    std::fs::set_permissions(client.host("f"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    let node = client.walk("f").unwrap();
    let fh = client.open(node, libc::O_RDWR).unwrap();
    let request = WriteIn { fh, write_flags: WRITE_KILL_SUIDGID, ..WriteIn::default() };
    client.write_with(node, request, b"x").unwrap();
    assert_eq!(std::fs::metadata(client.host("f")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_truncation_by_path_or_handle_sets_the_size() {
    let mut client = Client::new();
    let (entry, fh) = client.create(client.root, "f", libc::O_RDWR, FILE).unwrap();
    let host = std::fs::File::open(client.host("f")).unwrap();
    for (valid, size) in [(set::SIZE, 1 << 33), (set::SIZE | set::FH, 10), (set::SIZE, 0)] {
        let request = SetattrIn { valid, fh, size, ..SetattrIn::default() };
        assert_eq!(client.setattr(entry.node, request).unwrap().attr.size, size);
        assert_eq!(host.metadata().unwrap().len(), size);
    }
    let request = SetattrIn { valid: set::SIZE, size: u64::MAX, ..SetattrIn::default() };
    assert_eq!(client.setattr(entry.node, request), Err(Errno::INVAL));
    let dir = client.mkdir(client.root, "d").unwrap().node;
    assert_eq!(client.setattr(dir, SetattrIn { size: 0, ..request }), Err(Errno::ISDIR));
    let mut byte = [1];
    assert_eq!(host.read_at(&mut byte, 0).unwrap(), 0);
}
