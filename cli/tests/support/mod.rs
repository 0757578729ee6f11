//! A home of its own for each test, with an installation that looks whole, and sandboxes that look running: the test holds
//! the lock and answers as init would. No VM is started here.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protocol::{Decoder, Exec, HELLO_LEN, Hello, Message, Reply, Request, Role, Stdio as Wanted, Token};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes longer than milliseconds; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The template's only layer.
pub const LAYER: &str = "1111111111111111111111111111111111111111111111111111111111111111";

pub struct Home {
    root: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let home = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir(home.path("proj")).unwrap();
        fs::create_dir(home.path("docs")).unwrap();
        home.install();
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Parts that pass for whole ones.
    fn install(&self) {
        let share = self.path("share");
        for folder in ["templates/shell", "layers", "agents"] {
            fs::create_dir_all(share.join(folder)).unwrap();
        }
        let mut kernel = vec![0; 256];
        kernel[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (kernel[18], kernel[32], kernel[54], kernel[56]) = (62, 64, 56, 1);
        fs::write(share.join("vmlinux"), kernel).unwrap();
        fs::write(share.join("initramfs.cpio"), b"070701 TRAILER!!!\0").unwrap();
        for (name, size) in [("disk-1g.ext4", 1u64 << 30), ("disk-20g.ext4", 20 << 30)] {
            let disk = File::create(share.join(name)).unwrap();
            disk.set_len(size).unwrap();
            disk.write_all_at(&[0x53, 0xef], 1024 + 56).unwrap();
        }
        let mut image = vec![0; 4096];
        image[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        fs::write(share.join(format!("layers/{LAYER}.erofs")), image).unwrap();
        fs::write(share.join("agents/shell.toml"), "about = 'bash'").unwrap();
        let template = format!(
            r#"{{"name":"shell","format":2,"layers":[{{"sha256":"{LAYER}","size":4096}}],
            "args":["/bin/bash","-l"],"env":["PATH=/usr/bin:/bin"],"user":"agent"}}"#
        );
        fs::write(share.join("templates/shell/template.json"), template).unwrap();
    }

    /// `coracle` in this home, started in `proj`, with nothing of the test's environment.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.root.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("CORACLE_SHARE", self.path("share"))
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.path("proj"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(self.command(args).spawn().unwrap())
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.path("state/coracle/sandboxes")
    }

    /// A sandbox's folder as `run` makes it, stopped.
    pub fn sandbox(&self, name: &str, id: &str) -> PathBuf {
        let folder = self.sandboxes().join(name);
        fs::create_dir_all(&folder).unwrap();
        let config = format!(
            r#"{{"format":2,"id":"{id}","agent":"shell","template":"shell",
            "image":{{"layers":[{{"sha256":"{LAYER}","size":4096}}],"args":["/bin/bash","-l"],
            "env":["PATH=/usr/bin:/bin"],"user":"agent"}},"created_s":1700000000,"cpus":1,
            "memory_mib":512,"disk_mib":20480,"idle_timeout_s":30,"env":["STORED=1"],
            "workspaces":[{{"path":"{}","read_only":false,"file":false}}]}}"#,
            self.path("proj").display()
        );
        fs::write(folder.join("config.json"), config).unwrap();
        fs::write(folder.join("disk.img"), "disk").unwrap();
        fs::write(folder.join("exit.json"), "").unwrap();
        folder
    }

    /// A sandbox that looks running, and answers each session with `answer`.
    pub fn running(&self, name: &str, answer: impl Fn(Session) + Send + 'static) -> Running {
        let folder = self.sandbox(name, "0123456789ab");
        let lock = File::create(folder.join("lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        // By way of a short path, as a temporary folder's may be too long for an address.
        let dir = File::open(&folder).unwrap();
        let path = format!("/proc/self/fd/{}/exec.sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || serve(&listener, &answer));
        Running { folder, lock }
    }

    /// Everything under the state folder: names, sizes and times.
    pub fn snapshot(&self) -> Vec<String> {
        let mut all = Vec::new();
        list(&self.path("state"), &mut all);
        all.sort();
        all
    }
}

fn list(folder: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        let stat = entry.metadata().unwrap();
        all.push(format!("{} {} {:?}", entry.path().display(), stat.len(), stat.modified().unwrap()));
        if stat.is_dir() {
            list(&entry.path(), all);
        }
    }
}

pub struct Running {
    pub folder: PathBuf,
    pub lock: File,
}

/// A session as init sees it: the command, and what connects it.
pub struct Session {
    pub exec: Exec,
    control: UnixStream,
    requests: Decoder,
    streams: HashMap<u8, UnixStream>,
}

impl Session {
    pub fn reply(&mut self, reply: &Reply) {
        let _ = self.control.write_all(&reply.encode().unwrap());
    }

    pub fn raw_reply(&mut self, bytes: &[u8]) {
        let _ = self.control.write_all(bytes);
    }

    /// The next request, `None` when the CLI has hung up.
    pub fn request(&mut self) -> Option<Request> {
        loop {
            if let Some(request) = self.requests.take().unwrap() {
                return Some(request);
            }
            let mut bytes = [0; 65536];
            match self.control.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.requests.feed(&bytes[..count]),
            }
        }
    }

    pub fn stream(&mut self, role: Role) -> &mut UnixStream {
        self.streams.get_mut(&(role as u8)).expect("the CLI has opened it")
    }

    pub fn close(&mut self, role: Role) {
        self.streams.remove(&(role as u8));
    }

    /// Started, this output, this exit code.
    pub fn finish(mut self, stdout: &[u8], code: u8) {
        self.reply(&Reply::Started);
        self.stream(Role::Stdout).write_all(stdout).unwrap();
        self.reply(&Reply::Exited { code });
    }
}

