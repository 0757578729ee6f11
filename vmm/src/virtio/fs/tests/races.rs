//! Races: the host's user changes what a path means while the guest uses it. Five ways to change it, four kinds of
//! operations, each pair with a server of its own. The jail is off: it is the server's checks that hold.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use super::client::{Bytes, Client};
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{
    CopyFileRangeIn, CreateIn, FallocateIn, GetxattrIn, SetattrIn, SetxattrIn, WriteIn, set,
};

/// For how long each pair races, in seconds; one if it is not set.
const SECONDS: &str = "CORACLE_RACE_SECONDS";
/// A pair races on until this many rounds of either side are done.
const ROUNDS_MIN: u32 = 20;
const FILE: u32 = libc::S_IFREG | 0o644;
const SECRET: &[u8] = b"nobody in the guest has ever seen this";
/// Names in the folder outside, the canary; the first two are in the share's folder `d` as well.
const NAMES: [&str; 3] = ["x", "y", "only-outside"];

/// One change and its undoing, of what is in the share (the first path), given the folder outside.
type Change = fn(&Path, &Path);
/// Whatever can be done to the node of `d`.
type Attack = fn(&mut Client, u64);

const CHANGES: [(&str, Change); 5] = [
    ("a relative link", |share, _| swap_with_link(share, Path::new("../out"))),
    ("an absolute link", |share, out| swap_with_link(share, out)),
    ("a magic link", |share, out| {
        swap_with_link(share, &Path::new("/proc/self/root").join(out.strip_prefix("/").unwrap()));
    }),
    ("moving out and back", |share, out| {
        // The name is a link meanwhile, so that the guest finds something.
        let away = out.with_file_name("away");
        std::fs::rename(share.join("d"), &away).unwrap();
        symlink(out, share.join("d")).unwrap();
        std::fs::remove_file(share.join("d")).unwrap();
        std::fs::rename(&away, share.join("d")).unwrap();
    }),
    ("files that become links and FIFOs", |share, out| {
        let (file, other) = (share.join("d/x"), share.join("other"));
        let _none = std::fs::remove_file(&other);
        symlink(out.join("x"), &other).unwrap();
        // Nothing is there when the guest has just removed it.
        let _any = rustix::fs::renameat_with(CWD, &file, CWD, &other, RenameFlags::EXCHANGE);
        let _none = std::fs::remove_file(&other);
        rustix::fs::mknodat(CWD, &other, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _any = rustix::fs::renameat_with(CWD, &file, CWD, &other, RenameFlags::EXCHANGE);
        std::fs::write(share.join("file"), "decoy").unwrap();
        let _any = std::fs::rename(share.join("file"), &file);
    }),
];

const ATTACKS: [(&str, Attack); 4] =
    [("entries", on_entries), ("data", on_data), ("attributes", on_attributes), ("listings", on_listings)];

fn swap_with_link(share: &Path, target: &Path) {
    let (dir, swap) = (share.join("d"), share.join("swap"));
    if symlink(target, &swap).is_ok() {
        rustix::fs::renameat_with(CWD, &dir, CWD, &swap, RenameFlags::EXCHANGE).unwrap();
    }
    rustix::fs::renameat_with(CWD, &dir, CWD, &swap, RenameFlags::EXCHANGE).unwrap();
    std::fs::remove_file(&swap).unwrap();
}

fn on_entries(client: &mut Client, dir: u64) {
    let root = client.root;
    let _any = client.create(dir, "x", libc::O_RDWR | libc::O_TRUNC, FILE).map(|(entry, fh)| {
        let _any = client.write(entry.node, fh, 0, b"x");
        client.release(entry.node, fh)
    });
    client.server.forget_descriptors();
    let _any = client.mkdir(dir, "made");
    let _any = client.symlink(dir, "made-link", "x");
    let _any = client.mknod(dir, "made-fifo", libc::S_IFIFO | 0o666, 0);
    client.server.forget_descriptors();
    if let Ok(file) = client.lookup(dir, "y") {
        let _any = client.link(file.node, root, "linked");
        let _any = client.link(file.node, dir, "linked");
    }
    let _any = client.rename((dir, "only-outside"), (root, "stolen"), 0);
    let _any = client.rename((root, "linked"), (dir, "y"), RenameFlags::EXCHANGE.bits());
    client.server.forget_descriptors();
    let _any = client.run(Opcode::Rmdir, dir, &Bytes::default().name("made"));
    for name in ["x", "made-link", "made-fifo", "linked"] {
        let _any = client.unlink(dir, name);
    }
    let _any = client.unlink(root, "linked");
    let request = CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: FILE, umask: 0, open_flags: 0 };
    let _any = client.call(Opcode::Tmpfile, dir, &Bytes::of(&request));
}

