//! Programs of both sides at work on the same files of a workspace: neither sees old content, or half of a new one.
//! The longer versions, on the server alone, are in vmm/src/virtio/fs/tests/coherence.rs.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use tests::{Test, Vm, rounds};

/// A guest in the lab runs at a hundredth of a machine's speed.
const DEADLINE: (u32, u32) = (600, 7_200);
/// How often something is done in a run of all tests, and when there is time.
const GIT_ROUNDS: (u32, u32) = (15, 10_000);
/// The host replaces a file until the guest has seen that many versions of it.
const VERSIONS_SEEN: u32 = 5;
const VERSIONS_MAX: u32 = 20_000;
const VERSION_BYTES: usize = 64 << 10;
/// The lab has one processor, of which the guest shall get the most.
const PAUSE: Duration = Duration::from_millis(20);
const FILES: (u32, u32) = (200, 10_000);
const WORDS: (u32, u32) = (50, 2_000);
const MADE: (u32, u32) = (20, 1_000);
const OPENINGS: (u32, u32) = (100, 10_000);

/// Shorter than what the guest takes from looking a file up to opening it, and long enough for the guest to get on.
const BETWEEN_STEPS: Duration = Duration::from_millis(1);

#[test]
fn git_in_the_guest_and_git_on_the_host_do_not_disturb_each_other() -> Test {
    let vm = Vm::boot()?;
    // A `git status` that may not write its index back cannot be in another git's way.
    let host = |args: &[&str]| vm.home.program("git").env("GIT_OPTIONAL_LOCKS", "0").args(args).ok();
    host(&["init", "-q"])?;
    host(&["-c", "user.name=h", "-c", "user.email=h@h", "commit", "-qm", "first", "--allow-empty"])?;
    vm.exec("touch a b c")?;
    let script = format!(
        "for i in $(seq {}); do git add . && git restore --staged . || exit; done",
        rounds(GIT_ROUNDS)
    );
    thread::scope(|scope| -> Test {
        let guest = scope.spawn(|| vm.command(["sh", "-c", &script]).deadline(rounds(DEADLINE).into()).run());
        while !guest.is_finished() {
            let status = host(&["status", "--porcelain"])?;
            ensure!(["A  a\nA  b\nA  c\n", "?? a\n?? b\n?? c\n"].contains(&status.as_str()), "{status}");
        }
        let done = guest.join().expect("it does not panic")?;
        ensure!(done.code == 0 && done.stderr.is_empty(), "{}", done.err());
        Ok(())
    })?;
    vm.exec("git add .")?;
    assert_eq!(host(&["status", "--porcelain"])?, "A  a\nA  b\nA  c\n");
    Ok(())
}

#[test]
fn a_file_the_host_replaces_is_seen_whole_and_never_an_older_one() -> Test {
    let vm = Vm::boot()?;
    let replace = |number: u32| -> Test {
        let line = format!("{number:07}\n");
        vm.home.write("proj/new", line.repeat(VERSION_BYTES / line.len()))?;
        fs::rename(vm.home.workspace().join("new"), vm.home.workspace().join("f"))?;
        Ok(())
    };
    replace(0)?;
    let script = format!(
        "import os
last, seen = 0, set()
while not os.path.exists('done'):
    text = open('f').read()
    assert len(text) == {VERSION_BYTES} and len(set(text.split())) == 1, 'torn'
    assert int(text[:7]) >= last, 'older'
    last = int(text[:7]); seen.add(last)
    if len(seen) == {VERSIONS_SEEN}: open('enough', 'w').close()"
    );
    let reader = vm.command(["python3", "-c", &script]).deadline(rounds(DEADLINE).into()).spawn()?;
    let enough = vm.home.workspace().join("enough");
    let mut last = 0;
    while !enough.exists() {
        ensure!(last < VERSIONS_MAX, "the guest has seen few of {last} versions");
        last += 1;
        replace(last)?;
        thread::sleep(PAUSE);
    }
    assert_eq!(vm.exec("head -n 1 f")?, format!("{last:07}\n"));
    vm.home.write("proj/done", "")?;
    reader.ok()?;
    Ok(())
}

