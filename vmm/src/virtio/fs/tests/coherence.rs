//! What the host changes is what the guest sees, in whatever way it was changed and however soon after: never old content,
//! never half of a new one. `kernel` has the mount; here the host's programs are at work while the guest's look.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::kernel::Mount;
use super::suites::{HOST_ID, rounds};
use crate::virtio::fs::ids::AGENT_ID;

/// Ways to give a file new content. None of them waits for the clock to tick.
type Way = fn(&Path, &[u8]);
const IN_PLACE: Way = |path, text| {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(text, 0).unwrap();
    file.set_len(text.len() as u64).unwrap();
};
const TRUNCATE: Way = |path, text| fs::write(path, text).unwrap();
const APPEND: Way = |path, text| {
    File::options().write(true).truncate(true).open(path).unwrap();
    let (first, second) = text.split_at(text.len() / 2);
    File::options().append(true).open(path).unwrap().write_all(first).unwrap();
    File::options().append(true).open(path).unwrap().write_all(second).unwrap();
};
const REPLACE: Way = |path, text| {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
};
const REMAKE: Way = |path, text| {
    fs::remove_file(path).unwrap();
    fs::write(path, text).unwrap();
};

/// Content of round `round`: the same length in each, which is what a cache that compares sizes cannot tell apart.
fn text(round: u32) -> Vec<u8> {
    format!("{round:08}").repeat(700).into_bytes()
}

#[test]
fn a_file_the_guest_opens_has_what_the_host_wrote_last() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    fs::write(mount.host("f"), "").unwrap();
    for round in 0..rounds(200, 10_000) {
        for (way, change) in [IN_PLACE, TRUNCATE, APPEND, REPLACE, REMAKE].into_iter().enumerate() {
            // Twice, so that the second change may come in the tick of the first.
            for text in [text(round), text(round + 1)] {
                change(&mount.host("f"), &text);
                assert!(fs::read(mount.guest("f")).unwrap() == text, "round {round}, way {way}");
                assert_eq!(fs::metadata(mount.guest("f")).unwrap().len(), text.len() as u64);
            }
        }
    }
}

/// Each change is seen by a read of a file that the guest opened long before.
fn assert_open_file_is_current(mount: &Mount, name: &str) {
    fs::write(mount.host(name), "").unwrap();
    let open = File::open(mount.guest(name)).unwrap();
    for round in 0..rounds(200, 10_000) {
        for (way, change) in [IN_PLACE, TRUNCATE, APPEND].into_iter().enumerate() {
            for text in [text(round), text(round + 1)] {
                change(&mount.host(name), &text);
                let mut seen = vec![0; text.len() + 1];
                let length = open.read_at(&mut seen, 0).unwrap();
                assert!(seen[..length] == text, "round {round}, way {way}");
            }
        }
    }
}

#[test]
fn a_file_the_guest_has_open_has_what_the_host_wrote_last() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    assert_open_file_is_current(&mount, "f");
}

/// Stores into a mapping are announced by nothing: no time changes after the first, and inotify is silent.
#[test]
fn a_file_the_guest_opens_has_what_the_host_stored_into_its_mapping() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    fs::write(mount.host("f"), text(0)).unwrap();
    let script = "import mmap, sys
host, guest, rounds = open(sys.argv[1], 'r+b'), sys.argv[2], int(sys.argv[3])
stored = mmap.mmap(host.fileno(), 0)
for round in range(rounds):
    new = b'%08d' % round * 700
    stored[:] = new
    assert open(guest, 'rb').read() == new, round
";
    let mut python = Command::new("python3");
    let paths = [mount.host("f"), mount.guest("f")];
    let status = python.args(["-c", script]).args(paths).arg(rounds(200, 10_000).to_string()).status();
    assert!(status.unwrap().success());
}

/// Length of a version in the test of replaced files: more than one READ.
const VERSION_BYTES: usize = 2 << 20;

/// Ends the loop of another thread, also when this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_file_that_is_replaced_is_seen_whole_and_never_an_older_one() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let version = |number: u64| number.to_le_bytes().repeat(VERSION_BYTES / 8);
    REPLACE(&mount.host("f"), &version(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&done);
            for number in 1..=u64::from(rounds(500, 10_000)) {
                REPLACE(&mount.host("f"), &version(number));
                written.store(number, Ordering::SeqCst);
            }
        });
        while !done.load(Ordering::SeqCst) {
            let at_least = written.load(Ordering::SeqCst);
            let seen = fs::read(mount.guest("f")).unwrap();
            let number = u64::from_le_bytes(seen[..8].try_into().unwrap());
            assert!(seen == version(number), "a torn file: {} bytes of {number}", seen.len());
            assert!(number >= at_least, "{number} was seen after {at_least} was written");
        }
    });
}

