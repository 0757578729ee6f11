//! No way out of the share: links, replaced directories, races of both, and what must not be opened.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{SetattrIn, SetxattrIn, set};

const RACE: Duration = Duration::from_secs(1);
const FILE: u32 = libc::S_IFREG | 0o644;

#[test]
fn a_link_out_of_the_share_leads_nowhere() {
    let mut client = Client::new();
    std::fs::create_dir(client.outside("out")).unwrap();
    std::fs::write(client.outside("out/canary"), "secret").unwrap();
    for target in ["../out", "/", "/proc/self/root", "/proc/self/cwd", ".."] {
        symlink(target, client.host("link")).unwrap();
        let link = client.walk("link").unwrap();
        assert_eq!(client.lookup(link, "canary"), Err(Errno::NOTDIR));
        assert_eq!(client.opendir(link), Err(Errno::NOTDIR));
        assert_eq!(client.open(link, libc::O_RDONLY), Err(Errno::LOOP));
        assert_eq!(client.mkdir(link, "d"), Err(Errno::NOTDIR));
        assert_eq!(client.create(link, "f", libc::O_RDWR, FILE).map(|_| ()), Err(Errno::NOTDIR));
        let mode = SetattrIn { valid: set::MODE, mode: 0o777, ..SetattrIn::default() };
        assert_eq!(client.setattr(link, mode), Err(Errno::OPNOTSUPP));
        std::fs::remove_file(client.host("link")).unwrap();
    }
}

#[test]
fn a_directory_replaced_by_a_link_is_not_entered() {
    let mut client = Client::new();
    std::fs::create_dir_all(client.host("a/b")).unwrap();
    std::fs::create_dir_all(client.outside("out/b")).unwrap();
    std::fs::write(client.host("a/b/f"), "inside").unwrap();
    std::fs::write(client.outside("out/b/f"), "secret").unwrap();
    let file = client.walk("a/b/f").unwrap();
    std::fs::rename(client.host("a"), client.outside("moved")).unwrap();
    symlink("../out", client.host("a")).unwrap();
    client.server.forget_descriptors();
    assert_eq!(client.open(file, libc::O_RDWR), Err(Errno::STALE));
    assert_eq!(client.getattr(file), Err(Errno::STALE));
    // A directory in the link's place, with a file of the same name.
    std::fs::remove_file(client.host("a")).unwrap();
    std::fs::rename(client.outside("out"), client.host("a")).unwrap();
    assert_eq!(client.open(file, libc::O_RDWR), Err(Errno::STALE));
}

#[test]
fn fifos_sockets_and_devices_are_never_opened() {
    let mut client = Client::new();
    let root = client.root;
    client.mknod(root, "fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(client.host("socket")).unwrap();
    symlink("/dev/zero", client.host("zero")).unwrap();
    for name in ["fifo", "socket"] {
        let node = client.walk(name).unwrap();
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
            assert_eq!(client.open(node, flags), Err(Errno::NXIO));
        }
        let size = SetattrIn { valid: set::SIZE, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, size), Err(Errno::INVAL));
    }
    assert!(std::fs::symlink_metadata(client.host("fifo")).unwrap().file_type().is_fifo());
    let device = rustix::fs::mknodat(
        CWD,
        client.host("null"),
        rustix::fs::FileType::CharacterDevice,
        0o666.into(),
        rustix::fs::makedev(1, 3),
    );
    // Only a privileged test can make one.
    if device.is_ok() {
        let node = client.walk("null").unwrap();
        assert_eq!(client.open(node, libc::O_RDWR), Err(Errno::NXIO));
    }
}

/// Puts a link in the place of the directory `d` and takes it away again, until told to stop.
fn swap(share: PathBuf, target: &'static str, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        symlink(target, share.join("swap")).unwrap();
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            rustix::fs::renameat_with(CWD, share.join("d"), CWD, share.join("swap"), RenameFlags::EXCHANGE)
                .unwrap();
            rounds += 1;
        }
        rounds
    })
}