#[test]
fn a_file_the_host_replaces_all_the_time_can_always_be_opened() -> Test {
    let vm = Vm::boot()?;
    let replace = || -> Test {
        vm.home.write("proj/new", "text")?;
        Ok(fs::rename(vm.home.workspace().join("new"), vm.home.workspace().join("f"))?)
    };
    replace()?;
    let script = format!(
        "import os
for n in range({}):
    assert open('f').read() == 'text', n
    assert os.stat('f').st_size == 4, n",
        rounds(OPENINGS)
    );
    let guest = vm.command(["python3", "-c", &script]).deadline(rounds(DEADLINE).into()).spawn()?;
    let done = thread::scope(|scope| {
        let guest = scope.spawn(|| guest.ok());
        while !guest.is_finished() {
            replace()?;
            thread::sleep(BETWEEN_STEPS);
        }
        guest.join().expect("it does not panic")
    });
    done.map(drop)
}

/// Says for each line that it reads whether the folder is as the line says: a file by its name, by a descriptor that has been
/// open all along, by its size, and a name that may be there.
const LISTENER: &str = "
import os, sys
kept = os.open('f', os.O_RDONLY)
print('listening', flush=True)
for line in sys.stdin:
    word, there = line.split()
    seen = [open('f').read(), os.pread(kept, 100, 0).decode(), os.path.exists('g'), os.stat('f').st_size]
    print('right' if seen == [word, word, there == 'True', len(word)] else seen, line, flush=True)
";

#[test]
fn who_is_told_of_a_change_finds_it() -> Test {
    let vm = Vm::boot()?;
    vm.home.write("proj/f", "0")?;
    let (input, mut words) = std::io::pipe()?;
    let mut listener =
        vm.home.coracle(["exec", "-i", "vm", "python3", "-c", LISTENER]).deadline(rounds(DEADLINE).into());
    listener.command().stdin(input);
    let mut listener = listener.spawn()?;
    listener.until("listening")?;
    for round in 1..=rounds(WORDS) {
        let there = round % 2 == 0;
        if there {
            vm.home.write("proj/g", "")?;
        } else if round > 1 {
            fs::remove_file(vm.home.workspace().join("g"))?;
        }
        // In place, as a new file would be found by its new name anyway.
        let word = "x".repeat(round as usize % 7 + 1) + &round.to_string();
        let file = fs::File::options().write(true).open(vm.home.workspace().join("f"))?;
        file.set_len(word.len() as u64)?;
        file.write_all_at(word.as_bytes(), 0)?;
        writeln!(words, "{word} {}", if there { "True" } else { "False" })?;
        listener.until(&format!(" {word} "))?;
    }
    drop(words);
    let heard = listener.ok()?;
    let wrong: Vec<_> = heard.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!((heard.matches("right ").count(), wrong), (rounds(WORDS) as usize, vec![]));
    Ok(())
}

/// Makes and replaces files by names that it has looked up before the host used them; a step for each line that it reads.
const MAKER: &str = "
import os, sys
def fails(error, call, *args):
    try:
        call(*args)
    except error:
        return
    raise AssertionError((call, args))
