//! `coracle template save`: a sandbox's root as a template.

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};

use crate::agents;
use crate::cmd::run;
use crate::output::print;
use crate::store::{Locked, Store};
use crate::templates::images;
use crate::text::{Raw, quoted};

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "save",
    help_triggers("-h", "--help"),
    usage = "SANDBOX NAME",
    note = "The sandbox has to be stopped. What is in the template: packages, files in the home folder and elsewhere in its root, logins of
programs among them. What is not: workspaces, variables of -e, and Docker's images and containers.",
    example = "coracle stop shell-proj && coracle template save shell-proj mine
coracle run -t mine claude"
)]
/// Make a template of what has been installed in a sandbox.
pub struct Args {
    /// the sandbox
    #[argh(positional, arg_name = "SANDBOX")]
    pub sandbox: Raw,
    /// name of the template
    #[argh(positional, arg_name = "NAME")]
    pub name: Raw,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        let name = super::name(&self.name)?;
        let taken = agents::names()?.iter().any(|agent| agent == name) || images::reference(name)?.is_some();
        ensure!(!taken, "{} is the name of an agent's template or of an image; choose another", quoted(name));
        let store = Store::existing(&self.sandbox.0)?;
        let sandbox = store.find(&self.sandbox.0)?;
        let config = sandbox.config().with_context(|| run::broken(&sandbox.name))?;
        let _lock = match store.lock(&sandbox)? {
            Locked::Ours(lock) => lock,
            Locked::Busy => bail!("sandbox {0} is running; stop it first: coracle stop {0}", sandbox.name),
            Locked::Gone => bail!("sandbox {} has just been removed by another command", sandbox.name),
        };
        print(&format!("{}\n", images::save(name, &sandbox, &config)?.name))?;
        Ok(0)
    }
}
