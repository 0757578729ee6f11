//! Shares that are less than a whole folder to write to.

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::fs::opcode::{Effect, Opcode};
use crate::virtio::fs::wire::{GetxattrIn, SetattrIn, set};

#[test]
fn a_read_only_share_refuses_whatever_changes_something() {
    let client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::write(client.host("f"), "text").unwrap();
    let before = std::fs::metadata(client.host("f")).unwrap();
    let mut client = client.again(|share| share.read_only = true);
    let file = client.walk("f").unwrap();
    let mut refused = 0;
    for &opcode in Opcode::ALL.iter().filter(|opcode| opcode.effect() == Effect::Changes) {
        // Refused before the body is looked at, so that no body gets past.
        for node in [client.root, file] {
            assert_eq!(client.call(opcode, node, &Bytes::default()), Err(Errno::ROFS), "{opcode:?}");
        }
        refused += 1;
    }
    assert_eq!(refused, 16);
    let times = SetattrIn { valid: set::ATIME | set::ATIME_NOW, ..SetattrIn::default() };
    assert_eq!(client.setattr(file, times), Err(Errno::ROFS));
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_APPEND]
    {
        assert_eq!(client.open(file, flags), Err(Errno::ROFS), "{flags:o}");
    }
    let fh = client.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(file, fh, 0, 100).unwrap(), b"text");
    assert_eq!(client.names(client.root, 4096), ["d", "f"]);
    assert!(client.call(Opcode::Listxattr, file, &Bytes::of(&GetxattrIn::default())).is_ok());
    client.run(Opcode::Syncfs, client.root, &Bytes::default().raw(&[0; 8])).unwrap();
    let after = std::fs::metadata(client.host("f")).unwrap();
    assert_eq!(before.accessed().unwrap(), after.accessed().unwrap(), "reading leaves no trace");
}

#[test]
fn a_share_of_one_file_has_nothing_else() {
    let client = Client::new();
    std::fs::write(client.host("shown"), "text").unwrap();
    std::fs::write(client.host("secret"), "secret").unwrap();
    std::fs::create_dir(client.host("dir")).unwrap();
    let mut client = client.again(|share| share.only = Some(b"shown".to_vec()));
    let root = client.root;
    assert_eq!(client.names(root, 4096), ["shown"]);
    let file = client.lookup(root, "shown").unwrap().node;
    for hidden in ["secret", "dir", "none"] {
        assert_eq!(client.lookup(root, hidden), Err(Errno::NOENT));
    }
    let flags = libc::O_RDWR;
    for name in ["shown", "secret", "new"] {
        assert_eq!(client.create(root, name, flags, libc::S_IFREG).map(|_| ()), Err(Errno::ACCESS));
        assert_eq!(client.mkdir(root, name), Err(Errno::ACCESS));
        assert_eq!(client.symlink(root, name, "t"), Err(Errno::ACCESS));
        assert_eq!(client.mknod(root, name, libc::S_IFREG, 0), Err(Errno::ACCESS));
        assert_eq!(client.unlink(root, name), Err(Errno::ACCESS));
        assert_eq!(client.rename((root, name), (root, "shown"), 0), Err(Errno::ACCESS));
        assert_eq!(client.rename((root, "shown"), (root, name), 0), Err(Errno::ACCESS));
        assert_eq!(client.link(file, root, name), Err(Errno::ACCESS));
    }
    let mode = SetattrIn { valid: set::MODE, mode: 0o700, ..SetattrIn::default() };
    assert_eq!(client.setattr(root, mode), Err(Errno::ACCESS));
    // The file itself is the guest's to change.
    let fh = client.open(file, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    client.write(file, fh, 0, b"new").unwrap();
    assert_eq!(std::fs::read(client.host("shown")).unwrap(), b"new");
}
