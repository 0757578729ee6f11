//! The folders that a sandbox shares with its host: both sides see the same, and nothing beyond.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, Instant};

use anyhow::Context;
use tests::{Home, Test, Vm};

/// A sandbox on the workspace and on `others`, given as on a command line.
fn boot_with_paths(others: &[&str]) -> anyhow::Result<Vm> {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    vm.home.write("docs/page", "host\n")?;
    vm.home.write("single", "single\n")?;
    vm.home.write("secret", "secret\n")?;
    let run =
        vm.home.coracle(["run", "-d", "--name", "vm", "--cpus", "1", "-m", "512m", "--idle-timeout", "10m"]);
    run.args(["shell", "."]).args(others).ok()?;
    Ok(vm)
}

#[test]
fn both_sides_see_what_the_other_writes() -> Test {
    let vm = Vm::boot()?;
    vm.home.write("proj/from-host", "host\n")?;
    assert_eq!(vm.exec("cat from-host && echo guest > from-guest && echo more >> from-host")?, "host\n");
    assert_eq!(
        (vm.home.read("proj/from-guest")?, vm.home.read("proj/from-host")?),
        ("guest\n".into(), "host\nmore\n".into())
    );
    vm.home.write("proj/from-guest", "changed by the host\n")?;
    assert_eq!(vm.exec("cat from-guest")?, "changed by the host\n");
    vm.exec("mkdir -p a/b && mv from-guest a/b/moved && rm from-host && ln -s b/moved a/link")?;
    assert_eq!(vm.home.read("proj/a/link")?, "changed by the host\n");
    assert!(!vm.home.workspace().join("from-host").exists());
    Ok(())
}

#[test]
fn files_are_the_host_users_there_and_the_agents_here() -> Test {
    let vm = Vm::boot()?;
    let user = rustix::process::getuid().as_raw();
    vm.home.write("proj/old", "")?;
    assert_eq!(
        vm.exec("touch new && sudo touch by-root && stat -c %u:%g old new by-root")?,
        "1000:1000\n".repeat(3)
    );
    for name in ["old", "new", "by-root"] {
        assert_eq!(vm.home.workspace().join(name).metadata()?.uid(), user, "{name}");
    }
    vm.exec("chmod 751 new")?;
    assert_eq!(vm.home.workspace().join("new").metadata()?.mode() & 0o7777, 0o751);
    Ok(())
}

#[test]
fn a_read_only_folder_is_so_whatever_root_does_in_the_guest() -> Test {
    let vm = boot_with_paths(&["../docs:ro"])?;
    let before = tests::host::snapshot(&vm.home.path().join("docs"));
    assert_eq!(vm.exec("cat ../docs/page")?, "host\n");
    let attacks = "cd ../docs; sudo mount -o remount,rw . || true
        for c in 'echo x > page' 'echo x >> page' 'touch new' 'rm page' 'mv page p' 'chmod 777 page' 'mkdir d' 'ln page l' \
            'truncate -s 0 page' 'touch -d @0 page' 'ln -s a b'; do
            sudo sh -c \"$c\" 2>/dev/null && echo done: $c; done; true";
    assert_eq!(vm.exec(attacks)?, "");
    assert_eq!(tests::host::snapshot(&vm.home.path().join("docs")), before);
    Ok(())
}

#[test]
fn several_folders_and_a_single_file_are_at_their_own_paths() -> Test {
    let vm = boot_with_paths(&["../docs", "../single"])?;
    assert_eq!(vm.exec("cat ../docs/page ../single; ls ..")?, "host\nsingle\ndocs\nproj\nsingle\n");
    vm.exec("echo more >> ../docs/page; echo more >> ../single")?;
    assert_eq!(
        (vm.home.read("docs/page")?, vm.home.read("single")?),
        ("host\nmore\n".into(), "single\nmore\n".into())
    );
    Ok(())
}

