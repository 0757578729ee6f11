//! A read-only share of which parts can be changed, in which again parts can not.

use std::fs;

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::config::Share;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{SetattrIn, SetxattrIn, set};

const FILE: u32 = libc::S_IFREG | 0o644;

fn rules(share: &mut Share) {
    let list = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    share.read_only = true;
    share.rules.writable = list(&["/packed", "/packed.lock", "objects/*", "trees/mine/*"]);
    share.rules.fixed = list(&["objects/info", "trees/mine/config"]);
}

fn client() -> Client {
    let client = Client::new();
    for dir in ["objects/info", "trees/mine", "trees/other", "hooks"] {
        fs::create_dir_all(client.host(dir)).unwrap();
    }
    for file in [
        "config",
        "packed",
        "hooks/pre",
        "objects/o",
        "objects/info/alt",
        "trees/mine/config",
        "trees/other/f",
    ] {
        fs::write(client.host(file), "text").unwrap();
    }
    client.again(rules)
}

#[test]
fn the_writable_parts_are_so_in_every_way() {
    let mut client = client();
    let (root, objects) = (client.root, client.walk("objects").unwrap());
    let (entry, fh) = client.create(root, "packed.lock", libc::O_RDWR | libc::O_EXCL, FILE).unwrap();
    assert_eq!(client.write(entry.node, fh, 0, b"new").unwrap(), 3);
    client.rename((root, "packed.lock"), (root, "packed"), 0).unwrap();
    assert_eq!(fs::read_to_string(client.host("packed")).unwrap(), "new");
    let dir = client.mkdir(objects, "ab").unwrap().node;
    let (made, _) = client.create(dir, "tmp", libc::O_RDWR, FILE).unwrap();
    client.link(made.node, dir, "final").unwrap();
    client.unlink(dir, "tmp").unwrap();
    let mode = SetattrIn { valid: set::MODE, mode: 0o444, ..SetattrIn::default() };
    let made = client.walk("objects/ab/final").unwrap();
    client.setattr(made, mode).unwrap();
    let mine = client.walk("trees/mine").unwrap();
    client.create(mine, "index", libc::O_WRONLY, FILE).unwrap();
}

#[test]
fn nothing_else_is_changed_made_moved_or_replaced() {
    let mut client = client();
    let root = client.root;
    let dirs = ["objects", "objects/info", "trees/mine", "trees", "hooks"].map(|it| client.walk(it).unwrap());
    let [objects, info, mine, trees, hooks] = dirs;
    let cases = [
        (root, "config"),
        (root, "hooks"),
        (root, "objects"),
        (hooks, "pre"),
        (objects, "info"),
        (info, "alt"),
        (mine, "config"),
        (trees, "mine"),
        (trees, "other"),
        (trees, "new"),
        (root, "new"),
    ];
    let object = client.walk("objects/o").unwrap();
    for (parent, name) in cases {
        let refused = |answer: Result<(), Errno>| assert_eq!(answer, Err(Errno::ROFS), "{parent} {name}");
        refused(client.create(parent, name, libc::O_RDWR, FILE).map(drop));
        refused(client.mkdir(parent, name).map(drop));
        refused(client.symlink(parent, name, "t").map(drop));
        refused(client.link(object, parent, name).map(drop));
        refused(client.unlink(parent, name));
        refused(client.run(Opcode::Rmdir, parent, &Bytes::default().name(name)));
        refused(client.rename((parent, name), (objects, "moved"), 0));
        refused(client.rename((objects, "o"), (parent, name), 0));
        refused(client.rename((objects, "o"), (parent, name), libc::RENAME_EXCHANGE));
        let Ok(known) = client.lookup(parent, name) else { continue };
        let mode = SetattrIn { valid: set::MODE, mode: 0o777, ..SetattrIn::default() };
        refused(client.setattr(known.node, mode).map(drop));
        let value = Bytes::of(&SetxattrIn { size: 1, flags: 0 }).name("user.x").raw(b"v");
        refused(client.run(Opcode::Setxattr, known.node, &value));
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC] {
            let opened = client.open(known.node, flags).map(drop);
            assert!(matches!(opened, Err(Errno::ROFS | Errno::ISDIR)), "{name} {flags}: {opened:?}");
        }
        // A second name in a writable part would be a way around.
        let linked = client.link(known.node, objects, "linked").map(drop);
        assert_eq!(linked, Err(Errno::ROFS), "{name}");
    }
    for file in ["config", "hooks/pre", "objects/info/alt", "trees/mine/config", "trees/other/f"] {
        assert_eq!(fs::read_to_string(client.host(file)).unwrap(), "text", "{file}");
    }
    let config = client.walk("config").unwrap();
    let fh = client.open(config, libc::O_RDONLY).unwrap();
    assert_eq!(client.write(config, fh, 0, b"x"), Err(Errno::BADF), "the host's kernel refuses it too");
}

#[test]
fn nothing_is_made_that_leads_or_holds_up_the_hosts_programs() {
    let mut client = client();
    let objects = client.walk("objects").unwrap();
    assert_eq!(client.symlink(objects, "l", "/etc/passwd"), Err(Errno::PERM));
    assert_eq!(client.mknod(objects, "p", libc::S_IFIFO | 0o644, 0), Err(Errno::PERM));
    assert_eq!(client.mknod(objects, "s", libc::S_IFSOCK | 0o644, 0), Err(Errno::PERM));
}