fn on_data(client: &mut Client, dir: u64) {
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
        for name in NAMES {
            let Ok(file) = client.lookup(dir, name).map(|entry| entry.node) else { continue };
            client.server.forget_descriptors();
            let _any = client.setattr(file, SetattrIn { valid: set::SIZE, size: 5, ..SetattrIn::default() });
            client.server.forget_descriptors();
            let Ok(fh) = client.open(file, flags) else { continue };
            let _any = client.read(file, fh, 0, 100);
            let _any = client.write(file, fh, 0, b"overwritten");
            let append = WriteIn { fh, flags: libc::O_APPEND.cast_unsigned(), ..WriteIn::default() };
            let _any = client.write_with(file, append, b"appended");
            let hole = FallocateIn { fh, length: 4096, ..FallocateIn::default() };
            let _any = client.run(Opcode::Fallocate, file, &Bytes::of(&hole));
            let copy = CopyFileRangeIn {
                fh_in: fh,
                offset_in: 0,
                node_out: file,
                fh_out: fh,
                offset_out: 4096,
                len: 100,
                flags: 0,
            };
            let _any = client.call(Opcode::CopyFileRange, file, &Bytes::of(&copy));
            client.release(file, fh).unwrap();
        }
    }
}

fn on_attributes(client: &mut Client, dir: u64) {
    let all = set::MODE | set::UID | set::GID | set::SIZE | set::ATIME | set::MTIME;
    let all = SetattrIn { valid: all, mode: 0o777, ..SetattrIn::default() };
    let _any = client.setattr(dir, SetattrIn { valid: all.valid & !set::SIZE, ..all });
    for name in NAMES {
        let Ok(file) = client.lookup(dir, name).map(|entry| entry.node) else { continue };
        client.server.forget_descriptors();
        let _any = client.setattr(file, all);
        client.server.forget_descriptors();
        let xattr = Bytes::of(&SetxattrIn { size: 1, flags: 0 }).name("user.x").raw(b"v");
        let _any = client.run(Opcode::Setxattr, file, &xattr);
        client.server.forget_descriptors();
        let room = GetxattrIn { size: 1000, ..GetxattrIn::default() };
        let _any = client.call(Opcode::Getxattr, file, &Bytes::of(&room).name("user.secret"));
        let _any = client.run(Opcode::Removexattr, file, &Bytes::default().name("user.secret"));
        if let Ok(attr) = client.getattr(file) {
            assert_ne!(attr.attr.size, SECRET.len() as u64, "of a file outside");
        }
        let _any = client.call(Opcode::Readlink, file, &Bytes::default());
    }
    let _any = client.call(Opcode::Statfs, dir, &Bytes::default());
}

fn on_listings(client: &mut Client, dir: u64) {
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        client.server.forget_descriptors();
        let Ok(fh) = client.opendir(dir) else { continue };
        let listed = client.readdir(opcode, dir, fh, 0, 4096).unwrap_or_default();
        assert!(listed.iter().all(|(_, _, name)| name != "only-outside"));
    }
    client.server.forget_descriptors();
    assert!(client.lookup(dir, "only-outside").is_err());
    if let Ok(deeper) = client.lookup(dir, "deeper") {
        client.server.forget_descriptors();
        assert!(client.lookup(deeper.node, "only-outside").is_err());
    }
}