#[test]
fn a_file_that_is_replaced_all_the_time_can_always_be_opened() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    let done = AtomicBool::new(false);
    REPLACE(&mount.host("f"), b"text");
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                REPLACE(&mount.host("f"), b"text");
            }
        });
        let _ends = Ends(&done);
        for round in 0..rounds(10_000, 200_000) {
            let read = fs::read(mount.guest("f")).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(read, b"text");
            File::options().read(true).custom_flags(libc::O_CREAT).open(mount.guest("f")).unwrap();
            assert_eq!(fs::metadata(mount.guest("f")).unwrap().len(), 4);
        }
    });
}

/// Runs a program as a user, in a folder, with nothing of this machine's settings.
fn run(id: u32, folder: &Path, argv: &[&str]) -> Output {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).current_dir(folder).uid(id).gid(id).env("HOME", "/nonexistent");
    // A `git status` that may not write its index back cannot be in another git's way.
    command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap()
}

fn output_of(id: u32, folder: &Path, argv: &[&str]) -> String {
    let output = run(id, folder, argv);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{argv:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn git_in_the_guest_and_git_on_the_host_agree_at_each_step() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    let host = |argv: &[&str]| output_of(HOST_ID, &mount.host(""), argv);
    let guest = |argv: &[&str]| output_of(AGENT_ID, &mount.guest(""), argv);
    host(&["git", "init", "-q"]);
    host(&["git", "-c", "user.name=h", "-c", "user.email=h@h", "commit", "-qm", "first", "--allow-empty"]);
    for file in ["a", "b", "c"] {
        fs::write(mount.guest(file), file).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // Whole in either state, whatever the guest is doing.
                let status = host(&["git", "status", "--porcelain"]);
                assert!(["A  a\nA  b\nA  c\n", "?? a\n?? b\n?? c\n"].contains(&status.as_str()), "{status}");
            }
        });
        let _ends = Ends(&done);
        for round in 0..rounds(30, 10_000) {
            guest(&["git", "add", "."]);
            assert_eq!(host(&["git", "status", "--porcelain"]), "A  a\nA  b\nA  c\n", "round {round}");
            guest(&["git", "restore", "--staged", "."]);
            assert_eq!(host(&["git", "status", "--porcelain"]), "?? a\n?? b\n?? c\n", "round {round}");
        }
    });
}

/// Files of all sizes up to some pages, every tenth of them mostly a hole.
fn fill(folder: &Path, count: u32) {
    fs::create_dir(folder).unwrap();
    for number in 0..count {
        let file = File::create_new(folder.join(number.to_string())).unwrap();
        file.write_all_at(&number.to_le_bytes().repeat(number as usize % 5_000), 0).unwrap();
        if number % 10 == 0 {
            file.set_len(1 << 20).unwrap();
            file.write_all_at(b"far", 700_000 + u64::from(number)).unwrap();
        }
    }
}

fn assert_same(one: &Path, other: &Path, count: u32) {
    assert_eq!(fs::read_dir(other).unwrap().count(), count as usize);
    for name in (0..count).map(|number| number.to_string()) {
        let (one, other) = (fs::read(one.join(&name)).unwrap(), fs::read(other.join(&name)).unwrap());
        assert!(one == other, "{name}: {} bytes there, {} here", one.len(), other.len());
    }
}

#[test]
fn copies_both_ways_are_equal_holes_included() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    let (count, outside) = (rounds(300, 10_000), tempfile::tempdir().unwrap());
    fill(&outside.path().join("from"), count);
    let copy =
        "cp -r \"$1\" \"$2/cp\" && mkdir \"$2/tar\" && tar -C \"$1\" -Scf - . | tar -C \"$2/tar\" -xf -";
    let copy = |from: &Path, to: &Path| {
        let mut shell = Command::new("sh");
        shell.args(["-c", copy, "sh"]).args([from, to]);
        assert!(shell.status().unwrap().success());
    };
    copy(&outside.path().join("from"), &mount.guest(""));
    for way in ["cp", "tar"] {
        assert_same(&outside.path().join("from"), &mount.host(way), count);
        let to = outside.path().join(way);
        fs::create_dir(&to).unwrap();
        copy(&mount.guest(way), &to);
        assert_same(&mount.host(way), &to.join("cp"), count);
        assert_same(&mount.host(way), &to.join("tar"), count);
    }
}
