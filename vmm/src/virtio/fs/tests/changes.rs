//! What the guest may keep of what it was told, and what it is told when the host changes it.
//! Each test looks into the table of tokens as the guest's kernel does.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::sync::Arc;

use rustix::fs::inotify::ReadFlags;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::client::{Bytes, Client};
use crate::config::Rules;
use crate::virtio::Memory;
use crate::virtio::fs::changes::Changes;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{
    AttrOut, EntryOut, HostChange, KEEP_CACHE, OpenIn, OpenOut, SetattrIn, VALID_TOKEN, Wire, set,
};

const TABLE: u64 = 4096;

/// A guest with its table.
struct Guest {
    client: Client,
    memory: Memory,
}

impl Guest {
    fn new() -> Self {
        let bytes = usize::try_from(TABLE * 8).unwrap();
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap());
        Self { client: Client::told(&memory), memory }
    }

    fn hiding(patterns: &[&str]) -> Self {
        let Self { client, memory } = Self::new();
        let hidden = patterns.iter().map(|pattern| pattern.as_bytes().to_vec()).collect();
        let client = client.again(|share| share.rules = Rules { hidden, ..Rules::default() });
        Self { client: client.announced(&memory), memory }
    }

    fn holds(&self, token: u64, ns: u32) -> bool {
        assert_eq!(ns == VALID_TOKEN, token != 0);
        token != 0 && self.memory.read_obj::<u64>(GuestAddress(token % TABLE * 8)).unwrap() == token
    }

    /// What was said about an entry still holds: of its name, of its attributes.
    fn believes(&self, entry: &EntryOut) -> (bool, bool) {
        let attr = self.holds(entry.attr_valid, entry.attr_valid_ns);
        (self.holds(entry.entry_valid, entry.entry_valid_ns), attr)
    }

    fn believes_attr(&self, out: &AttrOut) -> bool {
        self.holds(out.valid, out.valid_ns)
    }

    /// Looks up after some time, when what was changed before has been noticed.
    fn lookup(&mut self, name: &str) -> EntryOut {
        self.client.server.settle();
        self.client.lookup(self.client.root, name).unwrap()
    }

    fn write_host(&self, name: &str, text: &str) {
        fs::write(self.client.host(name), text).unwrap();
    }

    /// What the guest is told since the last call: mask, name, and whether it knows what has the name now.
    fn told(&mut self) -> Vec<(ReadFlags, String, bool)> {
        self.client.server.settle();
        let changes: &mut Changes = self.client.server.changes().unwrap();
        let mut told = Vec::new();
        while let Some(mut bytes) = changes.first() {
            let change = HostChange::decode(&mut bytes).unwrap();
            let name = String::from_utf8(bytes[..change.namelen as usize].to_vec()).unwrap();
            told.push((ReadFlags::from_bits_retain(change.mask), name, change.node != 0));
            changes.told();
        }
        told
    }
}

#[test]
fn what_is_told_holds_until_the_host_changes_it() {
    let mut guest = Guest::new();
    guest.write_host("f", "one");
    guest.write_host("other", "");
    let (file, other) = (guest.lookup("f"), guest.lookup("other"));
    assert_eq!((guest.believes(&file), guest.believes(&other)), ((true, true), (true, true)));
    guest.write_host("f", "two");
    guest.client.server.settle();
    assert_eq!((guest.believes(&file), guest.believes(&other)), ((false, false), (true, true)));
    let again = guest.client.getattr(file.node).unwrap();
    assert!(guest.believes_attr(&again));
    fs::set_permissions(guest.client.host("f"), PermissionsExt::from_mode(0o600)).unwrap();
    guest.client.server.settle();
    assert!(!guest.believes_attr(&again));
}

#[test]
fn an_answer_never_comes_before_what_it_follows_from() {
    let mut guest = Guest::new();
    guest.write_host("cause", "");
    let cause = guest.lookup("cause");
    guest.write_host("cause", "changed first");
    guest.write_host("effect", "changed then");
    let effect = guest.client.lookup(guest.client.root, "effect").unwrap();
    assert_eq!((effect.attr.size, guest.believes(&cause)), (12, (false, false)));
}