#[test]
fn a_single_file_shows_nothing_of_its_neighbours() -> Test {
    let vm = boot_with_paths(&["../single:ro"])?;
    let secret = vm.home.path().join("secret");
    let found = vm.exec(&format!(
        "sudo grep -rls '^secret$' {0} /mnt /run 2>/dev/null; sudo cat {0}/secret; true",
        vm.home.path().display()
    ));
    assert_eq!(found?, "");
    let mount = "tag=$(sudo awk '$5 ~ /single$/ {print $(NF-1)}' /proc/self/mountinfo); sudo mkdir /mnt/x
        sudo mount -t virtiofs \"$tag\" /mnt/x 2>/dev/null; ls /mnt/x; cat /mnt/x/secret /mnt/x/../secret 2>/dev/null; true";
    let seen = vm.exec(mount)?;
    assert!(!seen.contains("secret"), "{seen}");
    assert_eq!(fs::read_to_string(secret)?, "secret\n");
    Ok(())
}

#[test]
fn links_lead_nowhere_but_where_the_guest_has_something() -> Test {
    let vm = boot_with_paths(&[])?;
    for (link, target) in
        [("up", "../secret"), ("absolute", "/proc/1/environ"), ("folder", ".."), ("root", "/")]
    {
        symlink(target, vm.home.workspace().join(link))?;
    }
    let out = vm.exec("cat up folder/secret 2>/dev/null; readlink up; ls root/init 2>/dev/null; true")?;
    assert_eq!(out, "../secret\n", "the guest follows links itself, in its own tree");
    vm.exec("ln -s /etc/passwd mine; echo over > mine 2>/dev/null; ln -sf ../secret s; echo over > s; true")?;
    assert_eq!(vm.home.read("secret")?, "secret\n");
    Ok(())
}

#[test]
fn git_commits_there_and_is_clean_here() -> Test {
    let vm = Vm::boot()?;
    let commit = "git init -q . && echo hello > file && git add . && git -c user.name=a -c user.email=a@b commit -qm first";
    vm.exec(commit)?;
    assert_eq!(vm.exec("git status --porcelain; git log --format=%s")?, "first\n");
    let host = |args: &[&str]| vm.home.program("git").args(args).ok();
    assert_eq!(host(&["status", "--porcelain"])? + &host(&["log", "--format=%s"])?, "first\n");
    host(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "second"])?;
    assert_eq!(vm.exec("git log --format=%s; git fsck 2>&1")?, "second\nfirst\n");
    Ok(())
}

#[test]
fn what_is_hidden_is_not_there_even_for_root() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    for path in [".env", "sub/.env", "node_modules/p/index", "secrets/key.pem", "secrets/seen", "seen"] {
        vm.home.write(&format!("proj/{path}"), "host\n")?;
    }
    vm.home.program("git").args(["init", "-q"]).ok()?;
    let before = tests::host::snapshot(&vm.home.workspace().join("secrets"));
    vm.start([
        "--cpus",
        "1",
        "-m",
        "512m",
        "--hide",
        ".env",
        "--hide",
        "node_modules",
        "--hide",
        "secrets/*.pem",
    ])?;
    let seen =
        vm.exec("sudo ls -A . sub secrets; sudo find . -path ./.git -prune -o -type f -print | sort")?;
    assert_eq!(seen, ".:\n.git\nsecrets\nseen\nsub\n\nsecrets:\nseen\n\nsub:\n./secrets/seen\n./seen\n");
    assert_eq!(vm.exec("git status --porcelain -uall")?, "?? secrets/seen\n?? seen\n");
    let attacks = "for c in 'cat .env' 'cp .env x' 'rm sub/.env' 'ls node_modules/p' 'cat secrets/key.pem' 'echo x > .env' \
            'mv seen .env' 'mv .env x' 'ln seen .env' 'ln -s seen sub/.env' 'mkdir node_modules' 'rmdir sub' 'rm -r sub' \
            'mv secrets open' 'touch secrets/new.pem' 'cp -r secrets x && cat x/key.pem' \
            'mkdir /mnt/x && mount -t virtiofs w0 /mnt/x && cat /mnt/x/.env'; do
            sudo sh -c \"$c\" 2>/dev/null && echo done: $c; done; true";
    assert_eq!(vm.exec(attacks)?, "");
    for path in [".env", "sub/.env", "node_modules/p/index"] {
        assert_eq!(vm.home.read(&format!("proj/{path}"))?, "host\n");
    }
    assert_eq!(tests::host::snapshot(&vm.home.workspace().join("secrets")), before);
    Ok(())
}

