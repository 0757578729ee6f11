//! The jail alone: system calls with every check of the server left out, from a thread that is in the jail.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::mpsc::channel;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::client::{Client, path_fd};
use crate::virtio::fs::jail::{Reach, enter, version};

/// Something done to the folder at a path, which is relative to the share's root.
type Act = (&'static str, fn(&OwnedFd, &str) -> Result<(), Errno>);

const MODE: Mode = Mode::RWXU;

fn open(share: &OwnedFd, path: &str, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::openat(share, path, flags | OFlags::CLOEXEC, MODE).map(drop)
}

fn rename(share: &OwnedFd, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(share, from, share, to, flags)
}

fn link(share: &OwnedFd, from: &str, to: &str) -> Result<(), Errno> {
    rustix::fs::linkat(share, from, share, to, AtFlags::empty())
}

/// Each of them works on a folder made by `populate`, and takes rights that the others do not all take.
const READING: [Act; 2] = [
    ("read", |share, at| open(share, &format!("{at}/canary"), OFlags::RDONLY)),
    ("list", |share, at| open(share, at, OFlags::RDONLY | OFlags::DIRECTORY)),
];
const CHANGING: [Act; 17] = [
    ("write", |share, at| open(share, &format!("{at}/canary"), OFlags::WRONLY)),
    ("append", |share, at| open(share, &format!("{at}/canary"), OFlags::RDWR | OFlags::APPEND)),
    ("open and truncate", |share, at| open(share, &format!("{at}/canary"), OFlags::WRONLY | OFlags::TRUNC)),
    ("create", |share, at| open(share, &format!("{at}/new"), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
    ("make without a name", |share, at| open(share, at, OFlags::RDWR | OFlags::TMPFILE)),
    ("mkdir", |share, at| rustix::fs::mkdirat(share, format!("{at}/new"), MODE)),
    ("make a FIFO", |share, at| rustix::fs::mknodat(share, format!("{at}/new"), FileType::Fifo, MODE, 0)),
    ("make a socket", |share, at| rustix::fs::mknodat(share, format!("{at}/new"), FileType::Socket, MODE, 0)),
    ("mark as removed", |share, at| {
        rustix::fs::mknodat(share, format!("{at}/new"), FileType::CharacterDevice, MODE, 0)
    }),
    ("symlink", |share, at| rustix::fs::symlinkat("target", share, format!("{at}/new"))),
    ("unlink", |share, at| rustix::fs::unlinkat(share, format!("{at}/canary"), AtFlags::empty())),
    ("rmdir", |share, at| rustix::fs::unlinkat(share, format!("{at}/dir"), AtFlags::REMOVEDIR)),
    ("rename in place", |share, at| {
        rename(share, &format!("{at}/canary"), &format!("{at}/new"), RenameFlags::empty())
    }),
    ("move away", |share, at| rename(share, &format!("{at}/canary"), "mine/stolen", RenameFlags::NOREPLACE)),
    ("exchange", |share, at| rename(share, &format!("{at}/canary"), "mine/file", RenameFlags::EXCHANGE)),
    ("link away", |share, at| link(share, &format!("{at}/canary"), "mine/linked")),
    ("link into", |share, at| link(share, "mine/file", &format!("{at}/new"))),
];

/// The folder of the share's own with the other end of what goes from one folder to another.
fn make_mine(share: &Path) {
    let _none = std::fs::remove_dir_all(share.join("mine"));
    std::fs::create_dir(share.join("mine")).unwrap();
    std::fs::write(share.join("mine/file"), "mine").unwrap();
}

fn populate(folder: &Path) {
    std::fs::create_dir_all(folder.join("dir")).unwrap();
    std::fs::write(folder.join("canary"), "secret").unwrap();
}

/// Runs `act` in a thread in a jail around `share`; without Landlock, it does not and says so.
fn jailed(share: &Path, reach: Reach, act: impl FnOnce(&OwnedFd) + Send) {
    if let Err(error) = version() {
        assert!(std::env::var_os("CI").is_none(), "Landlock: {error}");
        eprintln!("skipped: Landlock: {error}");
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let share = path_fd(share);
            enter(share.as_fd(), reach).unwrap();
            act(&share);
        });
    });
}