/// All that there is to know of the folder outside: names, content and metadata. Times of access are left out, as this
/// reads it.
fn state(out: &Path) -> Vec<(PathBuf, Vec<u8>, [i64; 8])> {
    let mut paths: Vec<_> = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.push(out.to_owned());
    paths.sort();
    let state = paths.into_iter().map(|path| {
        let of = std::fs::symlink_metadata(&path).unwrap();
        let numbers =
            [of.ino().cast_signed(), of.nlink().cast_signed(), of.mode().into(), of.len().cast_signed()];
        let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
        let content = std::fs::read(&path).unwrap_or_default();
        (path, content, [numbers, times].concat().try_into().unwrap())
    });
    state.collect()
}

/// Lays out both sides: decoys in the share, secrets under the same names outside.
fn lay_out(client: &Client) -> (PathBuf, PathBuf) {
    let (share, out) = (client.host("").canonicalize().unwrap(), client.outside("out"));
    std::fs::create_dir_all(share.join("d/deeper")).unwrap();
    std::fs::create_dir_all(out.join("deeper")).unwrap();
    std::fs::write(out.join("deeper/only-outside"), SECRET).unwrap();
    for name in NAMES {
        std::fs::write(out.join(name), SECRET).unwrap();
        // Not every file system has attributes; the rest is asserted there too.
        let _any =
            rustix::fs::setxattr(out.join(name), "user.secret", SECRET, rustix::fs::XattrFlags::empty());
    }
    for name in &NAMES[..2] {
        std::fs::write(share.join("d").join(name), "decoy").unwrap();
    }
    (share, out.canonicalize().unwrap())
}

/// Tells the other side to end, even when this one panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn race(change: Change, attack: Attack, time: Duration) {
    let mut client = Client::new();
    client.secret = SECRET;
    let (share, out) = lay_out(&client);
    let before = state(&out);
    let (ended, end) = (AtomicBool::new(false), Instant::now() + time);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut rounds = 0;
            while rounds < ROUNDS_MIN || !ended.load(Ordering::Relaxed) {
                change(&share, &out);
                rounds += 1;
            }
        });
        let _ending = Ending(&ended);
        let mut rounds = 0;
        while !changer.is_finished() && (rounds < ROUNDS_MIN || Instant::now() < end) {
            if let Ok(dir) = client.lookup(client.root, "d") {
                client.server.forget_descriptors();
                attack(&mut client, dir.node);
                rounds += 1;
            }
            client.init().unwrap();
        }
    });
    let after = state(&out);
    let changed: Vec<_> =
        after.iter().filter(|entry| !before.contains(entry)).map(|(path, ..)| path).collect();
    assert!(
        after == before,
        "outside, of {} paths are left {}, changed {changed:?}",
        before.len(),
        after.len()
    );
    assert!(!share.join("stolen").exists());
}

#[test]
fn no_change_by_the_host_takes_any_operation_out_of_the_share() {
    let seconds = std::env::var(SECONDS).map_or(1, |seconds| seconds.parse().unwrap());
    let pairs = CHANGES.iter().flat_map(|change| ATTACKS.iter().map(move |attack| (change, attack)));
    let racing = pairs.map(|((changed, change), (attacked, attack))| {
        std::thread::Builder::new()
            .name(format!("{changed}, {attacked}"))
            .spawn(move || race(*change, *attack, Duration::from_secs(seconds)))
            .unwrap()
    });
    let racing: Vec<_> = racing.collect();
    assert_eq!(racing.len(), 20);
    // Collected first: one that fails does not hide the others.
    let ends = racing.into_iter().map(|thread| (thread.thread().name().unwrap().to_owned(), thread.join()));
    let failed: Vec<_> = ends.filter(|(_, end)| end.is_err()).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
