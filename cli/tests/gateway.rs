//! The gateway's processes, with a socket and a VMM in name only: a worker is there when it is needed, after it was killed as well,
//! and nothing is left when the VMM has ended.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gateway::credentials::Lent;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const SOON: Duration = Duration::from_secs(20);

/// Ends the processes that a failed test leaves.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, machine: &Child) -> Ended {
    let socket = folder.join("gateway.sock");
    let _ = fs::remove_file(&socket);
    let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let machine = pidfd_open(Pid::from_child(machine), PidfdFlags::empty()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.arg("gateway").arg("--dir").arg(folder).env("XDG_CONFIG_HOME", folder.join("config"));
    let lent = Lent::seal(&[]).unwrap();
    Ended(command.stdin(listener).stdout(Stdio::from(machine)).stderr(Stdio::from(lent)).spawn().unwrap())
}

fn machine() -> Ended {
    Ended(Command::new("sleep").arg("600").spawn().unwrap())
}

/// Asks for an address that nothing allows; the answer is the gateway's.
fn ask(folder: &Path) -> Option<u8> {
    let mut stream = UnixStream::connect(folder.join("gateway.sock")).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[1, 0, 0, 80, 127, 0, 0, 1]).ok()?;
    let mut answer = [0];
    stream.read_exact(&mut answer).ok()?;
    Some(answer[0])
}

fn children(parent: &Ended) -> Vec<Pid> {
    let pid = parent.0.id();
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_worker_comes_with_a_connection_and_goes_with_the_vmm() {
    const REFUSED: u8 = 2;
    let folder = tempfile::tempdir().unwrap();
    let machine = machine();
    let mut gateway = start(folder.path(), &machine.0);
    until("it takes the lock", || folder.path().join("gateway.lock").exists());
    assert_eq!(children(&gateway), [], "nothing is to be done yet");
    assert_eq!(ask(folder.path()), Some(REFUSED));
    let [worker] = children(&gateway)[..] else { panic!("no worker") };
    let status = fs::read_to_string(format!("/proc/{}/status", worker.as_raw_pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", worker.as_raw_pid())).unwrap();
    assert!(limits.lines().any(|it| it.starts_with("Max core file size        0 ")), "{limits}");

    kill_process(worker, Signal::KILL).unwrap();
    until("another worker answers", || ask(folder.path()) == Some(REFUSED));
    assert!(!children(&gateway).contains(&worker));

    let last = children(&gateway);
    drop(machine);
    until("the gateway ends", || gateway.0.try_wait().unwrap().is_some());
    assert!(gateway.0.wait().unwrap().success());
    for worker in last {
        assert!(!Path::new(&format!("/proc/{}", worker.as_raw_pid())).exists(), "a worker is left");
    }
    assert_eq!(ask(folder.path()), None);
    let log = fs::read_to_string(folder.path().join("network.json")).unwrap();
    assert!(log.contains("127.0.0.1"), "what was seen last is in the log: {log}");
}

#[test]
fn without_its_supervisor_there_is_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine();
    let gateway = start(folder.path(), &machine.0);
    assert!(ask(folder.path()).is_some());
    let workers = children(&gateway);
    assert_eq!(workers.len(), 1);
    drop(gateway);
    until("the worker ends as well", || ask(folder.path()).is_none());
    // The next VMM's gateway has the lock, and what the sandbox has is what it had.
    let gateway = start(folder.path(), &machine.0);
    assert!(ask(folder.path()).is_some());
    drop(gateway);
}
