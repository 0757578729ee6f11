//! Coracle as the program under test: the commands that are timed, with state of their own beside the user's.
//! It owns which command lines those are, for both kinds of time. It takes no samples.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::phases::{self, Mark};
use crate::timer::{self, Timed};

/// The name of the sandbox that sessions are timed in.
const BOX: &str = "bench";

/// The program, and the folders that are there for it; they go when this does.
#[derive(Debug)]
pub struct Product {
    pub program: PathBuf,
    state: TempDir,
    workspace: TempDir,
}

impl Product {
    /// $CORACLE, or else the `coracle` on PATH.
    ///
    /// # Errors
    /// When there is none, or its folders cannot be made.
    pub fn find() -> Result<Self> {
        let program = match env::var_os("CORACLE") {
            Some(path) => {
                fs::canonicalize(&path).with_context(|| format!("find $CORACLE, {}", path.display()))?
            }
            None => {
                on_path("coracle").context("there is no coracle on PATH; run make build, or set CORACLE")?
            }
        };
        // On the file system where users have their sandboxes: making a disk there is part of a start.
        let states = state_home()?;
        fs::create_dir_all(&states).with_context(|| format!("create {}", states.display()))?;
        let state = folder(&states)?;
        let workspace = folder(&env::temp_dir())?;
        fs::write(workspace.path().join("file"), "a file of the user's\n").context("fill the workspace")?;
        Ok(Self { program, state, workspace })
    }

    /// The folder that its sandboxes share.
    #[must_use]
    pub fn workspace(&self) -> &Path {
        self.workspace.path()
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.env("XDG_STATE_HOME", self.state.path()).current_dir(self.workspace.path()).args(args);
        command
    }

    fn run_true(&self, memory: &str, option: &[&str]) -> Result<Timed> {
        let options = ["run", "--rm", "--cpus", "1", "-m", memory].into_iter().chain(option.iter().copied());
        let timed = timer::time(&mut self.command(options.chain(["shell", ".", "--", "true"])));
        timer::settle()?;
        timed
    }

    /// A cold start: from exec until the command in the new sandbox has ended and its exit code is back.
    ///
    /// # Errors
    /// When it fails.
    pub fn cold_run(&self, memory: &str) -> Result<Duration> {
        Ok(self.run_true(memory, &[])?.time)
    }

    /// The marks of a cold start.
    ///
    /// # Errors
    /// When it fails, or prints no timings.
    pub fn cold_marks(&self, memory: &str) -> Result<Vec<Mark>> {
        phases::parse(&self.run_true(memory, &["--timings=json"])?.stderr)
    }

    /// A command that needs no sandbox, such as `ls`.
    ///
    /// # Errors
    /// When it fails.
    pub fn plain(&self, args: &[&str]) -> Result<Duration> {
        Ok(timer::time(&mut self.command(args))?.time)
    }

    /// Starts a sandbox that stays until the result is dropped.
    ///
    /// # Errors
    /// When it does not start.
    pub fn running(&self, memory: &str) -> Result<Running<'_>> {
        let options = ["run", "-d", "--name", BOX, "--cpus", "1", "-m", memory, "--idle-timeout", "0"];
        let running = Running { product: self };
        timer::time(&mut self.command(options.into_iter().chain(["shell", "."])))?;
        Ok(running)
    }
}

/// A running sandbox.
#[derive(Debug)]
pub struct Running<'p> {
    product: &'p Product,
}

impl Running<'_> {
    /// A session in it: `true`, until its exit code is back.
    ///
    /// # Errors
    /// When it fails.
    pub fn session(&self) -> Result<Duration> {
        self.product.plain(&["exec", BOX, "true"])
    }

    /// What a command in `folder` of the guest prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn exec(&self, folder: &Path, argv: &[&str]) -> Result<String> {
        let mut command = self.product.command(["exec", "-w"]);
        let output = command.arg(folder).arg(BOX).args(argv).output().context("run coracle exec")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{argv:?} failed, {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The process id of its VMM, which is in the lock that it holds.
    ///
    /// # Errors
    /// When the lock is not there or has no process id in it.
    pub fn vmm(&self) -> Result<u32> {
        let lock = self.product.state.path().join("coracle/sandboxes").join(BOX).join("lock");
        let text = fs::read_to_string(&lock).with_context(|| format!("read {}", lock.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no process id: {text:?}", lock.display()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let removed = timer::time(&mut self.product.command(["rm", "-f", BOX]));
        if let Err(error) = removed.and_then(|_| timer::settle()) {
            eprintln!("warning: the sandbox may still be running: {error:#}");
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn state_home() -> Result<PathBuf> {
    if let Some(path) = env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let Some(home) = env::var_os("HOME") else { bail!("HOME is not set") };
    Ok(Path::new(&home).join(".local/state"))
}

fn folder(parent: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("coracle-bench.").tempdir_in(parent);
    made.with_context(|| format!("create a folder in {}", parent.display()))
}