/// As for the first answer, when the share is asked nothing: the host's words come by another way.
#[test]
fn nothing_else_reaches_the_guest_before_what_it_follows_from() {
    let mut guest = Guest::new();
    guest.write_host("cause", "");
    let (cause, missing) = (guest.lookup("cause"), guest.lookup("new"));
    guest.client.notices.settle();
    assert_eq!(guest.believes(&cause), (true, true), "nothing has happened");
    guest.write_host("cause", "changed");
    guest.write_host("new", "");
    guest.client.notices.settle();
    assert_eq!((guest.believes(&cause), guest.believes(&missing).0), ((false, false), false));
    // Who watches in the guest is told all the same, once.
    let told = guest.told();
    let made = |(mask, name, _): &&_| (*mask, name) == (ReadFlags::CREATE, &"new".to_owned());
    assert_eq!(told.iter().filter(made).count(), 1, "{told:?}");
    let cause = guest.lookup("cause");
    assert_eq!((cause.attr.size, guest.believes(&cause)), (7, (true, true)));
    guest.client.notices.end();
    guest.write_host("cause", "again");
    guest.client.notices.settle();
    assert_eq!(guest.believes(&cause), (true, true), "its memory is not touched any more");
}

#[test]
fn that_a_name_is_not_there_holds_until_it_is() {
    let mut guest = Guest::new();
    let missing = guest.lookup("f");
    assert_eq!((missing.node, guest.believes(&missing).0), (0, true));
    guest.write_host("f", "");
    guest.client.server.settle();
    assert!(!guest.believes(&missing).0);
    assert_ne!(guest.lookup("f").node, 0);
}

#[test]
fn a_directory_is_believed_until_its_entries_change() {
    let mut guest = Guest::new();
    fs::create_dir(guest.client.host("d")).unwrap();
    let dir = guest.lookup("d");
    assert_eq!(guest.believes(&dir), (true, true));
    guest.write_host("d/f", "");
    guest.client.server.settle();
    assert_eq!(
        guest.believes(&dir),
        (true, false),
        "its times and its list are others, its name is the same"
    );
    let deep = guest.client.lookup(dir.node, "f").unwrap();
    fs::rename(guest.client.host("d"), guest.client.host("e")).unwrap();
    guest.client.server.settle();
    assert!(!guest.believes(&dir).0 && guest.believes(&deep).0);
}

#[test]
fn what_the_guest_does_itself_is_neither_told_nor_doubted() {
    let mut guest = Guest::new();
    let root = guest.client.root;
    let dir = guest.client.mkdir(root, "d").unwrap();
    let (file, fh) = guest.client.create(root, "f", libc::O_RDWR, 0o644).unwrap();
    let link = guest.client.symlink(root, "l", "f").unwrap();
    guest.client.write(file.node, fh, 0, b"text").unwrap();
    let request = SetattrIn { valid: set::MODE | set::MTIME_NOW, mode: 0o600, ..SetattrIn::default() };
    let changed = guest.client.setattr(file.node, request).unwrap();
    guest.client.release(file.node, fh).unwrap();
    for entry in [&dir, &file, &link] {
        assert_eq!(guest.believes(entry), (true, true));
    }
    assert!(guest.believes_attr(&changed));
    guest.client.rename((root, "f"), (dir.node, "g"), 0).unwrap();
    assert_eq!(guest.believes(&file), (false, false), "it has another place, where other changes meet it");
    guest.client.unlink(dir.node, "g").unwrap();
    assert_eq!(guest.told(), []);
}

