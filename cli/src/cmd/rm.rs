//! `coracle rm`: sandboxes and all they hold are removed, whatever state they are in.
//! It owns the question that is asked before that. Folders shared with a sandbox are the user's and stay.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use argh::{ArgsInfo, FromArgs};
use rustix::process::Signal;

use crate::cmd::{Typed, stop};
use crate::config::check_name;
use crate::output::{note, print};
use crate::store::{Locked, NotFound, Sandbox, Store};
use crate::text::{Raw, plain};

/// Time for the guest to write out what it holds for the workspaces; its own disk is about to go anyway.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The exit code when the question was answered with no: what a script does next is not for a removed sandbox.
const NOT_CONFIRMED: u8 = 1;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "rm",
    help_triggers("-h", "--help"),
    usage = "[-f] NAME...",
    note = "One that is running is stopped first: with -f at once, else when you say yes; without a terminal to ask on, rm refuses.
NAME is a sandbox's name, or the beginning of its id.",
    example = "coracle rm shell-proj
coracle rm -f $(coracle ls -q)   remove them all"
)]
/// Remove sandboxes, with all that was installed or written in them.
pub struct Args {
    /// remove running ones without asking; one that does not exist is no error
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// the sandboxes
    #[argh(positional, arg_name = "NAME")]
    pub names: Vec<Raw>,
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        if self.names.is_empty() {
            // `rm -f $(coracle ls -q)` with none there.
            return if self.force {
                Ok(0)
            } else {
                bail!("rm needs the name of a sandbox; coracle ls lists them")
            };
        }
        if self.force {
            // What is not there is no error, but what could never be there is a mistake.
            self.names.iter().try_for_each(|name| check_name(&name.0).map(drop))?;
        }
        let Some(store) = self.store()? else { return Ok(0) };
        let mut sandboxes = Vec::new();
        for name in &self.names {
            match store.find(&name.0) {
                Err(error) if self.force && error.is::<NotFound>() => {}
                found => sandboxes.push(found?),
            }
        }
        let running: Vec<_> =
            sandboxes.iter().filter(|sandbox| sandbox.is_running()).map(|it| plain(&it.name)).collect();
        if !self.force && !running.is_empty() && !confirmed(&running)? {
            note("coracle: nothing removed\n");
            return Ok(NOT_CONFIRMED);
        }
        for sandbox in &sandboxes {
            remove(&store, sandbox)?;
            print(&format!("{}\n", sandbox.name))?;
        }
        store.collect_garbage();
        Ok(0)
    }

    fn store(&self) -> Result<Option<Store>> {
        if self.force { Store::open() } else { Store::existing(&self.names[0].0).map(Some) }
    }
}

fn confirmed(running: &[String]) -> Result<bool> {
    let names = running.join(", ");
    if !io::stdin().is_terminal() {
        bail!("sandbox {names} is running; stop it first with coracle stop, or remove it with coracle rm -f");
    }
    note(&format!("Remove {names}, which is running, with all that was written in it? [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The name is free at once, then the VM ends, then the files go. If this is killed midway, the next command goes on.
fn remove(store: &Store, sandbox: &Sandbox) -> Result<()> {
    // The lock, if it is free, keeps others from starting what is about to go.
    let lock = match store.lock(sandbox)? {
        Locked::Gone => return Ok(()),
        Locked::Ours(lock) => Some(lock),
        Locked::Busy => None,
    };
    let Some(trash) = store.trash(sandbox)? else { return Ok(()) };
    if lock.is_none() {
        sandbox.signal(Signal::TERM);
        stop::end(sandbox, Instant::now() + TIMEOUT)?;
    }
    match fs::remove_dir_all(&trash) {
        // The VMM removes it as well, when it ends.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("remove {}", plain(&trash))),
    }
}
