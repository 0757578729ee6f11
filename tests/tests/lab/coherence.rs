//! Programs of both sides at work on the same files of a workspace: neither sees old content, or half of a new one.
//! The longer versions, on the server alone, are in vmm/src/virtio/fs/tests/coherence.rs.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use tests::{Test, Vm};

/// A guest in the lab runs at a hundredth of a machine's speed.
const DEADLINE: u64 = 600;
const GIT_ROUNDS: u32 = 15;
/// The host replaces a file until the guest has seen that many versions of it.
const VERSIONS_SEEN: u32 = 5;
const VERSIONS_MAX: u32 = 20_000;
const VERSION_BYTES: usize = 64 << 10;
/// The lab has one processor, of which the guest shall get the most.
const PAUSE: Duration = Duration::from_millis(20);
const FILES: u32 = 200;

#[test]
fn git_in_the_guest_and_git_on_the_host_do_not_disturb_each_other() -> Test {
    let vm = Vm::boot()?;
    // A `git status` that may not write its index back cannot be in another git's way.
    let host = |args: &[&str]| vm.home.program("git").env("GIT_OPTIONAL_LOCKS", "0").args(args).ok();
    host(&["init", "-q"])?;
    host(&["-c", "user.name=h", "-c", "user.email=h@h", "commit", "-qm", "first", "--allow-empty"])?;
    vm.exec("touch a b c")?;
    let rounds =
        format!("for i in $(seq {GIT_ROUNDS}); do git add . && git restore --staged . || exit; done");
    thread::scope(|scope| -> Test {
        let guest = scope.spawn(|| vm.command(["sh", "-c", &rounds]).deadline(DEADLINE).run());
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
    let reader = vm.command(["python3", "-c", &script]).deadline(DEADLINE).spawn()?;
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
fn copies_both_ways_are_equal_holes_included() -> Test {
    let vm = Vm::boot()?;
    let content = |number: u32| number.to_le_bytes().repeat(number as usize * 11 % 5_000);
    for number in 0..FILES {
        let path = vm.home.write(&format!("proj/from/{number}"), content(number))?;
        if number % 10 == 0 {
            fs::File::options().write(true).open(path)?.write_all_at(b"far", 1 << 20)?;
        }
    }
    let script =
        "cp -r from /tmp/in && cp -r /tmp/in out && mkdir tar && tar -Scf - -C from . | tar -xf - -C tar";
    vm.command(["sh", "-ec", script]).deadline(DEADLINE).ok()?;
    for (number, copy) in (0..FILES).flat_map(|number| [(number, "out"), (number, "tar")]) {
        let read = |folder: &str| fs::read(vm.home.workspace().join(folder).join(number.to_string()));
        assert!(read(copy)? == read("from")?, "{copy}/{number}");
    }
    Ok(())
}