#[test]
fn git_works_in_a_linked_worktree_and_the_main_one_is_safe() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let git = |args: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@b"];
        vm.home.program("git").args(who).args(args).ok()
    };
    git(&["init", "-q"])?;
    git(&["commit", "-q", "--allow-empty", "-m", "first"])?;
    git(&["worktree", "add", "-q", "../tree"])?;
    vm.home.write("proj/private", "private\n")?;
    let run = [
        "run",
        "-d",
        "--name",
        "vm",
        "--cpus",
        "1",
        "-m",
        "512m",
        "--idle-timeout",
        "10m",
        "shell",
        "../tree",
    ];
    let note = vm.home.coracle(run).run()?.stderr;
    assert!(String::from_utf8_lossy(&note).contains("proj/.git is shown too, for git in"), "{note:?}");
    let commit =
        "git status --porcelain && echo hello > file && git add . && git branch other && git branch -D other;
        git -c user.name=a -c user.email=a@b commit -qm second && git log --format=%s && ls -A ../proj";
    assert_eq!(vm.exec(commit)?.replace("Deleted branch other", "").lines().last(), Some(".git"));
    assert_eq!(git(&["log", "--format=%s", "tree"])?, "second\nfirst\n");
    assert_eq!(git(&["fsck", "--no-progress"])?, "");
    let repository = vm.home.workspace().join(".git");
    let before = tests::host::snapshot(&repository);
    let attacks = "cd ../proj/.git; for c in 'echo x >> config' 'git config x.y z' 'echo x > hooks/pre-commit' 'rm -r hooks' \
            'mv hooks h' 'touch config.worktree' 'mv objects o' 'ln config objects/c && echo x >> objects/c' 'mkdir modules' \
            'echo x > worktrees/tree/commondir' 'mv worktrees/tree refs/t' 'touch worktrees/tree/config.worktree' \
            'mkdir worktrees/new' 'ln -s /etc/passwd logs/refs/heads/l' 'touch objects/info/alternates' 'rm HEAD' 'cat ../private'; do
            sudo sh -c \"$c\" 2>/dev/null && echo done: $c; done; true";
    assert_eq!(vm.exec(attacks)?, "");
    assert_eq!(tests::host::snapshot(&repository), before);
    Ok(())
}

#[test]
fn a_forged_worktree_opens_no_folder() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    vm.home.write("keys/.git/worktrees/x/secret", "secret\n")?;
    let forged = vm.home.path().join("keys/.git/worktrees/x");
    vm.home.write("proj/.git", format!("gitdir: {}\n", forged.display()))?;
    let run =
        ["run", "-d", "--name", "vm", "--cpus", "1", "-m", "512m", "--idle-timeout", "10m", "shell", "."];
    let note = vm.home.coracle(run).run()?.stderr;
    assert!(String::from_utf8_lossy(&note).contains("its .git is not believed"), "{note:?}");
    assert_eq!(vm.exec("ls ..")?, "proj\n");
    Ok(())
}

#[test]
fn make_builds_what_is_older_and_nothing_else() -> Test {
    let vm = Vm::boot()?;
    vm.home.write("proj/Makefile", "out: in\n\tcp in out\n")?;
    vm.home.write("proj/in", "1\n")?;
    assert_eq!(vm.exec("make && make")?, "cp in out\nmake: 'out' is up to date.\n");
    vm.home.write("proj/in", "2\n")?;
    assert_eq!(vm.exec("make && cat out")?, "cp in out\n2\n");
    Ok(())
}

#[test]
fn five_thousand_files_arrive() -> Test {
    let vm = Vm::boot()?;
    vm.home
        .coracle(["exec", "vm", "sh", "-c", "mkdir d; cd d; for i in $(seq 5000); do echo $i > f$i; done"])
        .deadline(180)
        .ok()?;
    let names = fs::read_dir(vm.home.workspace().join("d"))?.count();
    assert_eq!((names, vm.home.read("proj/d/f5000")?), (5000, "5000\n".into()));
    assert_eq!(
        vm.exec("ls d | sort -u | wc -l; find d -name 'f*' -size +0 | wc -l; rm -r d")?,
        "5000\n5000\n"
    );
    assert!(!vm.home.workspace().join("d").exists());
    Ok(())
}