#[test]
fn the_hosts_changes_are_told_by_name() {
    let mut guest = Guest::new();
    guest.write_host("old", "");
    guest.lookup("old");
    guest.told();
    guest.write_host("new", "text");
    let (create, modify, close) = (ReadFlags::CREATE, ReadFlags::MODIFY, ReadFlags::CLOSE_WRITE);
    let new = |mask, known| (mask, "new".to_owned(), known);
    assert_eq!(guest.told(), [new(create, false), new(modify, false), new(close, false)]);
    fs::rename(guest.client.host("new"), guest.client.host("old")).unwrap();
    assert_eq!(
        guest.told(),
        [new(ReadFlags::MOVED_FROM, false), (ReadFlags::MOVED_TO, "old".to_owned(), false)],
        "what the guest knows by that name is another file"
    );
    guest.lookup("old");
    fs::create_dir(guest.client.host("d")).unwrap();
    fs::remove_file(guest.client.host("old")).unwrap();
    let dir = (create | ReadFlags::ISDIR, "d".to_owned(), false);
    assert_eq!(guest.told(), [dir, (ReadFlags::DELETE, "old".to_owned(), false)]);
}

#[test]
fn a_file_with_two_names_is_asked_about_each_time() {
    let mut guest = Guest::new();
    guest.write_host("f", "");
    let alone = guest.lookup("f");
    fs::hard_link(guest.client.host("f"), guest.client.host("g")).unwrap();
    guest.client.server.settle();
    assert!(!guest.believes(&alone).1, "a change by the other name would not be noticed");
    let two = guest.lookup("f");
    assert_eq!((guest.believes(&two), two.attr.nlink), ((true, false), 2));
}

#[test]
fn what_changed_unnoticed_is_noticed_when_the_file_is_opened() {
    let mut guest = Guest::new();
    guest.write_host("f", "one");
    let file = guest.lookup("f");
    let open = |guest: &mut Guest| {
        guest
            .client
            .get::<OpenOut>(Opcode::Open, file.node, &Bytes::of(&OpenIn::default()))
            .unwrap()
            .open_flags
    };
    assert_eq!((open(&mut guest) & KEEP_CACHE, guest.believes(&file)), (KEEP_CACHE, (true, true)));
    // By a name outside of the share, which is gone again before anybody looks.
    let outside = guest.client.outside("name");
    let ctime = || fs::metadata(guest.client.host("f")).unwrap().ctime_nsec();
    let before = ctime();
    while ctime() == before {
        fs::hard_link(guest.client.host("f"), &outside).unwrap();
        File::options().append(true).open(&outside).unwrap().write_all(b"more").unwrap();
        fs::remove_file(&outside).unwrap();
    }
    guest.client.server.settle();
    assert!(guest.believes(&file).1, "nothing of that was noticed");
    open(&mut guest);
    assert!(!guest.believes(&file).1);
    assert!(guest.client.getattr(file.node).unwrap().attr.size > 3);
}

#[test]
fn more_changes_than_a_guest_takes_are_not_kept() {
    let mut guest = Guest::new();
    for n in 0..3000 {
        guest.write_host(&n.to_string(), "");
    }
    assert!((1..=1024).contains(&guest.told().len()));
    let file = guest.lookup("2999");
    guest.write_host("2999", "text");
    guest.client.server.settle();
    assert_eq!(guest.believes(&file), (false, false), "caches do not depend on it");
}

#[test]
fn of_what_is_hidden_nothing_is_told() {
    let mut guest = Guest::hiding(&["secret", "d/key"]);
    fs::create_dir(guest.client.host("d")).unwrap();
    guest.lookup("d");
    guest.told();
    guest.write_host("secret", "text");
    guest.write_host("d/key", "text");
    fs::rename(guest.client.host("secret"), guest.client.host("known")).unwrap();
    assert_eq!(guest.told(), [(ReadFlags::MOVED_TO, "known".to_owned(), false)]);
}

#[test]
fn another_mount_starts_anew() {
    let mut guest = Guest::new();
    guest.write_host("f", "");
    let file = guest.lookup("f");
    guest.client.init().unwrap();
    assert_eq!(guest.believes(&file), (false, false));
    guest.write_host("f", "text");
    assert_eq!(guest.told().len(), 2, "the root is watched again");
}