/// Puts connections together by their tokens, and answers each session once all of it is there.
fn serve(listener: &UnixListener, answer: &impl Fn(Session)) {
    let mut waiting: HashMap<Token, (Option<Session>, HashMap<u8, UnixStream>)> = HashMap::new();
    for connection in listener.incoming().map_while(Result::ok) {
        let Some((hello, connection)) = greet(connection) else { continue };
        let (session, streams) = waiting.entry(hello.token).or_default();
        match hello.role {
            Role::Control => match take_exec(connection) {
                Some(taken) => *session = Some(taken),
                None => continue,
            },
            role => drop(streams.insert(role as u8, connection)),
        }
        let wanted = session.as_ref().map(|session| match session.exec.stdio {
            Wanted::Tty(_) => 1,
            Wanted::Pipes { stdin, stdout, stderr } => {
                [stdin, stdout, stderr].iter().filter(|it| **it).count()
            }
        });
        if wanted == Some(streams.len())
            && let Some((Some(mut session), streams)) = waiting.remove(&hello.token)
        {
            session.streams = streams;
            answer(session);
        }
    }
}

fn greet(mut connection: UnixStream) -> Option<(Hello, UnixStream)> {
    let mut bytes = [0; HELLO_LEN];
    connection.read_exact(&mut bytes).ok()?;
    Some((protocol::decode(&bytes).ok()?, connection))
}

fn take_exec(control: UnixStream) -> Option<Session> {
    let exec = Exec { argv: vec![], env: vec![], cwd: vec![], user: String::new(), stdio: PIPES };
    let mut session = Session { exec, control, requests: Decoder::default(), streams: HashMap::new() };
    let Some(Request::Exec(exec)) = session.request() else { return None };
    Some(Session { exec, ..session })
}

const PIPES: Wanted = Wanted::Pipes { stdin: false, stdout: false, stderr: false };

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn of(child: Child) -> Self {
        let watchdog = Watchdog::new(&child);
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        drop(watchdog);
        Self { code: status.code(), stdout, stderr: String::from_utf8(stderr).unwrap() }
    }

    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// Kills what hangs, so that the test fails instead of hanging with it.
pub struct Watchdog {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn new(child: &Child) -> Self {
        let pid = Pid::from_child(child);
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            if stopped.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("killed after {PATIENCE:?}");
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().unwrap().join();
    }
}

/// Waits for something that happens soon.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} has not happened");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A terminal: the side of the user, and that of the program.
pub fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = openpt(flags).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let program = ioctl_tiocgptpeer(&user, flags).unwrap();
    (File::from(user), program)
}

/// A `Stdio` of a descriptor that stays open here.
pub fn share(fd: impl AsFd) -> Stdio {
    Stdio::from(fd.as_fd().try_clone_to_owned().unwrap())
}
