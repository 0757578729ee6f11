//! A user's home, new for each test: where state is kept, and a workspace.
//! It owns its folders and, at the end, the check that no process and no file of a sandbox is left.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::Call;
use crate::host::{self, Process};

/// What happens by itself has happened by then: a guest that never got ready is given up after 60 s.
const SETTLE: Duration = Duration::from_secs(90);
/// How much of a console log is printed.
const TAIL: usize = 4 << 10;

/// A user's home with the folder `proj` in it.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    /// Whose user and network namespaces its programs run in, if not the tests' own.
    network: Option<Pid>,
}

impl Home {
    /// # Errors
    /// When the folders cannot be made.
    pub fn new() -> Result<Self> {
        // Short: a socket's path has to fit into 108 bytes.
        let dir = tempfile::Builder::new().prefix("ct").rand_bytes(5).tempdir().context("make a home")?;
        let home = Self { dir, network: None };
        fs::create_dir(home.workspace())?;
        Ok(home)
    }

    /// One whose programs have the network of another process, which a user without privileges has made.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn in_network_of(process: Pid) -> Result<Self> {
        let mut home = Self::new()?;
        home.network = Some(process);
        Ok(home)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder that most tests show to their sandbox.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.path().join("proj")
    }

    /// Where the sandboxes are kept.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.path().join("state/coracle/sandboxes")
    }

    /// Runs `coracle` as this home's user, in the workspace.
    pub fn coracle<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Call {
        self.program("coracle").args(args)
    }

    /// Runs another program in the same way.
    #[must_use]
    pub fn program(&self, program: &str) -> Call {
        let call = match self.network {
            None => Call::new(program, self.path()),
            Some(pid) => {
                let target = format!("--target={}", pid.as_raw_pid());
                let enter = [&target, "--user", "--net", "--preserve-credentials", program];
                Call::new("nsenter", self.path()).args(enter)
            }
        };
        call.env("HOME", self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .without_env("XDG_DATA_HOME")
            .without_env("XDG_CONFIG_HOME")
            .without_env("CORACLE_SHARE")
            .cwd(self.workspace())
    }

    /// Writes a file below the home.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().context("below the home")?)?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Reads a file below the home.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path().join(path)).with_context(|| format!("read {path}"))
    }

    /// The processes that work for this home.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        host::processes(self.path())
    }

    /// The one VMM of this home.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn vmm(&self) -> Result<Process> {
        let vmms: Vec<_> = self.processes().into_iter().filter(Process::is_vmm).collect();
        ensure!(vmms.len() == 1, "one VMM was expected, there are {vmms:?}");
        Ok(vmms[0].clone())
    }

    /// What there is of sandboxes: processes, and entries of the state folder.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let processes = self.processes().into_iter().map(|process| process.command);
        let entries = fs::read_dir(self.sandboxes()).into_iter().flatten().flatten();
        processes.chain(entries.map(|entry| entry.path().display().to_string())).collect()
    }

    /// Waits until `done` holds.
    ///
    /// # Errors
    /// When it does not for 90 seconds.
    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !done() {
            ensure!(start.elapsed() < SETTLE, "waited in vain for: {what}\n{}", scene(self.path()));
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until nothing is left of any sandbox.
    ///
    /// # Errors
    /// When something stays.
    pub fn is_clean(&self) -> Result<()> {
        self.wait_for("nothing is left", || self.left().is_empty())
    }

    /// Ends all sandboxes and looks whether that leaves something.
    fn end(&self) -> Result<()> {
        let names = self.coracle(["ls", "-q"]).ok()?;
        if !names.is_empty() {
            self.coracle(["rm", "-f"]).args(names.lines()).ok()?;
        }
        self.is_clean()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if failed {
            eprintln!("{}", scene(self.path()));
        }
        let end = self.end();
        for process in self.processes() {
            // What could not be ended properly must not disturb the tests that follow.
            let _ = rustix::process::kill_process(process.pid, rustix::process::Signal::KILL);
        }
        match end {
            Err(error) if failed => eprintln!("clean up: {error:#}"),
            result => result.expect("a test leaves nothing behind"),
        }
    }
}

/// How far a start came.
fn marks(file: &Path) -> String {
    let Ok(marks) = fs::File::open(file).and_then(|file| vmm::marks::read(&file)) else {
        return String::new();
    };
    let times = marks.iter().zip(vmm::marks::MARKS).map(|(at, (_, name))| format!("{name}: {at}\n"));
    times.chain([format!("now: {}\n", vmm::marks::now_ns())]).collect()
}

/// What is known about the sandboxes of a home when something went wrong.
#[must_use]
pub fn scene(home: &Path) -> String {
    let mut text = String::new();
    for process in host::processes(home) {
        text += &format!("process {}: {}\n{}", process.pid, process.command, host::threads(process.pid));
    }
    for entry in fs::read_dir(home.join("state/coracle/sandboxes")).into_iter().flatten().flatten() {
        let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        let files: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        text += &format!("sandbox {}: {}\n", entry.path().display(), files.join(" "));
        for log in ["console.log", "vmm.log", "exit.json"] {
            let content = fs::read(entry.path().join(log)).unwrap_or_default();
            let tail = &content[content.len().saturating_sub(TAIL)..];
            text += &format!("{log}: {}\n", String::from_utf8_lossy(tail));
        }
        text += &marks(&entry.path().join("marks"));
    }
    text
}
