//! Sandboxes listed, stopped and removed, and starts that fail. The VMM here is a process that only holds the lock; where
//! `coracle` starts a real one, it fails, because the kernel is none.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use expect_test::{expect, expect_file};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use support::{Home, Ran, eventually, share, terminal};

/// A process that holds a sandbox's lock, as its VMM would.
struct Vmm(Child);

impl Vmm {
    fn start(home: &Home, name: &str, script: &str) -> Self {
        let lock = File::create(home.sandboxes().join(name).join("lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(share(&lock)).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        lock.write_all_at(child.id().to_string().as_bytes(), 0).unwrap();
        // It says when it is ready.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }

    fn obedient(home: &Home, name: &str) -> Self {
        Self::start(home, name, "echo; exec sleep 60")
    }

    fn stubborn(home: &Home, name: &str) -> Self {
        Self::start(home, name, "trap '' TERM; echo; while :; do read _; sleep 1; done")
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn names(home: &Home) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(home.sandboxes())
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_list_has_all_and_hides_none() {
    let home = Home::new();
    assert_eq!(home.run(["ls"]).stdout(), "NAME   ID   AGENT   STATUS   CREATED   PORTS   WORKSPACE\n");
    assert_eq!(home.run(["ls", "--json"]).stdout(), "[]\n");
    assert!(!home.path("state").exists(), "ls makes nothing");
    home.sandbox("one", "0123456789ab");
    home.sandbox("two", "ba9876543210");
    fs::write(home.sandbox("null", "1").join("config.json"), "null").unwrap();
    fs::create_dir(home.sandboxes().join("empty")).unwrap();
    fs::write(home.sandboxes().join("README\x1b[31m"), "").unwrap();
    let _vmm = Vmm::obedient(&home, "two");
    let listed = home.run(["ls"]).stdout().replace(home.path("").to_str().unwrap(), "TMP/");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let listed = listed.replace(&format!("{} days ago", (now - 1_700_000_000) / 86400), "DAYS days ago");
    expect![[r#"
        NAME               ID             AGENT   STATUS    CREATED         PORTS   WORKSPACE
        README\u{1b}[31m                          broken                            ("README\u{1b}[31m" is not a sandbox's name (letters a-z, digits and hyphens, at most 63, and no hyphen first))
        empty                                     broken                            (config.json is missing)
        null                                      broken                            (config.json is damaged: invalid type: null, expected struct Format at line 1 column 4)
        one                0123456789ab   shell   stopped   DAYS days ago           TMP/proj
        two                ba9876543210   shell   running   DAYS days ago           TMP/proj
    "#]].assert_eq(&listed);
    assert_eq!(home.run(["ls", "-q"]).stdout(), "README\\u{1b}[31m\nempty\nnull\none\ntwo\n");
    let json: serde_json::Value = serde_json::from_str(home.run(["ls", "--json"]).stdout()).unwrap();
    assert_eq!(json[1]["status"], "broken");
    assert_eq!(json[3]["status"], "stopped");
    assert_eq!(json[4]["status"], "running");
    assert_eq!(json[4]["created"], "2023-11-14T22:13:20Z");
    assert_eq!(json[4]["workspaces"][0]["path"], home.path("proj").to_str().unwrap());
}

#[test]
fn a_frozen_vm_delays_no_list() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let vmm = Vmm::obedient(&home, "box");
    kill_process(Pid::from_child(&vmm.0), Signal::STOP).unwrap();
    let begin = Instant::now();
    assert!(home.run(["ls"]).stdout().contains("running"));
    assert!(begin.elapsed() < Duration::from_secs(2));
    let begin = Instant::now();
    let ran = home.run(["rm", "-f", "box"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(names(&home).is_empty());
}

#[test]
fn stop_ends_what_runs_and_minds_nothing_else() {
    let home = Home::new();
    for (name, id) in [("one", "0123456789ab"), ("two", "ba9876543210"), ("three", "333333333333")] {
        home.sandbox(name, id);
    }
    let mut vmms = [Vmm::obedient(&home, "one"), Vmm::obedient(&home, "two")];
    let ran = home.run(["stop", "one", "ba98", "three"]);
    assert_eq!((ran.code, ran.stdout()), (Some(0), "one\ntwo\nthree\n"), "{}", ran.stderr);
    assert!(!vmms[0].is_alive() && !vmms[1].is_alive());
    assert_eq!(names(&home), ["one", "three", "two"]);
    // One name that is wrong, and nothing is stopped.
    vmms[0] = Vmm::obedient(&home, "one");
    assert_eq!(home.run(["stop", "one", "four"]).code, Some(125));
    assert!(vmms[0].is_alive());
}

#[test]
fn rm_asks_or_refuses_before_it_ends_what_runs() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let mut vmm = Vmm::obedient(&home, "box");
    let ran = home.run(["rm", "box"]);
    assert_eq!(ran.code, Some(125));
    let refusal =
        "coracle: sandbox box is running; stop it first with coracle stop, or remove it with coracle rm -f\n";
    assert_eq!(ran.stderr, refusal);
    for (answer, stays) in [("\n", true), ("n\n", true), ("\u{4}", true), ("y\n", false)] {
        let (mut user, program) = terminal();
        user.write_all(answer.as_bytes()).unwrap();
        let ran = Ran::of(home.command(["rm", "box"]).stdin(Stdio::from(program)).spawn().unwrap());
        assert_eq!(ran.code, Some(i32::from(stays)), "{ran:?}");
        assert!(
            ran.stderr.starts_with("Remove box, which is running, with all that was written in it? [y/N] ")
        );
        assert_eq!(vmm.is_alive(), stays, "{answer:?}");
        assert_eq!(names(&home).len(), usize::from(stays));
    }
}

#[test]
fn rm_removes_whatever_is_there() {
    let home = Home::new();
    home.sandbox("stopped", "0123456789ab");
    fs::write(home.sandbox("null", "1").join("config.json"), "null").unwrap();
    fs::create_dir_all(home.sandboxes().join("deep/a/b/c")).unwrap();
    home.sandbox("kept", "aaaaaaaaaaaa");
    let ran = home.run(["rm", "0123", "null", "deep"]);
    assert_eq!((ran.code, ran.stdout()), (Some(0), "stopped\nnull\ndeep\n"), "{}", ran.stderr);
    assert_eq!(names(&home), ["kept"]);
    assert_eq!(home.run(["rm", "-f", "stopped", "kept", "never"]).stdout(), "kept\n");
    assert_eq!(home.run(["rm", "-f", "kept"]).code, Some(0));
    assert_eq!(home.run(["rm", "-f"]).code, Some(0), "rm -f $(coracle ls -q) with none");
    assert_eq!(Home::new().run(["rm", "-f", "x"]).code, Some(0), "without any store");
}

#[test]
fn a_stubborn_vm_is_ended_by_force() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let mut vmm = Vmm::stubborn(&home, "box");
    let begin = Instant::now();
    assert_eq!(home.run(["rm", "-f", "box"]).code, Some(0));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(!vmm.is_alive());
    assert!(names(&home).is_empty());
}

#[test]
fn an_interrupted_rm_is_finished_by_the_next_command() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let mut vmm = Vmm::obedient(&home, "box");
    fs::rename(home.sandboxes().join("box"), home.sandboxes().join(".trash-000000000000")).unwrap();
    home.run(["rm", "-f", "another"]);
    eventually("the VMM ends", || !vmm.is_alive());
    home.run(["rm", "-f", "another"]);
    assert!(names(&home).is_empty());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let home = Home::new();
    for args in [&["run", "--rm", "shell"][..], &["run", "shell"], &["run", "-d", "shell"]] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(125), "{ran:?}");
        assert!(ran.stderr.starts_with("coracle: sandbox shell-proj did not start: "), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        eventually("all is removed", || names(&home).is_empty());
    }
}

#[test]
fn a_sandbox_that_was_there_outlives_a_failed_start() {
    let home = Home::new();
    home.sandbox("shell-proj", "0123456789ab");
    for args in [&["run", "shell"][..], &["exec", "0123", "x"]] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(125));
        assert!(ran.stderr.contains("sandbox shell-proj did not start: "), "{}", ran.stderr);
        assert_eq!(names(&home), ["shell-proj"]);
    }
    eventually("it is stopped", || home.run(["ls"]).stdout().contains("stopped"));
}

#[test]
fn a_missing_workspace_is_named() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    fs::remove_dir(home.path("proj")).unwrap();
    let ran = Ran::of(home.command(["exec", "box", "x"]).current_dir("/").spawn().unwrap());
    assert_eq!(ran.code, Some(125));
    let part = format!("workspace {} is no longer what it was; put it back", home.path("proj").display());
    assert!(ran.stderr.contains(&part), "{}", ran.stderr);
}

#[test]
fn a_start_leaks_nothing_into_the_vmm() {
    // A descriptor that the VMM kept open would keep this pipe open after the command has ended.
    let home = Home::new();
    let (read, write) = std::io::pipe().unwrap();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("exec {} run --rm shell 7>&1 >/dev/null 2>&1", env!("CARGO_BIN_EXE_coracle")));
    shell.current_dir(home.path("proj")).env_clear().stdout(write);
    shell.envs(home.command([""]).get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = shell.spawn().unwrap();
    drop(shell);
    child.wait().unwrap();
    let (send, ended) = std::sync::mpsc::channel();
    thread::spawn(move || send.send(std::io::read_to_string(read)));
    ended.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
}

#[test]
fn printing_to_nobody_is_no_error() {
    let home = Home::new();
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let ran = Ran::of(home.command(["ls"]).stdout(write).spawn().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ran = Ran::of(home.command(["help"]).stdout(full).spawn().unwrap());
    assert_eq!(ran.code, Some(125));
    assert!(ran.stderr.starts_with("coracle: write to standard output: No space left"), "{}", ran.stderr);
}

#[test]
fn a_strange_umask_breaks_nothing() {
    let home = Home::new();
    for umask in ["0777", "0000"] {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("umask {umask}; exec {} run shell", env!("CARGO_BIN_EXE_coracle")));
        shell.current_dir(home.path("proj")).env_clear();
        shell.envs(home.command([""]).get_envs().filter_map(|(key, value)| Some((key, value?))));
        let ran = Ran::of(shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert!(ran.stderr.contains("did not start"), "{}", ran.stderr);
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(home.path("state/coracle")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{umask}");
        fs::remove_dir_all(home.path("state")).unwrap();
    }
}

#[test]
fn help_teaches() {
    let home = Home::new();
    expect_file!["help/coracle.txt"].assert_eq(home.run(["help"]).stdout());
    for command in ["run", "exec", "ls", "stats", "resize", "stop", "rm", "secret", "doctor", "version"] {
        let help = home.run(["help", command]);
        assert_eq!(help.stdout(), home.run([command, "--help"]).stdout());
        assert_eq!(help.stdout(), home.run([command, "-h"]).stdout());
        assert!(help.stdout().starts_with(&format!("Usage: coracle {command} ")), "{}", help.stdout());
    }
    expect_file!["help/run.txt"].assert_eq(home.run(["help", "run"]).stdout());
}
