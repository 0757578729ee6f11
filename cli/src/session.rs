//! A session: one command in the sandbox, its streams joined to ours, its exit code ours to return.
//! One loop waits for everything: signals, the control connection, and a pump for each direction of each stream. It owns
//! the terminal while the command runs. It does not start sandboxes, and believes nothing that comes from one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use protocol::{Exec, Message, Reply, Request, Role, Stdio, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::marks::now_ns;

use crate::sys::Signals;
use crate::term::{self, RawMode};

mod ask;
mod control;
mod open;
mod pump;

pub use ask::ask;
use control::Control;
pub use open::Streams;
use open::{is_refused, open, open_streams, private_terminal};
use pump::{Pump, Step, Way};

/// A sandbox that has not begun the command by then never will. Its VMM, which knows more of it, speaks first.
const START_TIMEOUT: Duration = vmm::BOOT_TIMEOUT.saturating_add(Duration::from_secs(15));
/// After the exit code the guest closes its streams. One that does not is waited for no longer than this without a byte.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Signals that a session answers to, and ones that must not stop it while it puts the terminal right.
const TAKEN: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];
const BLOCKED: [i32; 1] = [libc::SIGTTOU];
/// What happens to programs whose terminal goes away.
const TERMINAL_GONE: Option<End> = Some(End::Signal(libc::SIGHUP));

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command's exit code.
    Exited(u8),
    /// The command could not be run.
    Failed { code: u8, message: String },
    /// A signal ended this side.
    Signal(i32),
    /// The sandbox hung up, or nobody listened. If the command had not started, nothing of its input was taken.
    Closed,
    /// Init speaks another version of the protocol.
    Mismatch { init: u16 },
    /// The sandbox did not start the command in time.
    Silent,
    /// Init said something that means nothing.
    Nonsense(protocol::Error),
}

/// What happened, and when the first byte of output came (0 if none did).
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    /// The command has run, if only for a moment.
    pub started: bool,
    pub first_byte_ns: u64,
}

/// Blocks the signals that a session takes. They stay so until the value is dropped, so that what has to be done after
/// a session is not interrupted.
pub fn take_signals() -> Result<Signals> {
    Signals::take(&TAKEN, &BLOCKED).context("take over signals")
}

/// A command, encoded: what is wrong with it is known before anything is done.
#[derive(Debug)]
pub struct Command {
    frame: Vec<u8>,
    stdio: Stdio,
}

impl Command {
    pub fn new(exec: Exec) -> Result<Self> {
        let stdio = exec.stdio;
        let frame = Request::Exec(exec)
            .encode()
            .context("the command, its arguments or its environment are too much")?;
        Ok(Self { frame, stdio })
    }
}

fn new_token() -> Result<Token> {
    let mut token = [0; 16];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())
        .context("draw a random token")?;
    Ok(token)
}

/// Runs a command by connections from `connect`; everything is sent without waiting for the sandbox, and then `sent` is called.
pub fn run(
    connect: &dyn Fn() -> io::Result<OwnedFd>,
    command: &Command,
    streams: Streams<'_>,
    signals: &Signals,
    sent: impl FnOnce(),
) -> Result<Outcome> {
    let tty = matches!(command.stdio, Stdio::Tty(_));
    let private = tty.then(|| private_terminal(streams.stdin)).flatten();
    let streams = match &private {
        Some(terminal) => Streams { stdin: terminal.as_fd(), stdout: terminal.as_fd(), ..streams },
        None => streams,
    };
    let token = new_token()?;
    let opened = open(connect, token, Role::Control).and_then(|control| {
        let control = Control::new(control, &command.frame);
        Ok((control, open_streams(connect, token, command.stdio, streams)?))
    });
    let (control, pumps) = match opened {
        Err(error) if is_refused(&error) => {
            return Ok(Outcome { end: End::Closed, started: false, first_byte_ns: 0 });
        }
        other => other.context("connect to the sandbox")?,
    };
    sent();
    let session =
        Session { control, pumps, streams, signals, tty, raw: None, started: false, first_byte_ns: 0 };
    session.run()
}

struct Session<'a> {
    control: Control,
    pumps: Vec<Pump<'a>>,
    streams: Streams<'a>,
    signals: &'a Signals,
    tty: bool,
    raw: Option<RawMode<'a>>,
    started: bool,
    first_byte_ns: u64,
}