/// Does whatever can be done to `d/x`.
fn attack(client: &mut Client) {
    let root = client.root;
    let Ok(dir) = client.lookup(root, "d") else { return };
    let dir = dir.node;
    client.server.forget_descriptors();
    let _any = client.unlink(dir, "x");
    let _any = client.rename((dir, "canary"), (root, "stolen"), 0);
    let _any = client.link(dir, root, "linked");
    let made = client.create(dir, "x", libc::O_RDWR, FILE);
    if let Ok((entry, fh)) = made {
        let _any = client.write(entry.node, fh, 0, b"x");
        let _any = client.release(entry.node, fh);
    }
    client.server.forget_descriptors();
    let _any = client.mkdir(dir, "made");
    let _any = client.symlink(dir, "made-link", "x");
    let _any = client.mknod(dir, "made-fifo", libc::S_IFIFO | 0o666, 0);
    let _any = client.run(Opcode::Rmdir, dir, &Bytes::default().name("made"));
    if let Ok(canary) = client.lookup(dir, "canary") {
        client.server.forget_descriptors();
        let all =
            SetattrIn { valid: set::MODE | set::SIZE | set::MTIME, mode: 0o777, ..SetattrIn::default() };
        let _any = client.setattr(canary.node, all);
        let xattr = Bytes::of(&SetxattrIn { size: 1, flags: 0 }).name("user.x").raw(b"v");
        let _any = client.run(Opcode::Setxattr, canary.node, &xattr);
        if let Ok(fh) = client.open(canary.node, libc::O_RDWR) {
            assert_ne!(client.read(canary.node, fh, 0, 100).unwrap_or_default(), b"secret");
            let _any = client.write(canary.node, fh, 0, b"overwritten");
            client.release(canary.node, fh).unwrap();
        }
    }
    if let Ok(fh) = client.opendir(dir) {
        let listed = client.readdir(Opcode::Readdirplus, dir, fh, 0, 4096).unwrap_or_default();
        assert!(listed.iter().all(|(_, _, name)| name != "only-outside"));
    }
    client.init().unwrap();
}

fn race(target: &'static str) {
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::write(client.host("d/canary"), "decoy").unwrap();
    let out = client.outside("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("canary"), "secret").unwrap();
    std::fs::write(out.join("x"), "secret").unwrap();
    std::fs::write(out.join("only-outside"), "").unwrap();
    let before = std::fs::metadata(&out).unwrap();
    let mode = std::fs::metadata(out.join("x")).unwrap().mode();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = swap(client.host(""), target, Arc::clone(&stop));
    let (end, mut rounds) = (Instant::now() + RACE, 0);
    while Instant::now() < end {
        attack(&mut client);
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 100 && rounds > 100, "the race was run");
    for name in ["canary", "x"] {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(out.join(name)).unwrap().mode(), mode);
    }
    let after = std::fs::metadata(&out).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
}

#[test]
fn a_race_with_a_link_beside_the_share_reaches_nothing() {
    race("../out");
}

#[test]
fn a_race_with_a_magic_link_reaches_nothing() {
    // The working directory of the process has no canary; what matters is that nothing is made there.
    race("/proc/self/cwd");
    assert!(!std::path::Path::new("made-link").exists() && !std::path::Path::new("stolen").exists());
}

#[test]
fn file_systems_that_are_not_for_files_are_not_entered() {
    let mut client = Client::new();
    std::fs::create_dir(client.host("mnt")).unwrap();
    // A private mount needs privileges; without them there is nothing to test.
    let mounted = |what: &str, kind: &str, at: PathBuf| {
        rustix::mount::mount(what, at, kind, rustix::mount::MountFlags::empty(), None).is_ok()
    };
    if mounted("proc", "proc", client.host("mnt")) {
        let answer = client.lookup(client.root, "mnt");
        rustix::mount::unmount(client.host("mnt"), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(answer, Err(Errno::ACCESS));
    }
    if mounted("tmpfs", "tmpfs", client.host("mnt")) {
        std::fs::write(client.host("mnt/f"), "text").unwrap();
        let host = std::fs::metadata(client.host("mnt/f")).unwrap().ino();
        let answer = client.walk("mnt/f").and_then(|node| client.getattr(node));
        rustix::mount::unmount(client.host("mnt"), rustix::mount::UnmountFlags::DETACH).unwrap();
        let attr = answer.unwrap().attr;
        assert_eq!(attr.size, 4);
        assert_ne!(attr.ino, host, "numbers of another device are set apart");
    }
}