#[test]
fn in_the_jail_alone_everything_is_done_in_the_share_and_nothing_outside() {
    let client = Client::new();
    let (share, out) = (client.host("").canonicalize().unwrap(), client.outside("out"));
    populate(&out);
    let out = out.canonicalize().unwrap();
    std::os::unix::fs::symlink("../out", share.join("link")).unwrap();
    std::os::unix::fs::symlink(format!("/proc/self/root{}", out.display()), share.join("magic")).unwrap();
    // A descriptor that was open before, as those of the rest of the process are.
    let inherited = path_fd(&out);
    let ways = [
        "../out".to_owned(),
        "link".to_owned(),
        "magic".to_owned(),
        out.to_str().unwrap().to_owned(),
        format!("/proc/self/fd/{}", inherited.as_raw_fd()),
    ];
    jailed(&share, Reach::All, |root| {
        for (what, act) in READING.into_iter().chain(CHANGING) {
            populate(&share.join(what));
            make_mine(&share);
            assert_eq!(act(root, what), Ok(()), "{what} in the share");
            for way in &ways {
                make_mine(&share);
                let refused = act(root, way);
                assert!(matches!(refused, Err(Errno::ACCESS | Errno::XDEV)), "{what} {way}: {refused:?}");
            }
        }
    });
    let names = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["canary", "dir"]);
    assert_eq!(std::fs::read(out.join("canary")).unwrap(), b"secret");
}

#[test]
fn the_jail_of_a_read_only_share_lets_nothing_be_changed() {
    let client = Client::new();
    let share = client.host("");
    populate(&share.join("inside"));
    make_mine(&share);
    jailed(&share, Reach::Read, |root| {
        for (what, act) in READING {
            assert_eq!(act(root, "inside"), Ok(()), "{what}");
        }
        for (what, act) in CHANGING {
            let refused = act(root, "inside");
            assert!(matches!(refused, Err(Errno::ACCESS | Errno::XDEV)), "{what}: {refused:?}");
        }
    });
    assert_eq!(std::fs::read(share.join("inside/canary")).unwrap(), b"secret");
}

#[test]
fn the_jail_of_a_single_file_lets_it_be_written_and_none_be_made() {
    let client = Client::new();
    let share = client.host("");
    populate(&share.join("inside"));
    make_mine(&share);
    jailed(&share, Reach::Content, |root| {
        for (what, act) in READING.into_iter().chain(CHANGING) {
            // A file without a name is one more place for content; the server makes none there.
            let content = matches!(
                what,
                "read" | "list" | "write" | "append" | "open and truncate" | "make without a name"
            );
            assert_eq!(act(root, "inside").is_ok(), content, "{what}");
        }
    });
}

#[test]
fn a_folder_that_was_moved_out_of_the_share_is_out_of_reach_by_its_open_descriptor() {
    let client = Client::new();
    let (from, to) = (client.host("inside"), client.outside("moved"));
    populate(&from);
    // What the host's user does is done by a thread that is not in the jail, nor a child of one that is.
    let (ask, asked) = channel();
    let (done, moved) = channel();
    let host = std::thread::spawn(move || {
        if let Ok(()) = asked.recv() {
            std::fs::rename(from, to).unwrap();
            done.send(()).unwrap();
        }
    });
    jailed(&client.host(""), Reach::All, move |root| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let inside = rustix::fs::openat(root, "inside", flags, Mode::empty()).unwrap();
        assert_eq!(open(&inside, "canary", OFlags::RDWR), Ok(()));
        ask.send(()).unwrap();
        moved.recv().unwrap();
        for flags in [OFlags::RDONLY, OFlags::RDWR, OFlags::RDWR | OFlags::TRUNC] {
            assert_eq!(open(&inside, "canary", flags), Err(Errno::ACCESS));
        }
        assert_eq!(open(&inside, "new", OFlags::RDWR | OFlags::CREATE), Err(Errno::ACCESS));
    });
    host.join().unwrap();
}