#[test]
fn large_files_keep_every_byte_both_ways() -> Test {
    let vm = Vm::boot()?;
    let bytes = tests::random::Random::new(3).bytes((24 << 20) + 17);
    vm.home.write("proj/big", &bytes)?;
    vm.exec("cp big copy && cmp big copy && dd if=big of=part bs=4097 skip=100 count=10 status=none")?;
    assert!(fs::read(vm.home.workspace().join("copy"))? == bytes);
    assert!(fs::read(vm.home.workspace().join("part"))? == bytes[409_700..450_670]);
    Ok(())
}

#[test]
fn an_open_file_outlives_its_name() -> Test {
    let vm = Vm::boot()?;
    let script = "echo kept > f; exec 3<> f; rm f; cat <&3; echo more >&3; ls";
    assert_eq!(vm.exec(script)?, "kept\n");
    assert_eq!(fs::read_dir(vm.home.workspace())?.count(), 0);
    Ok(())
}

#[test]
fn names_of_any_bytes_go_both_ways() -> Test {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let vm = Vm::boot()?;
    let longest = [b'n'; 255];
    let names: [&[u8]; 7] =
        [b"a b", b"new\nline", b"\xff\xfe", "ünï🛶".as_bytes(), b"-rf", b"$(id)", &longest];
    for name in names {
        fs::write(vm.home.workspace().join(OsStr::from_bytes(name)), "")?;
    }
    assert_eq!(vm.exec("find . -type f -print0 | tr -cd '\\0' | wc -c")?, "7\n");
    vm.exec("for f in ./*; do mv \"$f\" \"$f\".x 2>/dev/null || echo long; done")?;
    let mut moved = fs::read_dir(vm.home.workspace())?;
    moved
        .find(|it| it.as_ref().is_ok_and(|it| it.file_name().as_bytes() == b"\xff\xfe.x"))
        .context("renamed")??;
    Ok(())
}

#[test]
fn locks_mappings_and_sparse_files_work() -> Test {
    let vm = Vm::boot()?;
    let script = r#"
import fcntl, mmap, os
f = open("f", "wb+"); f.truncate(1 << 20); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)
m = mmap.mmap(f.fileno(), 1 << 20); m[4096:4101] = b"hello"; m.flush(); os.fsync(f.fileno())
print(os.stat("f").st_blocks < 2048, os.pread(f.fileno(), 5, 4096))
"#;
    assert_eq!(vm.command(["python3", "-c", script]).ok()?, "True b'hello'\n");
    assert_eq!(&fs::read(vm.home.workspace().join("f"))?[4096..4101], b"hello");
    Ok(())
}

/// Prints a line for each event of inotify on the folder `.` and on the file `watched`, until the file `end` appears.
const WATCHER: &str = r#"
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
names = {libc.inotify_add_watch(fd, b".", 0xfce): "", libc.inotify_add_watch(fd, b"watched", 0xfce): "itself "}
kinds = {2: "modify", 4: "attrib", 8: "close", 0x40: "from", 0x80: "to", 0x100: "create", 0x200: "delete",
         0x400: "gone", 0x800: "moved", 0x8000: "ignored"}
print("watching", flush=True)
name = b""
while name != b"end":
    data = os.read(fd, 4096)
    while data:
        wd, mask, cookie, length = struct.unpack("iIII", data[:16])
        name, data = data[16:16 + length].rstrip(b"\0"), data[16 + length:]
        print(names[wd] + kinds[mask & 0xffff], name.decode(), flush=True)
"#;