new = os.O_CREAT | os.O_EXCL
for line in sys.stdin:
    step = line.split()[0]
    if step == 'look':
        open('x', 'w').close()
        for name in ('taken', 'read', 'cut', 'folder', 'replaced'): assert not os.path.exists(name), name
    elif step == 'make':
        fails(FileExistsError, os.open, 'taken', new)
        fails(FileExistsError, os.link, 'x', 'taken')
        assert os.read(os.open('read', os.O_CREAT | os.O_RDWR), 9) == b'host'
        os.close(os.open('cut', os.O_CREAT | os.O_TRUNC | os.O_WRONLY))
        fails(FileExistsError, os.mkdir, 'folder')
        fails(IsADirectoryError, os.rename, 'x', 'folder')
        os.rename('x', 'replaced')
        assert os.path.getsize('replaced') == 0
    elif step == 'refuse':
        fails(PermissionError, os.open, 'y', new)
        fails(PermissionError, os.unlink, 'cut')
    else:
        os.close(os.open('y', new))
        for name in ('y', 'taken', 'read', 'cut', 'replaced'): os.unlink(name)
        os.rmdir('folder')
    print('done with', line.strip(), '', flush=True)
";

#[test]
fn who_makes_or_replaces_a_file_finds_what_the_host_has_made_of_its_name() -> Test {
    let vm = Vm::boot()?;
    let folder = vm.home.workspace();
    let (input, mut steps) = std::io::pipe()?;
    let mut maker = vm.home.coracle(["exec", "-i", "vm", "python3", "-c", MAKER]);
    maker.command().stdin(input);
    let mut maker = maker.deadline(rounds(DEADLINE).into()).spawn()?;
    for round in 0..rounds(MADE) {
        let mut step = |step: &str| -> Test {
            writeln!(steps, "{step} {round} ")?;
            maker.until(&format!("done with {step} {round} "))
        };
        step("look")?;
        for name in ["taken", "read", "cut", "replaced"] {
            vm.home.write(&format!("proj/{name}"), "host")?;
        }
        fs::create_dir(folder.join("folder"))?;
        step("make")?;
        assert_eq!(fs::read_to_string(folder.join("taken"))?, "host");
        assert_eq!(fs::metadata(folder.join("cut"))?.len() + fs::metadata(folder.join("replaced"))?.len(), 0);
        fs::set_permissions(&folder, Permissions::from_mode(0o555))?;
        step("refuse")?;
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        step("clear")?;
        assert_eq!(fs::read_dir(&folder)?.count(), 0);
    }
    drop(steps);
    maker.ok().map(drop)
}

#[test]
fn a_mapping_in_the_guest_shows_what_the_host_writes() -> Test {
    let vm = Vm::boot()?;
    let path = vm.home.write("proj/f", [b'.'; 8192])?;
    let script = "import mmap, time
f = open('f', 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
assert m[5000:5003] == b'...'
print('mapped', flush=True)
for word in (b'one', b'two'):
    while m[5000:5003] != word: time.sleep(0.01)
    print(word, flush=True)";
    let mut reader = vm.command(["python3", "-c", script]).spawn()?;
    reader.until("mapped")?;
    let file = fs::File::options().write(true).open(path)?;
    for word in ["one", "two"] {
        file.write_all_at(word.as_bytes(), 5000)?;
        reader.until(word)?;
    }
    reader.ok()?;
    Ok(())
}

#[test]
fn copies_both_ways_are_equal_holes_included() -> Test {
    let vm = Vm::boot()?;
    let content = |number: u32| number.to_le_bytes().repeat(number as usize * 11 % 5_000);
    let files = rounds(FILES);
    for number in 0..files {
        let path = vm.home.write(&format!("proj/from/{number}"), content(number))?;
        if number % 10 == 0 {
            fs::File::options().write(true).open(path)?.write_all_at(b"far", 1 << 20)?;
        }
    }
    let script =
        "cp -r from /tmp/in && cp -r /tmp/in out && mkdir tar && tar -Scf - -C from . | tar -xf - -C tar";
    vm.command(["sh", "-ec", script]).deadline(rounds(DEADLINE).into()).ok()?;
    for (number, copy) in (0..files).flat_map(|number| [(number, "out"), (number, "tar")]) {
        let read = |folder: &str| fs::read(vm.home.workspace().join(folder).join(number.to_string()));
        assert!(read(copy)? == read("from")?, "{copy}/{number}");
    }
    Ok(())
}
