//! No way out of the share: links, replaced directories, and what must not be opened. Races are in `races`.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::io::Errno;

use super::client::Client;
use crate::virtio::fs::wire::{SetattrIn, set};

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
