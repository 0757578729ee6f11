//! The gateway's processes, with sockets and a VMM in name only: a worker is there when it is needed, after it was killed as well,
//! what is published stays open meanwhile, and nothing is left when the VMM has ended.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gateway::credentials::Lent;
use gateway::handover;
use gateway::ports::{Listener, Opening, Port};
use gateway::supervisor::Change;
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
    start_with(folder, machine, &[])
}

fn start_with(folder: &Path, machine: &Child, ports: &[Listener]) -> Ended {
    let socket = folder.join("gateway.sock");
    let _ = fs::remove_file(&socket);
    let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let machine = pidfd_open(Pid::from_child(machine), PidfdFlags::empty()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.arg("gateway").arg("--dir").arg(folder).env("XDG_CONFIG_HOME", folder.join("config"));
    let lent = Lent::seal(&[]).unwrap();
    let (ours, door) = handover::pair().unwrap();
    let descriptors: Vec<_> = std::iter::once(lent.as_fd()).chain(sockets(ports)).collect();
    handover::send(&ours, &openings(ports), &descriptors).unwrap();
    Ended(command.stdin(listener).stdout(Stdio::from(machine)).stderr(Stdio::from(door)).spawn().unwrap())
}

fn openings(ports: &[Listener]) -> Vec<Opening> {
    ports.iter().map(|it| it.opening).collect()
}

fn sockets(ports: &[Listener]) -> impl Iterator<Item = BorrowedFd<'_>> {
    ports.iter().map(|it| it.socket.as_fd())
}

/// A published port, which is open.
fn publish(guest: u16) -> Vec<Listener> {
    Port { address: None, host: 0, guest, any: true }.open().unwrap()
}

/// As a command does it.
fn change(folder: &Path, remove: Vec<SocketAddr>, add: &[Listener]) {
    let path = folder.join("gateway.ctl");
    let mut gateway = None;
    until("it takes commands", || {
        gateway = handover::connection(path.to_str().unwrap()).ok();
        gateway.is_some()
    });
    let (gateway, sockets) = (gateway.unwrap(), sockets(add).collect::<Vec<_>>());
    handover::send(&gateway, &Change { remove, add: openings(add) }, &sockets).unwrap();
    until("it answers", || handover::receive::<bool>(&gateway).is_ok_and(|it| it.unwrap().0));
}

/// The VMM's socket, by which every service answers with the number of its port.
fn services(folder: &Path) {
    let listener = UnixListener::bind(folder.join("ports.sock")).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut port = [0; 2];
            if stream.read_exact(&mut port).is_ok() {
                let _ = stream.write_all(&[&[1][..], &port].concat());
            }
        }
    });
}

fn dial(at: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&at, SOON)
}

fn visit(at: SocketAddr) -> Option<u16> {
    let mut client = dial(at).ok()?;
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut port = [0; 2];
    client.read_exact(&mut port).ok()?;
    Some(u16::from_be_bytes(port))
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

#[test]
fn published_ports_are_served_after_a_worker_was_killed_and_closed_at_once() {
    let (folder, machine) = (tempfile::tempdir().unwrap(), machine());
    services(folder.path());
    let (first, second) = (publish(1), publish(2));
    let at = first[0].opening.at;
    let mut gateway = start_with(folder.path(), &machine.0, &first);
    drop(first);
    until("it takes commands", || folder.path().join("gateway.ctl").exists());
    assert_eq!(children(&gateway), [], "nobody has come yet");
    assert_eq!(visit(at), Some(1));
    let [worker] = children(&gateway)[..] else { panic!("no worker") };
    kill_process(worker, Signal::KILL).unwrap();
    assert_eq!(visit(at), Some(1), "it waits for the next worker");

    let [worker] = children(&gateway)[..] else { panic!("no worker") };
    change(folder.path(), Vec::new(), &second);
    let other = second[0].opening.at;
    drop(second);
    assert_eq!((visit(at), visit(other)), (Some(1), Some(2)));
    // Even a worker that does nothing any more keeps no port open.
    kill_process(worker, Signal::STOP).unwrap();
    change(folder.path(), vec![at], &[]);
    assert!(dial(at).is_err());
    std::net::TcpListener::bind(at).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    assert_eq!(visit(other), Some(2));

    drop(machine);
    until("the gateway ends", || gateway.0.try_wait().unwrap().is_some());
    assert!(dial(other).is_err());
}

#[test]
fn what_is_no_command_changes_nothing() {
    let (folder, machine) = (tempfile::tempdir().unwrap(), machine());
    services(folder.path());
    let ports = publish(7);
    let at = ports[0].opening.at;
    let _gateway = start_with(folder.path(), &machine.0, &ports);
    until("it takes commands", || folder.path().join("gateway.ctl").exists());
    let path = folder.path().join("gateway.ctl").to_str().unwrap().to_owned();
    let silent = handover::connection(&path).unwrap();
    let wild = handover::connection(&path).unwrap();
    handover::send(&wild, &"nonsense", &[]).unwrap();
    let torn = handover::connection(&path).unwrap();
    handover::send(&torn, &Change { remove: vec![at], add: openings(&ports) }, &[]).unwrap();
    assert_eq!(visit(at), Some(7));
    let more = publish(8);
    change(folder.path(), Vec::new(), &more);
    assert_eq!(visit(more[0].opening.at), Some(8));
    drop(silent);
}