impl Session<'_> {
    fn run(mut self) -> Result<Outcome> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut end = None;
        while end.is_none() {
            let timeout = (!self.started).then(|| deadline.saturating_duration_since(Instant::now()));
            let ready = self.wait(timeout)?;
            if ready.is_empty() && timeout == Some(Duration::ZERO) {
                end = Some(End::Silent);
            }
            if ready.signals {
                end = self.answer_signals()?;
            }
            if end.is_none() && ready.control {
                end = self.answer_control()?;
            }
            if let Some(hangup) = self.pump(&ready)? {
                end = end.or(Some(hangup));
            }
        }
        let end = end.expect("the loop ends with one");
        self.pumps.retain(|pump| pump.way() == Way::ToHost);
        if !matches!(end, End::Signal(_) | End::Silent) {
            self.drain()?;
        }
        Ok(Outcome { end, started: self.started, first_byte_ns: self.first_byte_ns })
    }

    /// The last output: all of it where the reader is slow, but not for ever where the guest keeps a stream open.
    fn drain(&mut self) -> Result<()> {
        while self.pumps.iter().any(|pump| !pump.is_done()) {
            let idle = self.pumps.iter().all(Pump::is_empty);
            let ready = self.wait(idle.then_some(DRAIN_TIMEOUT))?;
            if ready.signals && self.answer_signals()?.is_some() || ready.is_empty() && idle {
                break;
            }
            self.pump(&ready)?;
        }
        Ok(())
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<Ready> {
        let mut fds = vec![
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.as_fd(), self.control.interest()),
        ];
        for (index, pump) in self.pumps.iter().enumerate() {
            if self.takes_part(index) {
                let (fd, events) = pump.interest();
                fds.push(PollFd::from_borrowed_fd(fd, events));
            }
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref())).context("wait for the session")?;
        let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
        let (signals, control) = (fired.next() == Some(true), fired.next() == Some(true));
        let mut pumps = Vec::with_capacity(self.pumps.len());
        for index in 0..self.pumps.len() {
            pumps.push(self.takes_part(index) && fired.next() == Some(true));
        }
        Ok(Ready { signals, control, pumps })
    }

    /// Input waits for the command to be there: a start that fails can then be tried again with all of it.
    fn takes_part(&self, index: usize) -> bool {
        let pump = &self.pumps[index];
        !pump.is_done() && (self.started || pump.way() == Way::ToHost)
    }

    fn pump(&mut self, ready: &Ready) -> Result<Option<End>> {
        for (index, _) in ready.pumps.iter().enumerate().filter(|(_, ready)| **ready) {
            let Some(pump) = self.pumps.get_mut(index) else { continue };
            let (way, was_empty) = (pump.way(), pump.is_empty());
            let step = pump.step();
            if self.first_byte_ns == 0 && way == Way::ToHost && !pump.is_empty() {
                self.first_byte_ns = now_ns();
            }
            match step {
                Ok(Step::Ended) if self.tty && way == Way::ToGuest && was_empty => return Ok(TERMINAL_GONE),
                Err(_) if self.tty => return Ok(TERMINAL_GONE),
                Err(error) if way == Way::ToHost => return Err(error).context("write the command's output"),
                // Input that cannot be read has ended.
                _ => {}
            }
        }
        Ok(None)
    }

    fn answer_control(&mut self) -> Result<Option<End>> {
        let open = self.control.progress();
        loop {
            match self.control.reply() {
                Err(error) => return Ok(Some(End::Nonsense(error))),
                Ok(None) => break,
                Ok(Some(Reply::Started)) if !self.started => self.start()?,
                Ok(Some(Reply::Started)) => {}
                Ok(Some(Reply::Exited { code })) => return Ok(Some(End::Exited(code))),
                Ok(Some(Reply::Failed { code, message })) => return Ok(Some(End::Failed { code, message })),
                Ok(Some(Reply::VersionMismatch { init })) => return Ok(Some(End::Mismatch { init })),
            }
        }
        Ok((!open).then_some(End::Closed))
    }

    /// The command runs. Until now ^C was for us, so that a start can be given up.
    fn start(&mut self) -> Result<()> {
        self.started = true;
        if self.tty {
            self.raw = Some(RawMode::enter(self.streams.stdin).context("set the terminal to raw mode")?);
            self.resize();
        }
        Ok(())
    }

    fn resize(&mut self) {
        self.control.send(&Request::Resize(term::size(self.streams.stdin)));
    }

    fn answer_signals(&mut self) -> Result<Option<End>> {
        while let Some(signal) = self.signals.next() {
            match signal {
                libc::SIGWINCH if self.tty => self.resize(),
                libc::SIGWINCH => {}
                libc::SIGTSTP => self.stop()?,
                libc::SIGCONT => self.resume()?,
                libc::SIGUSR1 | libc::SIGUSR2 => self.forward(signal),
                // On a terminal the command's signals are typed; one from elsewhere is meant for us.
                _ if self.tty || !self.started => return Ok(Some(End::Signal(signal))),
                _ => self.forward(signal),
            }
        }
        Ok(None)
    }

    fn forward(&mut self, signal: i32) {
        if let Ok(signal) = u8::try_from(signal) {
            self.control.send(&Request::Signal(signal));
        }
    }

    /// As the shell expects of ^Z: the terminal as it was, and stopped until somebody says to go on.
    fn stop(&mut self) -> Result<()> {
        if let Some(raw) = &self.raw {
            raw.suspend();
        }
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)
            .context("stop")
    }

    fn resume(&mut self) -> Result<()> {
        if let Some(raw) = &self.raw {
            raw.resume().context("set the terminal to raw mode")?;
            self.resize();
        }
        Ok(())
    }
}

/// What can be done without waiting.
#[derive(Debug, Default)]
struct Ready {
    signals: bool,
    control: bool,
    pumps: Vec<bool>,
}

impl Ready {
    fn is_empty(&self) -> bool {
        !self.signals && !self.control && !self.pumps.contains(&true)
    }
}
