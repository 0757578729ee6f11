//! `coracle stop`, and how any command ends a VM: asked first, with a limit, then by force.
//! It owns the limits. It removes nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use rustix::process::Signal;

use crate::cmd::Typed;
use crate::output::print;
use crate::ports;
use crate::store::{Sandbox, Store, file};
use crate::text::{Raw, plain};

/// The VMM forces the guest's end 10 s after it is asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(11);
/// A killed process is gone as soon as the kernel has taken it apart.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "stop",
    help_triggers("-h", "--help"),
    usage = "NAME...",
    note = "Commands in them are ended, and files written. One that does not end within 10 seconds is ended by force.
NAME is a sandbox's name, or the beginning of its id. One that is stopped already is no error.",
    example = "coracle stop shell-proj"
)]
/// Stop sandboxes; what they hold stays.
pub struct Args {
    /// the sandboxes
    #[argh(positional, arg_name = "NAME")]
    pub names: Vec<Raw>,
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        ensure!(!self.names.is_empty(), "stop needs the name of a sandbox; coracle ls lists them");
        let store = Store::existing(&self.names[0].0)?;
        let sandboxes = self.names.iter().map(|name| store.find(&name.0)).collect::<Result<Vec<_>>>()?;
        for sandbox in &sandboxes {
            sandbox.signal(Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for sandbox in &sandboxes {
            end(sandbox, deadline)?;
            // Whoever stops it may want its ports.
            if sandbox.config().is_ok_and(|config| !config.ports.is_empty()) {
                ports::await_last_gateway(sandbox);
            }
            print(&format!("{}\n", sandbox.name))?;
        }
        store.collect_garbage();
        Ok(0)
    }
}

/// Waits for a VM that was asked to end, and ends it by force after the deadline.
pub fn end(sandbox: &Sandbox, deadline: Instant) -> Result<()> {
    if wait(sandbox, deadline, Signal::TERM) {
        return Ok(());
    }
    if wait(sandbox, Instant::now() + KILL_TIMEOUT, Signal::KILL) {
        return Ok(());
    }
    bail!(
        "sandbox {} does not end, even by force: the process that holds {} hangs, or is not Coracle's",
        sandbox.name,
        plain(sandbox.path.join(file::LOCK))
    )
}

/// Whether the VM has ended by then. The signal is repeated now and then: the lock may have been another command's at
/// first, which has started the VM only since.
fn wait(sandbox: &Sandbox, deadline: Instant, signal: Signal) -> bool {
    const REPEAT: u32 = 250;
    for round in 0.. {
        if !sandbox.is_running() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        if round % REPEAT == 0 {
            sandbox.signal(signal);
        }
        sleep(POLL_INTERVAL);
    }
    unreachable!("the deadline comes first")
}
