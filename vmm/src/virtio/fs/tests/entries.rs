//! Entries and attributes: making, finding, naming, linking, removing, and what is told of them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::fs::ids::AGENT_ID;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{
    BatchForgetIn, ForgetOne, GetxattrIn, GetxattrOut, SetattrIn, SetxattrIn, StatfsOut, set,
};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

#[test]
fn what_the_guest_makes_has_the_mode_it_asked_for() {
    let mut client = Client::new();
    let root = client.root;
    for mode in [0o644, 0o600, 0o777, 0o666, 0o000, 0o1777] {
        let name = format!("f{mode:o}");
        let (entry, fh) = client.create(root, &name, libc::O_RDWR, libc::S_IFREG | mode).unwrap();
        assert_eq!(entry.attr.mode, libc::S_IFREG | mode);
        assert_eq!((entry.attr.uid, entry.attr.gid), (AGENT_ID, AGENT_ID));
        client.release(entry.node, fh).unwrap();
        assert_eq!(fs::metadata(client.host(&name)).unwrap().mode(), libc::S_IFREG | mode);
    }
    let dir = client.mkdir(root, "d").unwrap();
    assert_eq!(dir.attr.mode, libc::S_IFDIR | 0o755);
    for (name, format) in [("fifo", libc::S_IFIFO), ("sock", libc::S_IFSOCK), ("reg", libc::S_IFREG)] {
        let entry = client.mknod(root, name, format | 0o662, 0).unwrap();
        assert_eq!(entry.attr.mode, format | 0o662);
    }
}

