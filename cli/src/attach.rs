//! From a sandbox and a command to its result: started if it is stopped, waited for if another command is starting or
//! stopping it, and explained if it dies. It owns what is tried again and for how long. What a session does is in
//! `session`.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use gateway::credentials::Lent;

use crate::config::{Network, SandboxConfig};
use crate::launch::{self, Launched};
use crate::output;
use crate::report::Report;
use crate::session::{self, Command, End, Streams};
use crate::store::{Lock, Locked, Sandbox, Store, file};
use crate::sys::Signals;
use crate::text::plain;

/// How long another command may take to start or stop the sandbox; the VMM itself ends within 10 s of being told.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a VMM whose connections have ended may take to end itself.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A session that came to an end: the exit code to return, and a sentence where the code is not the command's own.
#[derive(Debug)]
pub struct Attached {
    pub code: u8,
    pub message: Option<String>,
    /// 0 when there was no output.
    pub first_byte_ns: u64,
}

/// What became of an attempt to run a command.
#[derive(Debug)]
pub struct Visit {
    pub attached: Result<Attached>,
    /// The command was run, or init refused to: the sandbox works.
    pub entered: bool,
    /// The VMM, when this attempt has started one.
    pub launched: Option<Launched>,
}

/// A session to be.
pub struct Attach<'a> {
    pub store: &'a Store,
    pub sandbox: &'a Sandbox,
    pub streams: Streams<'a>,
    pub signals: &'a Signals,
    /// Every kernel message goes to the console log, if this starts the sandbox.
    pub console: bool,
    /// What it is, and what its gateway is lent, if this starts the sandbox.
    pub config: &'a SandboxConfig,
    pub lent: &'a [Lent],
}

impl Attach<'_> {
    /// Runs a command; `lock` is the sandbox's, when it has just been created.
    pub fn run(&self, command: &Command, lock: Option<Lock>) -> Visit {
        let mut visit = Visit { entered: false, launched: None, attached: Ok(ended_by(0)) };
        visit.attached = self.enter(command, lock, &mut visit);
        visit
    }

    fn enter(&self, command: &Command, mut lock: Option<Lock>, visit: &mut Visit) -> Result<Attached> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            let free = match lock.take() {
                Some(lock) => Locked::Ours(lock),
                None => self.store.lock(self.sandbox)?,
            };
            match free {
                Locked::Ours(lock) => {
                    visit.launched =
                        Some(launch::start(self.sandbox, &lock, self.console, self.config, self.lent)?)
                }
                Locked::Gone => bail!(Removed(self.sandbox.name.clone())),
                Locked::Busy => {}
            }
            if let Some(attached) = self.try_session(command, visit)? {
                return Ok(attached);
            }
            if let Some(signal) = self.signals.next() {
                return Ok(ended_by(signal));
            }
            ensure!(
                Instant::now() < deadline,
                "sandbox {0} is starting or stopping and does not answer; coracle rm -f {0} removes it",
                self.sandbox.name
            );
            sleep(POLL_INTERVAL);
        }
    }

    /// `None` is: not yet, or no longer; try again.
    fn try_session(&self, command: &Command, visit: &mut Visit) -> Result<Option<Attached>> {
        let started_here = visit.launched.is_some();
        // Opened now, a report can be read even after the folder has been removed.
        let report = self.sandbox.open_file(file::EXIT).ok();
        let connect = || launch::connect_to(self.sandbox);
        let sent = || self.start_gateway(&mut visit.launched);
        let outcome = session::run(&connect, command, self.streams, self.signals, sent)?;
        let first_byte_ns = outcome.first_byte_ns;
        visit.entered = outcome.started || matches!(outcome.end, End::Failed { .. });
        match outcome.end {
            End::Closed if !outcome.started && !started_here => Ok(None),
            End::Exited(code) => Ok(Some(Attached { code, message: None, first_byte_ns })),
            End::Signal(signal) => Ok(Some(Attached { first_byte_ns, ..ended_by(signal) })),
            End::Failed { code, message } => {
                Ok(Some(Attached { code, message: Some(plain(message)), first_byte_ns }))
            }
            End::Closed => Err(self.post_mortem(report, outcome.started)),
            fault => Err(explain(&self.sandbox.name, &fault)),
        }
    }

    /// Off the way of a start: the VMM is at work, and the guest has nothing to say yet.
    fn start_gateway(&self, launched: &mut Option<Launched>) {
        if self.config.network == Network::None {
            return;
        }
        let started = match launched {
            Some(launched) => launched.start_gateway(self.sandbox),
            None => launch::revive_gateway(self.sandbox, self.lent),
        };
        if let Err(error) = started {
            output::note(&format!("coracle: {}\n", output::explain(&error, false)));
        }
    }

    /// Why the connections ended, from what the VMM has left.
    fn post_mortem(&self, report: Option<std::fs::File>, started: bool) -> anyhow::Error {
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while self.sandbox.is_running() && Instant::now() < deadline {
            sleep(POLL_INTERVAL);
        }
        let name = &self.sandbox.name;
        let doing = if started { "ended while the command ran" } else { "did not start" };
        if self.sandbox.is_running() {
            return anyhow!("sandbox {name} hung up on the command, and is still there; see coracle doctor");
        }
        let report = report.and_then(|mut file| Report::read(&mut file));
        let sentence = match &report {
            Some(report) => report.sentence(),
            None => {
                let log = self.log();
                let killed = "its VMM was killed, perhaps for want of memory; run it again".to_owned();
                if log.is_empty() { killed } else { format!("its VMM ended without a report: {log}") }
            }
        };
        let error = anyhow!("sandbox {name} {doing}: {sentence}");
        match report.as_ref().map(Report::console).filter(|console| !console.is_empty()) {
            Some(console) => anyhow!(Console(plain_lines(console))).context(error.to_string()),
            None => error,
        }
    }

    /// The last line of what the VMM process said on its error stream.
    fn log(&self) -> String {
        let text = self.sandbox.open_file(file::LOG).ok().and_then(|file| io::read_to_string(file).ok());
        text.and_then(|text| text.lines().next_back().map(plain)).unwrap_or_default()
    }
}

fn ended_by(signal: i32) -> Attached {
    let code = 128u8.saturating_add(u8::try_from(signal).unwrap_or(0));
    Attached { code, message: None, first_byte_ns: 0 }
}

fn explain(name: &str, fault: &End) -> anyhow::Error {
    match fault {
        End::Mismatch { init } => anyhow!(
            "sandbox {name} speaks protocol version {init}, this Coracle {}; run coracle stop {name}, then again",
            protocol::VERSION
        ),
        End::Silent => anyhow!("sandbox {name} does not answer; coracle rm -f {name} removes it"),
        End::Nonsense(error) => {
            anyhow!("sandbox {name} answers nonsense ({error}); do not trust what it did")
        }
        other => unreachable!("{other:?} is no fault"),
    }
}

/// Lines of the guest's console, each harmless to a terminal.
pub fn plain_lines(console: &str) -> String {
    console.lines().map(|line| plain(line.trim_end())).collect::<Vec<_>>().join("\n")
}

/// Removed by another command between being found and being entered.
#[derive(Debug)]
pub struct Removed(String);

impl std::fmt::Display for Removed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sandbox {} has just been removed by another command", self.0)
    }
}

impl std::error::Error for Removed {}

/// The guest kernel's last words, shown only with all causes.
#[derive(Debug)]
pub struct Console(String);

impl std::fmt::Display for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kernel log:\n{}", self.0)
    }
}

impl std::error::Error for Console {}
