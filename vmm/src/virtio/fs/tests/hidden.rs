//! What is hidden does not exist for the guest: by name, by node, by handle, and whatever is moved by whom.

use std::fs;

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{GetattrIn, SetattrIn, set};

const FILE: u32 = libc::S_IFREG | 0o644;
const EXCHANGE: u32 = libc::RENAME_EXCHANGE;

/// A share with a secret in every place the patterns name, and something to see beside each.
fn client(patterns: &[&str]) -> Client {
    let client = Client::new();
    for dir in ["sub", "node_modules/pkg", "secrets/old"] {
        fs::create_dir_all(client.host(dir)).unwrap();
    }
    for file in [".env", "sub/.env", "node_modules/pkg/index", "secrets/key.pem", "secrets/old/key.pem"] {
        fs::write(client.host(file), "secret").unwrap();
    }
    for file in ["seen", "sub/seen", "secrets/seen"] {
        fs::write(client.host(file), "seen").unwrap();
    }
    client.again(|share| share.rules.hidden = patterns.iter().map(|it| it.as_bytes().to_vec()).collect())
}

fn usual() -> Client {
    client(&[".env", "node_modules/", "secrets/*.pem"])
}

/// All of the host's files with their content.
fn content(client: &Client) -> Vec<(std::path::PathBuf, String)> {
    let (mut found, mut dirs) = (Vec::new(), vec![client.host("")]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push((path.clone(), fs::read_to_string(path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn hidden_names_are_neither_listed_nor_found() {
    let mut client = usual();
    let root = client.root;
    assert_eq!(client.names(root, 4096), ["secrets", "seen", "sub"]);
    let (sub, secrets) = (client.walk("sub").unwrap(), client.walk("secrets").unwrap());
    assert_eq!(client.names(sub, 4096), ["seen"]);
    assert_eq!(client.names(secrets, 4096), ["old", "seen"]);
    for path in [".env", "sub/.env", "node_modules", "secrets/key.pem"] {
        assert_eq!(client.walk(path), Err(Errno::NOENT), "{path}");
    }
    assert!(client.walk("secrets/old/key.pem").is_ok(), "a path is from the root");
    assert_eq!(client.walk(".ENV"), Err(Errno::NOENT));
    let fh = client.opendir(root).unwrap();
    let plus = client.readdir(Opcode::Readdirplus, root, fh, 0, 4096).unwrap();
    assert_eq!(plus.len(), 2 + 3);
}

#[test]
fn whatever_would_touch_a_hidden_name_is_refused_the_same_way_if_nothing_is_there() {
    let mut client = usual();
    let (root, before) = (client.root, content(&client));
    let seen = client.walk("seen").unwrap();
    let sub = client.walk("sub").unwrap();
    // In `sub` something is there, in `secrets` nothing.
    let secrets = client.walk("secrets").unwrap();
    for (parent, name) in [(sub, ".env"), (secrets, ".env"), (root, "node_modules"), (sub, "node_modules")] {
        let refused = |answer: Result<(), Errno>| assert_eq!(answer, Err(Errno::ACCESS), "{parent} {name}");
        refused(client.create(parent, name, libc::O_RDWR, FILE).map(drop));
        refused(client.create(parent, name, libc::O_RDWR | libc::O_EXCL, FILE).map(drop));
        refused(client.mkdir(parent, name).map(drop));
        refused(client.mknod(parent, name, FILE, 0).map(drop));
        refused(client.symlink(parent, name, "t").map(drop));
        refused(client.link(seen, parent, name).map(drop));
        refused(client.unlink(parent, name));
        refused(client.run(Opcode::Rmdir, parent, &Bytes::default().name(name)));
        for flags in [0, EXCHANGE, libc::RENAME_NOREPLACE] {
            refused(client.rename((root, "seen"), (parent, name), flags));
            refused(client.rename((parent, name), (root, "new"), flags));
        }
    }
    assert_eq!(content(&client), before);
}

#[test]
fn what_the_host_hides_by_a_new_name_is_gone_for_whoever_knew_it() {
    let mut client = usual();
    let (file, dir) = (client.walk("seen").unwrap(), client.walk("sub").unwrap());
    let inside = client.walk("sub/seen").unwrap();
    let open = [
        (file, client.open(file, libc::O_RDWR).unwrap()),
        (inside, client.open(inside, libc::O_RDWR).unwrap()),
    ];
    let fh = client.opendir(dir).unwrap();
    fs::remove_file(client.host(".env")).unwrap();
    fs::rename(client.host("seen"), client.host(".env")).unwrap();
    fs::remove_dir_all(client.host("node_modules")).unwrap();
    fs::rename(client.host("sub"), client.host("node_modules")).unwrap();
    let before = content(&client);
    for (node, fh) in open {
        assert_eq!(client.getattr(node), Err(Errno::STALE));
        let by_handle = GetattrIn { flags: 1, fh, ..GetattrIn::default() };
        assert_eq!(client.call(Opcode::Getattr, node, &Bytes::of(&by_handle)), Err(Errno::STALE));
        assert_eq!(client.open(node, libc::O_RDONLY), Err(Errno::STALE));
        assert_eq!(client.read(node, fh, 0, 10), Err(Errno::STALE));
        assert_eq!(client.write(node, fh, 0, b"x"), Err(Errno::STALE));
        let size = SetattrIn { valid: set::SIZE | set::FH, fh, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, size), Err(Errno::STALE));
        let root = client.root;
        assert_eq!(client.link(node, root, "again"), Err(Errno::STALE));
    }
    assert_eq!(client.readdir(Opcode::Readdir, dir, fh, 0, 4096), Err(Errno::STALE));
    assert_eq!(client.opendir(dir), Err(Errno::STALE));
    assert_eq!(client.lookup(dir, "seen"), Err(Errno::STALE));
    assert_eq!(client.create(dir, "new", libc::O_RDWR, FILE).map(drop), Err(Errno::STALE));
    assert_eq!(content(&client), before);
}

#[test]
fn a_folder_renamed_to_where_a_path_leads_hides_what_is_in_it_from_then_on() {
    let mut client = client(&["vault/*.pem"]);
    let root = client.root;
    let key = client.walk("secrets/key.pem").unwrap();
    let fh = client.open(key, libc::O_RDONLY).unwrap();
    client.rename((root, "secrets"), (root, "vault"), 0).unwrap();
    let vault = client.walk("vault").unwrap();
    assert_eq!(client.names(vault, 4096), ["old", "seen"]);
    assert_eq!(client.getattr(key), Err(Errno::STALE));
    assert_eq!(client.read(key, fh, 0, 10), Err(Errno::STALE));
    // And it cannot be brought back by the same way.
    assert_eq!(client.rename((root, "vault"), (root, "open"), 0), Err(Errno::ACCESS));
    assert_eq!(client.rename((root, "sub"), (root, "vault"), EXCHANGE), Err(Errno::ACCESS));
    assert_eq!(client.rename((root, "vault"), (root, "sub"), EXCHANGE), Err(Errno::ACCESS));
    assert!(client.host("vault/key.pem").exists());
}

#[test]
fn a_file_with_a_second_name_is_reached_by_that_one() {
    let mut client = usual();
    fs::hard_link(client.host(".env"), client.host("plain")).unwrap();
    let node = client.walk("plain").unwrap();
    let fh = client.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(node, fh, 0, 10).unwrap(), b"secret");
    assert_eq!(client.walk(".env"), Err(Errno::NOENT));
}

#[test]
fn an_open_file_outlives_its_name_where_something_is_hidden_too() {
    let mut client = usual();
    let root = client.root;
    let node = client.walk("seen").unwrap();
    let fh = client.open(node, libc::O_RDWR).unwrap();
    client.unlink(root, "seen").unwrap();
    assert_eq!(client.write(node, fh, 4, b" more").unwrap(), 5);
    assert_eq!(client.read(node, fh, 0, 100).unwrap(), b"seen more");
    assert_eq!(client.getattr(node).unwrap().attr.nlink, 0);
}

#[test]
fn a_file_that_is_held_is_lost_when_the_host_hides_it() {
    let mut client = client(&["vault/*"]);
    let replace = |client: &Client, to: &str| {
        fs::write(client.host("new"), to).unwrap();
        fs::rename(client.host("f"), client.host(to)).ok();
        fs::rename(client.host("new"), client.host("f")).unwrap();
    };
    fs::create_dir(client.host("vault")).unwrap();
    replace(&client, "gone");
    let first = client.lookup(client.root, "f").unwrap().node;
    replace(&client, "gone");
    assert_eq!(client.open(first, libc::O_RDONLY), Err(Errno::STALE));
    let second = client.lookup(client.root, "f").unwrap().node;
    replace(&client, "vault/now");
    assert_eq!(client.open(second, libc::O_RDONLY), Err(Errno::STALE), "it has a hidden name");
    fs::remove_file(client.host("vault/now")).unwrap();
    assert!(client.open(second, libc::O_RDONLY).is_ok(), "it has none");
}

#[test]
fn a_folder_with_nothing_but_hidden_entries_is_empty_and_stays() {
    let mut client = usual();
    fs::remove_file(client.host("sub/seen")).unwrap();
    let (root, sub) = (client.root, client.walk("sub").unwrap());
    assert_eq!(client.names(sub, 4096), [""; 0]);
    let rmdir = client.run(Opcode::Rmdir, root, &Bytes::default().name("sub"));
    assert_eq!(rmdir, Err(Errno::NOTEMPTY));
}

#[test]
fn all_else_works_as_ever_and_deep_down() {
    let mut client = usual();
    let mut at = client.root;
    for _ in 0..50 {
        at = client.mkdir(at, "d").unwrap().node;
    }
    let (entry, fh) = client.create(at, "f", libc::O_RDWR, FILE).unwrap();
    client.write(entry.node, fh, 0, b"deep").unwrap();
    client.server.forget_descriptors();
    assert_eq!(client.read(entry.node, fh, 0, 10).unwrap(), b"deep");
    client.rename((at, "f"), (client.root, "moved"), 0).unwrap();
    assert_eq!(client.getattr(entry.node).unwrap().attr.size, 4);
    let link = client.symlink(at, "l", "target").unwrap().node;
    assert_eq!(client.call(Opcode::Readlink, link, &Bytes::default()).unwrap(), b"target");
    assert!(client.getattr(link).is_ok());
}