#[test]
fn devices_and_set_id_bits_are_not_made_on_the_host() {
    let mut client = Client::new();
    let root = client.root;
    for (format, rdev) in [(libc::S_IFCHR, 0x103), (libc::S_IFBLK, 0x800), (libc::S_IFBLK, 0)] {
        assert_eq!(client.mknod(root, "device", format | 0o666, rdev), Err(Errno::PERM));
    }
    for format in [libc::S_IFDIR, libc::S_IFLNK, 0, 0xffff_ffff] {
        assert_eq!(client.mknod(root, "odd", format | 0o666, 0), Err(Errno::INVAL), "{format:x}");
    }
    assert_eq!(client.mknod(root, "whiteout", libc::S_IFCHR, 0).unwrap().attr.rdev, 0);
    let (entry, _) = client.create(root, "f", libc::O_RDWR, libc::S_IFREG | 0o6755).unwrap();
    assert_eq!(entry.attr.mode & 0o7777, 0o755);
    let request = SetattrIn { valid: set::MODE, mode: 0o6755, ..SetattrIn::default() };
    assert_eq!(client.setattr(entry.node, request).unwrap().attr.mode & 0o7777, 0o755);
    // What the host's user has set stays when it is asked for again, and goes when it is not.
    fs::set_permissions(client.host("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(client.setattr(entry.node, request).unwrap().attr.mode & 0o7777, 0o4755);
    let request = SetattrIn { mode: 0o755, ..request };
    assert_eq!(client.setattr(entry.node, request).unwrap().attr.mode & 0o7777, 0o755);
}

#[test]
fn attributes_are_the_hosts_to_the_nanosecond_and_the_block() {
    let mut client = Client::new();
    let root = client.root;
    let file = fs::File::create(client.host("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let entry = client.lookup(root, "sparse").unwrap();
    let host = fs::metadata(client.host("sparse")).unwrap();
    let attr = client.getattr(entry.node).unwrap().attr;
    assert_eq!((attr.ino, attr.size, attr.blocks), (host.ino(), host.size(), host.blocks()));
    assert_eq!(i64::from(attr.mtime_ns), host.mtime_nsec());
    let request = SetattrIn {
        valid: set::ATIME | set::MTIME,
        atime: (-5_i64).cast_unsigned(),
        atime_ns: 999_999_999,
        mtime: 1_234_567_890,
        mtime_ns: 123_456_789,
        ..SetattrIn::default()
    };
    client.setattr(entry.node, request).unwrap();
    let host = fs::metadata(client.host("sparse")).unwrap();
    assert_eq!((host.atime(), host.atime_nsec()), (-5, 999_999_999));
    assert_eq!((host.mtime(), host.mtime_nsec()), (1_234_567_890, 123_456_789));
    let late = SetattrIn { mtime_ns: 1_000_000_000, ..request };
    assert_eq!(client.setattr(entry.node, late), Err(Errno::INVAL));
    let now = SetattrIn { valid: set::MTIME | set::MTIME_NOW, ..request };
    assert!(client.setattr(entry.node, now).unwrap().attr.mtime > 1_700_000_000);
    assert_eq!(fs::metadata(client.host("sparse")).unwrap().atime(), -5);
}

#[test]
fn an_owner_is_always_the_hosts_user() {
    let mut client = Client::new();
    let node = client.mkdir(client.root, "d").unwrap().node;
    for (uid, gid) in [(0, 0), (AGENT_ID, AGENT_ID), (4242, u32::MAX - 1)] {
        let request = SetattrIn { valid: set::UID | set::GID, uid, gid, ..SetattrIn::default() };
        let attr = client.setattr(node, request).unwrap().attr;
        assert_eq!((attr.uid, attr.gid), (AGENT_ID, AGENT_ID));
    }
    let host = fs::metadata(client.host("d")).unwrap();
    assert_eq!(host.uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn setattr_takes_every_combination_of_bits() {
    let mut client = Client::new();
    let (entry, fh) = client.create(client.root, "f", libc::O_RDWR, libc::S_IFREG | 0o644).unwrap();
    let link = client.symlink(client.root, "l", "nowhere").unwrap().node;
    for valid in 0..1 << 12 {
        let request = SetattrIn { valid, fh, size: 10, mode: 0o750, ..SetattrIn::default() };
        client.setattr(entry.node, request).unwrap();
        let _any = client.setattr(link, request);
        let _any = client.setattr(client.root, request);
    }
    assert!(fs::symlink_metadata(client.host("l")).unwrap().is_symlink());
    assert_eq!(
        client.setattr(entry.node, SetattrIn { valid: set::FH, fh: 99, ..SetattrIn::default() }),
        Err(Errno::BADF)
    );
}

#[test]
fn rename_replaces_refuses_to_and_exchanges() {
    let mut client = Client::new();
    let root = client.root;
    fs::write(client.host("a"), "a").unwrap();
    fs::write(client.host("b"), "b").unwrap();
    assert_eq!(client.rename((root, "a"), (root, "b"), NOREPLACE), Err(Errno::EXIST));
    client.rename((root, "a"), (root, "b"), EXCHANGE).unwrap();
    assert_eq!(fs::read(client.host("a")).unwrap(), b"b");
    for flags in [NOREPLACE | EXCHANGE, WHITEOUT, 8, u32::MAX] {
        assert_eq!(client.rename((root, "a"), (root, "b"), flags), Err(Errno::INVAL), "{flags}");
    }
    client.rename((root, "a"), (root, "b"), 0).unwrap();
    assert_eq!(fs::read(client.host("b")).unwrap(), b"b");
    assert_eq!(client.lookup(root, "a"), Err(Errno::NOENT));
    let dir = client.mkdir(root, "d").unwrap().node;
    assert_eq!(client.rename((root, "d"), (dir, "d"), 0), Err(Errno::INVAL));
}

#[test]
fn a_renamed_directory_in_use_is_still_reached() {
    let mut client = Client::new();
    let root = client.root;
    let dir = client.mkdir(root, "old").unwrap().node;
    let other = client.mkdir(root, "other").unwrap().node;
    fs::write(client.host("old/f"), "x").unwrap();
    client.rename((root, "old"), (other, "new"), 0).unwrap();
    // The directory's descriptor is no longer there: it is found by its new place.
    client.server.forget_descriptors();
    assert!(client.lookup(dir, "f").is_ok());
    client.rename((other, "new"), (root, "other"), EXCHANGE).unwrap_err();
    assert!(client.lookup(dir, "f").is_ok());
}

#[test]
fn hard_links_are_one_inode_and_survive_each_other() {
    let mut client = Client::new();
    let root = client.root;
    let (one, fh) = client.create(root, "one", libc::O_RDWR, libc::S_IFREG | 0o644).unwrap();
    client.release(one.node, fh).unwrap();
    let two = client.link(one.node, root, "two").unwrap();
    assert_eq!((two.node, two.attr.nlink), (one.node, 2));
    client.unlink(root, "two").unwrap();
    // The last place it was seen in is gone; looking it up finds the other one again.
    assert_eq!(client.getattr(one.node), Err(Errno::STALE));
    assert_eq!(client.lookup(root, "one").unwrap().node, one.node);
    assert_eq!(client.getattr(one.node).unwrap().attr.nlink, 1);
    let dir = client.mkdir(root, "d").unwrap().node;
    assert_eq!(client.link(dir, root, "dir"), Err(Errno::PERM));
    assert_eq!(client.link(one.node, root, "one"), Err(Errno::EXIST));
}

#[test]
fn symbolic_links_are_text() {
    let mut client = Client::new();
    let root = client.root;
    for (name, target) in
        [("up", "../.."), ("abs", "/etc/passwd"), ("long", &"x".repeat(4095)), ("odd", "\n \u{1}")]
    {
        let entry = client.symlink(root, name, target).unwrap();
        assert_eq!(entry.attr.size, target.len() as u64);
        assert_eq!(client.call(Opcode::Readlink, entry.node, &Bytes::default()).unwrap(), target.as_bytes());
        assert_eq!(client.open(entry.node, libc::O_RDONLY), Err(Errno::LOOP));
        assert_eq!(client.lookup(entry.node, "passwd"), Err(Errno::NOTDIR));
    }
    assert_eq!(client.symlink(root, "empty", ""), Err(Errno::NOENT));
    assert_eq!(client.symlink(root, "huge", &"x".repeat(4096)), Err(Errno::NAMETOOLONG));
    assert_eq!(client.call(Opcode::Readlink, root, &Bytes::default()), Err(Errno::INVAL));
}

#[test]
fn names_are_checked_by_every_operation() {
    let mut client = Client::new();
    let root = client.root;
    let long = "n".repeat(256);
    for (name, error) in [
        ("", Errno::INVAL),
        (".", Errno::INVAL),
        ("..", Errno::INVAL),
        ("a/b", Errno::INVAL),
        ("/etc", Errno::INVAL),
        (&*long, Errno::NAMETOOLONG),
    ] {
        assert_eq!(client.lookup(root, name), Err(error));
        assert_eq!(client.mkdir(root, name), Err(error));
        assert_eq!(client.mknod(root, name, libc::S_IFREG, 0), Err(error));
        assert_eq!(client.symlink(root, name, "t"), Err(error));
        assert_eq!(client.unlink(root, name), Err(error));
        assert_eq!(client.run(Opcode::Rmdir, root, &Bytes::default().name(name)), Err(error));
        assert_eq!(client.link(root, root, name), Err(error));
        assert_eq!(client.rename((root, name), (root, "x"), 0), Err(error));
        assert_eq!(client.rename((root, "x"), (root, name), 0), Err(error));
        assert_eq!(client.create(root, name, libc::O_RDWR, libc::S_IFREG).map(|_| ()), Err(error));
    }
    assert!(client.mkdir(root, &"n".repeat(255)).is_ok());
}

#[test]
fn a_file_put_in_the_place_of_another_is_not_taken_for_it() {
    let mut client = Client::new();
    let root = client.root;
    fs::write(client.host("f"), "one").unwrap();
    let old = client.lookup(root, "f").unwrap().node;
    fs::remove_file(client.host("f")).unwrap();
    assert_eq!(client.getattr(old), Err(Errno::STALE));
    fs::write(client.host("f"), "two").unwrap();
    // The host may well have given it the same inode number.
    assert_eq!(client.getattr(old), Err(Errno::STALE));
    assert_eq!(client.open(old, libc::O_RDONLY), Err(Errno::STALE));
    let new = client.lookup(root, "f").unwrap().node;
    assert_ne!(new, old);
    fs::remove_file(client.host("f")).unwrap();
    symlink("/etc/passwd", client.host("f")).unwrap();
    // This one is held, as the name was missed before: it is still what it was.
    let open = client.open(new, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(new, open, 0, 16).unwrap(), b"two");
    assert_eq!(client.open(new, libc::O_RDONLY).err(), None, "its handle is open");
    client.release(new, open).unwrap();
}

/// The guest's kernel tries once more when it hears ESTALE; the host may replace the file at every step of it.
#[test]
fn a_file_that_is_replaced_again_and_again_is_opened_at_the_second_try() {
    let mut client = Client::new();
    let replace = |client: &Client, text: &str| {
        fs::write(client.host("new"), text).unwrap();
        fs::rename(client.host("new"), client.host("f")).unwrap();
    };
    replace(&client, "first");
    let first = client.lookup(client.root, "f").unwrap().node;
    replace(&client, "second");
    assert_eq!(client.open(first, libc::O_RDONLY), Err(Errno::STALE));
    let second = client.lookup(client.root, "f").unwrap().node;
    replace(&client, "third");
    assert_eq!(client.getattr(second).unwrap().attr.nlink, 0);
    let open = client.open(second, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(second, open, 0, 16).unwrap(), b"second");
    // It is held by its handle alone from then on.
    client.release(second, open).unwrap();
    assert_eq!(client.open(second, libc::O_RDONLY), Err(Errno::STALE));
    // One that the guest gives back is not held either.
    let third = client.lookup(client.root, "f").unwrap().node;
    client.forget(third, 1);
    let held = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    assert_eq!(held.filter(|path| path.starts_with(client.host("f"))).count(), 0);
}

#[test]
fn lookups_are_counted_and_forgets_in_excess_are_harmless() {
    let mut client = Client::new();
    let root = client.root;
    let dir = client.mkdir(root, "d").unwrap().node;
    let file = client.mknod(dir, "f", libc::S_IFREG | 0o644, 0).unwrap().node;
    client.lookup(dir, "f").unwrap();
    client.forget(file, 1);
    assert!(client.getattr(file).is_ok());
    // The directory is needed on the way to the file, whatever the guest says.
    client.forget(dir, u64::MAX);
    assert!(client.getattr(file).is_ok());
    client.forget(file, 1 << 63);
    assert_eq!(client.getattr(file), Err(Errno::STALE));
    assert_eq!(client.getattr(dir), Err(Errno::STALE));
    for node in [0, root, file, dir, 7, u64::MAX, 1 << 32 | 1] {
        client.forget(node, u64::MAX);
    }
    assert!(client.getattr(root).is_ok());
    let again = client.lookup(root, "d").unwrap().node;
    assert!(again != dir && again != file, "a node id is not used twice");
    let batch =
        Bytes::of(&BatchForgetIn { count: u32::MAX, padding: 0 }).and(&ForgetOne { node: again, lookups: 1 });
    client.run(Opcode::BatchForget, 0, &batch).unwrap();
    assert_eq!(client.getattr(again), Err(Errno::STALE));
}

#[test]
fn only_user_attributes_are_shown_and_kept() {
    let mut client = Client::new();
    let (entry, _) = client.create(client.root, "f", libc::O_RDWR, libc::S_IFREG | 0o644).unwrap();
    let set = |name: &str, value: &[u8], flags: u32| {
        Bytes::of(&SetxattrIn { size: u32::try_from(value.len()).unwrap(), flags }).name(name).raw(value)
    };
    let get = |name: &str, size: u32| Bytes::of(&GetxattrIn { size, padding: 0 }).name(name);
    for name in ["security.capability", "trusted.x", "system.posix_acl_access", "user", "", "x"] {
        assert_eq!(
            client.run(Opcode::Setxattr, entry.node, &set(name, b"v", 0)),
            Err(Errno::OPNOTSUPP),
            "{name}"
        );
        assert_eq!(client.call(Opcode::Getxattr, entry.node, &get(name, 100)), Err(Errno::OPNOTSUPP));
        assert_eq!(
            client.run(Opcode::Removexattr, entry.node, &Bytes::default().name(name)),
            Err(Errno::OPNOTSUPP)
        );
    }
    client.run(Opcode::Setxattr, entry.node, &set("user.a", b"value\0", 0)).unwrap();
    assert_eq!(client.run(Opcode::Setxattr, entry.node, &set("user.a", b"v", 1)), Err(Errno::EXIST));
    assert_eq!(client.run(Opcode::Setxattr, entry.node, &set("user.a", b"v", 4)), Err(Errno::INVAL));
    assert_eq!(client.call(Opcode::Getxattr, entry.node, &get("user.a", 100)).unwrap(), b"value\0");
    assert_eq!(client.get::<GetxattrOut>(Opcode::Getxattr, entry.node, &get("user.a", 0)).unwrap().size, 6);
    assert_eq!(client.call(Opcode::Getxattr, entry.node, &get("user.a", 5)), Err(Errno::RANGE));
    assert_eq!(client.call(Opcode::Getxattr, entry.node, &get("user.none", 5)), Err(Errno::NODATA));
    assert_eq!(client.call(Opcode::Getxattr, entry.node, &get("user.a", u32::MAX)).unwrap().len(), 6);
    let list = |size: u32| Bytes::of(&GetxattrIn { size, padding: 0 });
    assert_eq!(client.call(Opcode::Listxattr, entry.node, &list(100)).unwrap(), b"user.a\0");
    assert_eq!(client.call(Opcode::Listxattr, entry.node, &list(6)), Err(Errno::RANGE));
    client.run(Opcode::Removexattr, entry.node, &Bytes::default().name("user.a")).unwrap();
    assert_eq!(client.get::<GetxattrOut>(Opcode::Listxattr, entry.node, &list(0)).unwrap().size, 0);
}

#[test]
fn statfs_is_the_hosts() {
    let mut client = Client::new();
    let stat: StatfsOut = client.get(Opcode::Statfs, client.root, &Bytes::default()).unwrap();
    let host = rustix::fs::statvfs(client.host("")).unwrap();
    assert_eq!((stat.blocks, u64::from(stat.frsize)), (host.f_blocks, host.f_frsize));
}
