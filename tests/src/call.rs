//! A program's run: what goes in, what comes out, and the deadline after which it is killed and the scene is printed.
//! It owns child processes and their pipes. It does not know what the programs are.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::home;

/// Long for a start in the lab, where a guest runs at a hundredth of its speed, beside other tests.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// A program that is about to be run.
#[derive(Debug)]
pub struct Call {
    command: Command,
    input: Option<Vec<u8>>,
    deadline: Duration,
    home: PathBuf,
}

impl Call {
    /// `home` is where to look when the deadline has passed.
    pub fn new(program: impl AsRef<OsStr>, home: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, input: None, deadline: DEADLINE, home: home.to_owned() }
    }

    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    #[must_use]
    pub fn without_env(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// What the program reads, instead of nothing.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self.command.stdin(Stdio::piped());
        self
    }

    #[must_use]
    pub fn deadline(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// The command itself, for what is not a matter of pipes.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended at its deadline.
    pub fn run(self) -> Result<Done> {
        self.spawn()?.wait()
    }

    /// Runs it to a good end and gives what it wrote.
    ///
    /// # Errors
    /// As `run`, and when its exit code is not 0.
    pub fn ok(self) -> Result<String> {
        self.spawn()?.ok()
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut self) -> Result<Running> {
        let what = format!("{:?}", self.command);
        let mut child = self.command.spawn().with_context(|| format!("start {what}"))?;
        if let (Some(input), Some(mut pipe)) = (self.input, child.stdin.take()) {
            // Nobody waits for the writer: a program may end without having read it all.
            thread::spawn(move || pipe.write_all(&input));
        }
        let (stdout, stderr) = (Stream::new(child.stdout.take()), Stream::new(child.stderr.take()));
        Ok(Running {
            what,
            child,
            stdout,
            stderr,
            started: Instant::now(),
            deadline: self.deadline,
            home: self.home,
        })
    }
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its exit code, or minus the signal that killed it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Done {
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A program that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    started: Instant,
    deadline: Duration,
    home: PathBuf,
}

impl Running {
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// # Errors
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("send {signal:?} to {}", self.what))
    }

    /// Waits until it has written `text` to its standard output.
    ///
    /// # Errors
    /// When it ends, or its deadline passes, before that.
    pub fn until(&mut self, text: &str) -> Result<()> {
        while !crate::host::contains(&self.stdout.seen(), text.as_bytes()) {
            let ended = self.child.try_wait()?.is_some() && self.stdout.reader.is_finished();
            if ended || self.started.elapsed() > self.deadline {
                bail!("{} wrote no {text:?}\n{}", self.what, self.scene());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When its deadline passes: it is then killed.
    pub fn wait(mut self) -> Result<Done> {
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if self.started.elapsed() > self.deadline => {
                    bail!("{} has not ended after {:?}\n{}", self.what, self.deadline, self.scene())
                }
                None => thread::sleep(POLL),
            }
        };
        let took = self.started.elapsed();
        while !(self.stdout.reader.is_finished() && self.stderr.reader.is_finished()) {
            if self.started.elapsed() > self.deadline {
                bail!("{} ended, but somebody holds its output open\n{}", self.what, self.scene());
            }
            thread::sleep(POLL);
        }
        let code = status.code().or_else(|| status.signal().map(|signal| -signal)).context("no exit code")?;
        Ok(Done { code, stdout: self.stdout.seen(), stderr: self.stderr.seen(), took })
    }

    /// Waits for its end, which must be a good one, and gives what it wrote.
    ///
    /// # Errors
    /// As `wait`, and when its exit code is not 0.
    pub fn ok(self) -> Result<String> {
        let (what, home) = (self.what.clone(), self.home.clone());
        let done = self.wait()?;
        ensure!(
            done.code == 0,
            "{what} ended with {}\nstdout: {}\nstderr: {}\n{}",
            done.code,
            done.out(),
            done.err(),
            home::scene(&home)
        );
        String::from_utf8(done.stdout).context("output is not text")
    }

    fn scene(&self) -> String {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(self.stdout.seen()), text(self.stderr.seen()));
        format!("stdout: {stdout}\nstderr: {stderr}\n{}", home::scene(&self.home))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes out of a pipe, collected by a thread; nothing where a test has put something else in the pipe's place.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut piece = vec![0; 64 << 10];
            loop {
                match pipe.read(&mut piece) {
                    Ok(0) => break,
                    Ok(count) => {
                        sink.lock().expect("nobody panics with it").extend_from_slice(&piece[..count])
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
        Self { bytes, reader }
    }

    fn seen(&self) -> Vec<u8> {
        self.bytes.lock().expect("nobody panics with it").clone()
    }
}
