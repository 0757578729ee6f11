//! Listing directories.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::client::{Bytes, Client};
use crate::virtio::Memory;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::ops_dir::{END, NO_HANDLE};
use crate::virtio::fs::tokens::TABLE_BYTES;
use crate::virtio::fs::wire::{FsyncIn, ReleaseIn};

const ENTRIES: usize = 10_000;

fn fill(client: &Client, dir: &str) {
    std::fs::create_dir(client.host(dir)).unwrap();
    for index in 0..ENTRIES {
        std::fs::File::create(client.host(&format!("{dir}/{index}"))).unwrap();
    }
}

#[test]
fn every_entry_is_listed_once_however_small_the_buffer() {
    let mut client = Client::new();
    fill(&client, "d");
    let node = client.walk("d").unwrap();
    let mut expected: Vec<_> = (0..ENTRIES).map(|index| index.to_string()).collect();
    expected.sort();
    for size in [4096, 333, 65536, u32::MAX] {
        assert_eq!(client.names(node, size), expected, "{size}");
    }
}

#[test]
fn what_stays_is_listed_while_the_rest_is_removed() {
    let mut client = Client::new();
    fill(&client, "d");
    let node = client.walk("d").unwrap();
    let fh = client.opendir(node).unwrap();
    let (mut seen, mut offset) = (Vec::new(), 0);
    loop {
        let entries = client.readdir(Opcode::Readdir, node, fh, offset, 4096).unwrap();
        let Some((_, last, _)) = entries.last() else { break };
        offset = last.offset;
        for (_, _, name) in entries.into_iter().filter(|(_, _, name)| !name.starts_with('.')) {
            // As `rm -r` does: each entry goes as soon as it is seen.
            if name.ends_with('7') {
                client.unlink(node, &name).unwrap();
            }
            seen.push(name);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), ENTRIES);
    assert_eq!(client.names(node, 4096).len(), ENTRIES / 10 * 9);
}

#[test]
fn the_dots_do_not_show_what_is_above() {
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    let root = client.root;
    let fh = client.opendir(root).unwrap();
    let entries = client.readdir(Opcode::Readdir, root, fh, 0, 4096).unwrap();
    let ino = |wanted: &str| entries.iter().find(|(_, _, name)| name == wanted).unwrap().1.ino;
    assert_eq!(ino("."), ino(".."));
    let kinds: Vec<_> = entries.iter().map(|(_, dirent, _)| dirent.kind).collect();
    assert_eq!(kinds, vec![u32::from(libc::DT_DIR); 3]);
}

#[test]
fn readdirplus_counts_a_lookup_for_each_node_it_gives() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "").unwrap();
    std::os::unix::fs::symlink("f", client.host("l")).unwrap();
    let root = client.root;
    let fh = client.opendir(root).unwrap();
    let entries = client.readdir(Opcode::Readdirplus, root, fh, 0, 4096).unwrap();
    assert_eq!(entries.len(), 4);
    for (node, _, name) in entries {
        if name.starts_with('.') {
            assert_eq!(node, 0);
            continue;
        }
        assert!(client.getattr(node).is_ok());
        client.forget(node, 1);
        assert_eq!(client.getattr(node), Err(Errno::STALE));
    }
}

#[test]
fn offsets_and_handles_from_nowhere_are_refused_or_end() {
    let mut client = Client::new();
    let root = client.root;
    let dir = client.mkdir(root, "d").unwrap().node;
    let fh = client.opendir(root).unwrap();
    for offset in [7, 1 << 40, i64::MAX as u64, 1 << 63, u64::MAX] {
        let _any = client.readdir(Opcode::Readdir, root, fh, offset, 4096);
    }
    assert_eq!(client.readdir(Opcode::Readdir, root, fh, 0, 8), Err(Errno::INVAL));
    assert_eq!(client.readdir(Opcode::Readdir, root, fh, 0, 4096).unwrap().len(), 3);
    assert_eq!(client.readdir(Opcode::Readdir, dir, fh, 0, 4096), Err(Errno::BADF));
    assert_eq!(client.readdir(Opcode::Readdir, root, fh + 1, 0, 4096), Err(Errno::BADF));
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    client.run(Opcode::Releasedir, root, &Bytes::of(&release)).unwrap();
    assert_eq!(client.run(Opcode::Releasedir, root, &Bytes::of(&release)), Err(Errno::BADF));
    let file = client.mknod(root, "f", libc::S_IFREG | 0o644, 0).unwrap().node;
    assert_eq!(client.opendir(file), Err(Errno::NOTDIR));
    assert_eq!(client.lookup(file, "x"), Err(Errno::NOTDIR));
    let fh = client.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(client.readdir(Opcode::Readdir, file, fh, 0, 4096), Err(Errno::NOTDIR));
}

/// As our kernel does: without a handle, and it knows the last entry by its offset.
#[test]
fn directories_are_listed_without_being_opened_and_many_at_once() {
    const DIRS: usize = 20;
    const FILES: usize = 100;
    let bytes = usize::try_from(TABLE_BYTES).unwrap();
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap());
    let mut client = Client::told(&memory);
    let root = client.root;
    assert_eq!(client.opendir(root), Err(Errno::NOSYS));
    let nodes: Vec<_> = (0..DIRS).map(|n| client.mkdir(root, &n.to_string()).unwrap().node).collect();
    for (dir, file) in (0..DIRS).flat_map(|dir| (0..FILES).map(move |file| (dir, file))) {
        std::fs::write(client.host(&format!("{dir}/{file}")), "").unwrap();
    }
    for (opcode, size) in [(Opcode::Readdir, 300), (Opcode::Readdirplus, 700), (Opcode::Readdir, 32 << 10)] {
        let mut seen = vec![(0, BTreeSet::new()); DIRS];
        while seen.iter().any(|(offset, _)| *offset != END) {
            for ((offset, names), node) in
                seen.iter_mut().zip(&nodes).filter(|((offset, _), _)| *offset != END)
            {
                let entries = client.readdir(opcode, *node, NO_HANDLE, *offset, size).unwrap();
                *offset = entries.last().map_or(END, |(_, dirent, _)| dirent.offset);
                assert!(entries.into_iter().all(|(_, _, name)| names.insert(name)), "twice");
            }
        }
        assert!(seen.iter().all(|(_, names)| names.len() == FILES + 2), "{opcode:?}");
        assert!(client.readdir(opcode, nodes[0], NO_HANDLE, END, size).unwrap().is_empty());
    }
    let sync = Bytes::of(&FsyncIn { fh: NO_HANDLE, ..FsyncIn::default() });
    client.run(Opcode::Fsyncdir, nodes[0], &sync).unwrap();
    std::fs::remove_dir_all(client.host("0")).unwrap();
    assert!(client.readdir(Opcode::Readdir, nodes[0], NO_HANDLE, 0, 300).is_err());
    let file = client.create(root, "f", libc::O_RDWR, 0o644).unwrap().0.node;
    assert_eq!(client.readdir(Opcode::Readdir, file, NO_HANDLE, 0, 300).err(), Some(Errno::NOTDIR));
}
