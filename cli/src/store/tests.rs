//! Sandboxes made, found, left behind and collected.

use std::fs::File;
use std::os::unix::fs::symlink;

use super::*;
use crate::templates::{Image, Layer};
use crate::workspace::Workspace;

struct Fixture {
    root: tempfile::TempDir,
    store: Store,
}

pub(crate) fn config(id: &str) -> SandboxConfig {
    SandboxConfig {
        format: config::FORMAT,
        id: id.into(),
        agent: "shell".into(),
        template: "shell".into(),
        image: Image { layers: vec![Layer { sha256: "0".repeat(64), size: 1 }], ..Image::default() },
        created_s: 1,
        cpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        idle_timeout_s: 30,
        hide: Vec::new(),
        no_docker: false,
        network: config::Network::default(),
        ssh_agent: Vec::new(),
        workspaces: vec![Workspace {
            path: "/w".into(),
            read_only: false,
            file: false,
            worktrees: Vec::new(),
        }],
        ports: Vec::new(),
        env: vec!["A=\u{10ffff}".into()],
    }
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("fresh"), "disk").unwrap();
        fs::create_dir(root.path().join("sandboxes")).unwrap();
        let store = Self::open(&root);
        Self { root, store }
    }

    /// What other tests start has, until its exec, all that this process has open: a lock that was given back may seem held.
    fn lock(&self, sandbox: &Sandbox) -> Locked {
        loop {
            match self.store.lock(sandbox).unwrap() {
                Locked::Busy => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    fn open(root: &tempfile::TempDir) -> Store {
        let path = root.path().join("sandboxes");
        Store { dir: File::open(&path).unwrap().into(), path }
    }

    fn draft(&self, id: &str, ephemeral: bool) -> Draft {
        self.store.draft(&config(id), &self.root.path().join("fresh"), ephemeral).unwrap()
    }

    fn create(&self, name: &str, id: &str) -> (Sandbox, Lock) {
        self.store.publish(self.draft(id, false), name).unwrap().unwrap()
    }

    /// All names in the folder, hidden ones as well.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.store.path).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_sandbox_appears_whole_and_locked() {
    let fixture = Fixture::new();
    let draft = fixture.draft("0123456789ab", false);
    assert!(fixture.store.names().unwrap().is_empty(), "nobody sees a draft");
    let (sandbox, lock) = fixture.store.publish(draft, "box").unwrap().unwrap();
    assert_eq!(fixture.names(), ["box"]);
    assert_eq!(sandbox.config().unwrap(), config("0123456789ab"));
    assert!(sandbox.is_running());
    assert!(matches!(fixture.store.lock(&sandbox).unwrap(), Locked::Busy));
    drop(lock);
    assert!(!sandbox.is_running());
    assert!(matches!(fixture.lock(&sandbox), Locked::Ours(_)));
    assert_eq!(sandbox.open_file(file::DISK).unwrap().metadata().unwrap().len(), 1 << 30);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&sandbox.path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_sandbox_begins_with_its_own_rules() {
    let fixture = Fixture::new();
    let rules = Rules { allow: vec!["example.com:443".parse().unwrap()], ..Rules::default() };
    for (name, id, rules) in [("box", "000000000001", Some(rules)), ("other", "000000000002", None)] {
        let draft = fixture.draft(id, false);
        draft.write_policy(&rules.clone().unwrap_or_default()).unwrap();
        let (sandbox, _lock) = fixture.store.publish(draft, name).unwrap().unwrap();
        assert_eq!(Rules::read(&sandbox.path.join(policy::NAME)).unwrap(), rules);
    }
}

#[test]
fn a_taken_name_gives_the_draft_back() {
    let fixture = Fixture::new();
    let _first = fixture.create("box", "000000000001");
    let draft = fixture.store.publish(fixture.draft("000000000002", false), "box").unwrap().unwrap_err();
    assert_eq!(fixture.names().len(), 2);
    fixture.store.discard(&draft);
    assert_eq!(fixture.names(), ["box"]);
}

#[test]
fn of_racing_creators_one_wins() {
    let fixture = Fixture::new();
    for round in 0..20 {
        let name = format!("box{round}");
        let won = std::thread::scope(|scope| {
            let create = || {
                // As another process: with descriptors of its own.
                let store = Fixture::open(&fixture.root);
                let draft = store
                    .draft(&config(&new_id().unwrap()), &fixture.root.path().join("fresh"), false)
                    .unwrap();
                store.collect_garbage();
                store.publish(draft, &name).unwrap().is_ok()
            };
            let creators: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
            creators.into_iter().map(|creator| usize::from(creator.join().unwrap())).sum::<usize>()
        });
        assert_eq!(won, 1);
    }
    fixture.store.collect_garbage();
    assert_eq!(fixture.names().len(), 20, "the losers' drafts are collected");
}

#[test]
fn what_killed_commands_leave_is_collected() {
    let fixture = Fixture::new();
    let path = |name: &str| fixture.store.path.join(name);
    // Killed after each step of creation, and in the middle of removal.
    fs::create_dir(path(".new-1")).unwrap();
    fs::create_dir(path(".new-2")).unwrap();
    fs::write(path(".new-2/lock"), "").unwrap();
    drop(fixture.draft("000000000003", false));
    let (sandbox, lock) = fixture.create("gone", "000000000004");
    drop(lock);
    let trash = fixture.store.trash(&sandbox).unwrap().unwrap();
    fs::remove_file(trash.join(file::LOCK)).unwrap();
    // An ephemeral one whose VMM was killed, and one whose VMM lives.
    drop(fixture.store.publish(fixture.draft("000000000005", true), "dead").unwrap().unwrap());
    let alive = fixture.store.publish(fixture.draft("000000000006", true), "alive").unwrap().unwrap();
    let being_made = fixture.draft("000000000007", false);
    let kept = fixture.create("kept", "000000000008");
    drop(kept.1);
    fixture.store.collect_garbage();
    assert_eq!(fixture.names(), [being_made.temporary.as_str(), "alive", "kept"]);
    drop((alive, being_made));
    fixture.store.collect_garbage();
    assert_eq!(fixture.names(), ["kept"]);
}

#[test]
fn a_removed_sandbox_cannot_be_locked() {
    let fixture = Fixture::new();
    let (sandbox, lock) = fixture.create("box", "000000000001");
    drop(lock);
    fixture.store.trash(&sandbox).unwrap().unwrap();
    assert!(matches!(fixture.lock(&sandbox), Locked::Gone));
    assert!(fixture.store.trash(&sandbox).unwrap().is_none(), "twice is no error");
    let (_another, lock) = fixture.create("box", "000000000002");
    drop(lock);
    assert!(matches!(fixture.lock(&sandbox), Locked::Gone), "not the new one's lock");
}

#[test]
fn names_and_ids_find_sandboxes() {
    let fixture = Fixture::new();
    for (name, id) in [("one", "aaaa00000001"), ("two", "aaab00000002"), ("aaaa", "bbbb00000003")] {
        fixture.create(name, id);
    }
    let find = |typed: &str| match fixture.store.find(OsStr::new(typed)) {
        Ok(sandbox) => sandbox.name,
        Err(error) => format!("{error:#}"),
    };
    assert_eq!(find("one"), "one");
    assert_eq!(find("aaab"), "two");
    assert_eq!(find("bbbb00000003"), "aaaa");
    assert_eq!(find("aaaa"), "aaaa", "a name comes before an id");
    assert_eq!(find("aaa"), "id \"aaa\" is that of several sandboxes (one, two); type more of it");
    assert_eq!(find("tow"), "no sandbox \"tow\"; did you mean two? coracle ls lists them");
    for bad in ["", ".", "..", "/", "../x", "a/b", "ffff", "A", "\x1b[2J"] {
        assert!(find(bad).starts_with("no sandbox "), "{bad:?}: {}", find(bad));
    }
}

#[test]
fn damaged_sandboxes_are_told_apart() {
    let fixture = Fixture::new();
    let path = |name: &str| fixture.store.path.join(name);
    let reason = |name: &str| match fixture.store.open_sandbox(OsStr::new(name)) {
        Ok(Some(sandbox)) => sandbox.config().map_or_else(|error| format!("{error:#}"), |_| "whole".into()),
        Ok(None) => "none".into(),
        Err(error) => format!("{error:#}"),
    };
    let with_config = |name: &str, json: &str| {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join(file::CONFIG), json).unwrap();
        reason(name)
    };
    let good = serde_json::to_string(&config("0123456789ab")).unwrap();
    assert_eq!(with_config("good", &good), "whole");
    assert!(with_config("null", "null").starts_with("config.json is damaged"));
    assert!(with_config("cut", &good[..good.len() / 2]).starts_with("config.json is damaged"));
    assert!(with_config("newer", "{\"format\":3}").contains("format 3"));
    for (name, from, to) in [
        ("id", "0123456789ab", "../../../../x"),
        ("cpus", "\"cpus\":1", "\"cpus\":0"),
        ("memory", "\"memory_mib\":512", "\"memory_mib\":4294967295"),
        ("relative", "\"/w\"", "\"w\""),
        ("none", "[{\"path\":\"/w\",\"read_only\":false,\"file\":false}]", "[]"),
    ] {
        let json = good.replace(from, to);
        assert_ne!(json, good);
        assert_eq!(with_config(name, &json), "config.json holds values that no sandbox has");
    }
    fs::create_dir(path("empty")).unwrap();
    assert_eq!(reason("empty"), "config.json is missing");
    fs::create_dir_all(path("folder/config.json")).unwrap();
    assert_eq!(reason("folder"), "config.json is not a file");
    fs::write(path("file"), "").unwrap();
    assert_eq!(reason("file"), "it is not a folder");
    symlink("good", path("link")).unwrap();
    assert_eq!(reason("link"), "it is not a folder");
    fs::create_dir(path("fifo")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo/config.json"), rustix::fs::FileType::Fifo, PRIVATE, 0)
        .unwrap();
    assert_eq!(reason("fifo"), "config.json is not a file");
    fs::create_dir(path("huge")).unwrap();
    File::create(path("huge/config.json")).unwrap().set_len(1 << 30).unwrap();
    assert_eq!(reason("huge"), "config.json is too long");
    // Any single byte changed never panics.
    fs::create_dir(path("flipped")).unwrap();
    for index in 0..good.len() {
        let mut json = good.clone().into_bytes();
        json[index] ^= 0x20;
        fs::write(path("flipped/config.json"), json).unwrap();
        reason("flipped");
    }
}

#[test]
fn no_signal_goes_to_a_process_that_does_not_hold_the_lock() {
    let fixture = Fixture::new();
    let (sandbox, lock) = fixture.create("box", "000000000001");
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    lock.write_pid(child.id()).unwrap();
    assert!(!sandbox.signal(Signal::KILL), "the number is an old VMM's, and the lock another command's");
    drop(lock);
    assert!(!sandbox.signal(Signal::KILL));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    let Locked::Ours(lock) = fixture.lock(&sandbox) else { panic!("nobody has the lock") };
    let input = lock.0.try_clone().unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").stdin(input).spawn().unwrap();
    lock.write_pid(child.id()).unwrap();
    drop(lock);
    assert!(sandbox.signal(Signal::KILL));
    child.wait().unwrap();
    for junk in ["", "x", "0", "1", "-1", "99999999999999999999"] {
        fs::write(sandbox.path.join(file::LOCK), junk).unwrap();
        assert!(!sandbox.signal(Signal::KILL), "{junk:?}");
    }
}
