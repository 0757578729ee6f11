//! `coracle resize`: another size for a sandbox that is there. The disk grows at once, also under a running VM; CPUs and memory
//! are those of the next start. It owns the order of the steps: what is interrupted midway can be repeated.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use protocol::{Reply, Request};
use rustix::process::Signal;

use crate::cmd::{Typed, run};
use crate::config::{SandboxConfig, Sizes};
use crate::output::{note, print};
use crate::store::{Locked, Sandbox, Store};
use crate::text::{Raw, plain};
use crate::units::show_mib;
use crate::{launch, session};

/// The guest gives up after 5 s itself; one that starts just now has to get ready first.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "resize",
    help_triggers("-h", "--help"),
    usage = "[--disk SIZE] [--cpus N] [-m SIZE] NAME",
    example = "coracle resize --disk 50g shell-proj
coracle resize --cpus 4 -m 8g shell-proj && coracle stop shell-proj",
    note = "The disk can only grow, at once even while the sandbox runs, and takes space only as far as it is used. CPUs and memory are
changed from the sandbox's next start on. NAME is a sandbox's name, or the beginning of its id."
)]
/// Give a sandbox a larger disk, or other CPUs and memory.
pub struct Args {
    /// size of the disk, such as 50g; not smaller than now
    #[argh(option, arg_name = "SIZE")]
    pub disk: Option<Raw>,
    /// number of CPUs
    #[argh(option, arg_name = "N")]
    pub cpus: Option<Raw>,
    /// memory, such as 512m or 4g, rounded up to steps of 128m beyond 512m
    #[argh(option, short = 'm', arg_name = "SIZE")]
    pub memory: Option<Raw>,
    /// the sandbox
    #[argh(positional, arg_name = "NAME")]
    pub name: Raw,
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let sizes = Sizes::new(self.cpus.as_ref(), self.memory.as_ref(), self.disk.as_ref())?;
        ensure!(
            sizes != Sizes::default(),
            "resize needs a new size: --disk, --cpus or --memory; see coracle resize --help"
        );
        let store = Store::existing(&self.name.0)?;
        let sandbox = store.find(&self.name.0)?;
        // What is wrong is said before anything is touched, even the lock.
        resized(&sandbox, sizes)?;
        // A lock that is free keeps the sandbox from being started halfway.
        let lock = match store.lock(&sandbox)? {
            Locked::Gone => bail!("sandbox {} is being removed", sandbox.name),
            Locked::Ours(lock) => Some(lock),
            Locked::Busy => None,
        };
        resize(&sandbox, sizes, lock.is_none())?;
        print(&format!("{}\n", sandbox.name))?;
        Ok(0)
    }
}

/// The configuration that there is, and the one that there will be.
fn resized(sandbox: &Sandbox, sizes: Sizes) -> Result<(SandboxConfig, SandboxConfig)> {
    let name = &sandbox.name;
    let before = sandbox.config().with_context(|| run::broken(name))?;
    let mut config = before.clone();
    config.cpus = sizes.cpus.unwrap_or(config.cpus);
    config.memory_mib = sizes.memory_mib.unwrap_or(config.memory_mib);
    config.check_memory()?;
    if let Some(disk_mib) = sizes.disk_mib {
        ensure!(
            disk_mib >= config.disk_mib,
            "the disk of {name} has {} and cannot become {}: it only grows. What is not used takes no space; coracle stats shows it",
            show_mib(config.disk_mib),
            show_mib(disk_mib)
        );
        config.disk_mib = disk_mib;
    }
    Ok((before, config))
}

fn resize(sandbox: &Sandbox, sizes: Sizes, running: bool) -> Result<()> {
    let name = &sandbox.name;
    let alone = sandbox.alone()?;
    let (before, config) = resized(sandbox, sizes)?;
    if sizes.disk_mib.is_some() {
        sandbox.lengthen_disk(config.disk_mib << 20)?;
    }
    if config != before {
        sandbox.replace_config(&config)?;
    }
    drop(alone);
    if !running {
        return Ok(());
    }
    if sizes.disk_mib.is_some()
        && let Err(error) = grow_now(sandbox, config.disk_mib << 20)
    {
        note(&format!("coracle: {name} sees its larger disk from its next start on ({error:#})\n"));
    }
    if (config.cpus, config.memory_mib) != (before.cpus, before.memory_mib) {
        note(&format!("coracle: {name} is running, and has other CPUs and memory from its next start on\n"));
    }
    Ok(())
}

/// First the VMM looks at the file again, then init at the device.
fn grow_now(sandbox: &Sandbox, bytes: u64) -> Result<()> {
    ensure!(sandbox.signal(Signal::HUP), "it is just starting or ending");
    let connect = || launch::connect_to(sandbox);
    match session::ask(&connect, &Request::GrowDisk(bytes), TIMEOUT)? {
        Reply::Exited { code: 0 } => Ok(()),
        Reply::Failed { message, .. } => bail!("{}", plain(message)),
        _ => bail!("it answers something else"),
    }
}