#[test]
fn a_change_on_the_host_wakes_who_watches_in_the_guest() -> Test {
    let vm = Vm::boot()?;
    let host = |name: &str| vm.home.workspace().join(name);
    vm.home.write("proj/watched", "")?;
    let mut watcher = vm.command(["python3", "-c", WATCHER]).spawn()?;
    watcher.until("watching")?;
    vm.home.write("proj/new", "text")?;
    watcher.until("create new\nmodify new\nclose new\n")?;
    fs::rename(host("new"), host("other"))?;
    watcher.until("from new\nto other\n")?;
    fs::remove_file(host("other"))?;
    watcher.until("delete other\n")?;
    vm.home.write("proj/watched", "text")?;
    watcher.until("modify watched\nitself modify \n")?;
    // As an editor saves: who watches the file itself must know that it is another one now.
    vm.home.write("proj/draft", "text")?;
    fs::rename(host("draft"), host("watched"))?;
    watcher.until("itself attrib \n")?;
    watcher.until("to watched\n")?;
    vm.home.write("proj/end", "")?;
    let lines = watcher.wait()?.out();
    assert!(lines.contains("itself gone \n"), "{lines}");
    Ok(())
}

/// The promise is for a machine of its own: this one is shared, and the best of some rounds tells.
#[test]
fn the_guest_wakes_within_200_ms_of_the_change() -> Test {
    const WITHIN: Duration = Duration::from_millis(200);
    let vm = Vm::boot()?;
    vm.home.write("proj/watched", "")?;
    let mut watcher = vm.command(["python3", "-c", WATCHER]).spawn()?;
    watcher.until("watching")?;
    let mut took = Vec::new();
    for round in 0..10 {
        let start = Instant::now();
        vm.home.write(&format!("proj/new{round}"), "")?;
        watcher.until(&format!("create new{round}\n"))?;
        took.push(start.elapsed());
    }
    vm.home.write("proj/end", "")?;
    watcher.ok()?;
    assert!(took.iter().min() < Some(&WITHIN), "{took:?}");
    Ok(())
}

/// Whatever the host's user has mounted below the share is in it. A user namespace gives an ordinary user a mount.
#[test]
fn what_is_mounted_below_the_share_is_part_of_it() -> Test {
    let home = Home::new()?;
    fs::create_dir(home.workspace().join("mnt"))?;
    let guest = "cat mnt/f; echo guest > mnt/d/g; mv mnt/f mnt/d/h; mv mnt/d/h .; ls -R mnt";
    let host = format!(
        "mount -t tmpfs none mnt && mkdir mnt/d && echo host > mnt/f &&
        coracle run --rm --cpus 1 -m 512m shell . -- sh -ec '{guest}' && cat mnt/d/g"
    );
    let out = home.program("unshare").args(["-rm", "sh", "-ec", &host]).deadline(120).ok()?;
    assert_eq!(
        (out.as_str(), home.read("proj/h")?),
        ("host\nmnt:\nd\n\nmnt/d:\ng\nguest\n", "host\n".into())
    );
    Ok(())
}

#[test]
fn what_the_guest_changes_itself_is_told_once() -> Test {
    let vm = Vm::boot()?;
    vm.home.write("proj/watched", "")?;
    let mut watcher = vm.command(["python3", "-c", WATCHER]).spawn()?;
    watcher.until("watching")?;
    vm.exec("echo text > a; mv a b; chmod 600 b; rm b; mkdir d; rmdir d; touch end")?;
    let expected = "watching\ncreate a\nmodify a\nclose a\nfrom a\nto b\nattrib b\ndelete b\ncreate d\ndelete d\ncreate end\n";
    let lines = watcher.wait()?.out();
    assert!(lines.starts_with(expected), "{lines}");
    Ok(())
}

#[test]
fn what_the_guest_knows_it_does_not_ask_again() -> Test {
    let vm = Vm::boot()?;
    for n in 0..50 {
        vm.home.write(&format!("proj/dir/{n}"), n.to_string())?;
    }
    let walk = "for d, _, files in os.walk('.'): [os.stat(d + '/' + f) for f in files]";
    let look = format!("python3 -c \"import os\nfor _ in range(20):\n  {walk}\"");
    vm.exec(&look)?;
    let before = vm.home.vmm()?.switches("w0")?;
    vm.exec(&look)?;
    let asked = vm.home.vmm()?.switches("w0")? - before;
    assert!(asked < 200, "the share was asked {asked} times for 1000 files in 20 folders");
    vm.home.write("proj/dir/7", "changed")?;
    assert_eq!(vm.exec("cat dir/7; stat -c %s dir/7")?, "changed7\n");
    Ok(())
}
