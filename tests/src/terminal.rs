//! A real terminal: a pseudo-terminal with a program on it, typed at and read like a user would.
//! It owns the pair and the program. It does not interpret escape sequences.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::{Home, home};

const DEADLINE: Duration = Duration::from_secs(60);
const SLICE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A program with a terminal of its own. Dropped, the terminal hangs up.
#[derive(Debug)]
pub struct Terminal<'h> {
    home: &'h Home,
    master: File,
    /// Kept open, so that the terminal's settings can be looked at after the program has ended.
    _slave: OwnedFd,
    child: Child,
    seen: Vec<u8>,
    /// How much of `seen` an `expect` has passed.
    passed: usize,
}

impl<'h> Terminal<'h> {
    /// Starts `argv` as the leader of a session on a new terminal of 24 lines and 80 columns.
    ///
    /// # Errors
    /// When there is no terminal, or the program does not start.
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(home: &'h Home, argv: I) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(path, flags, Mode::empty()).context("open the terminal")?;
        tcsetwinsize(&master, size(24, 80))?;
        let end = || -> Result<Stdio> { Ok(Stdio::from(slave.try_clone()?)) };
        let child = Command::new("setsid")
            .arg("--ctty")
            .args(argv)
            .env("HOME", home.path())
            .env("XDG_STATE_HOME", home.path().join("state"))
            .env("TERM", "xterm")
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .current_dir(home.workspace())
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()
            .context("start setsid")?;
        Ok(Self { home, master: File::from(master), _slave: slave, child, seen: Vec::new(), passed: 0 })
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("type")
    }

    /// Waits until `text` is shown, behind what the last `expect` waited for.
    ///
    /// # Errors
    /// When it is not for a minute.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let new = &self.seen[self.passed..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.passed += at + text.len();
                return Ok(());
            }
            ensure!(
                start.elapsed() < DEADLINE,
                "the terminal does not show {text:?}, but {:?}\n{}",
                String::from_utf8_lossy(new),
                home::scene(self.home.path())
            );
            self.read()?;
        }
    }

    /// All that was shown.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// The user drags the window's corner.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        tcsetwinsize(&self.master, size(rows, columns)).context("resize")
    }

    /// All settings of the terminal, to be compared.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn settings(&self) -> Result<String> {
        Ok(format!("{:?}", tcgetattr(&self.master)?))
    }

    /// Waits for the program's end; its exit code, or minus the signal that killed it.
    ///
    /// # Errors
    /// When it does not end for a minute.
    pub fn wait(&mut self) -> Result<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.read()?;
                return status
                    .code()
                    .or_else(|| status.signal().map(|signal| -signal))
                    .context("no exit code");
            }
            let scene = || home::scene(self.home.path());
            ensure!(start.elapsed() < DEADLINE, "no end after {:?}\n{}", self.shown(), scene());
            self.read()?;
        }
    }

    /// Takes what is there, after a moment if nothing is.
    fn read(&mut self) -> Result<()> {
        let mut fds = [PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&SLICE))? > 0 {
            let mut piece = [0; 4096];
            let count = self.master.read(&mut piece).context("read the terminal")?;
            self.seen.extend_from_slice(&piece[..count]);
        }
        Ok(())
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
