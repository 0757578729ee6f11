//! `coracle template build`: an agent's template, now rather than at its first run.

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};

use crate::agents;
use crate::output::print;
use crate::templates::build;
use crate::text::Raw;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "build",
    help_triggers("-h", "--help"),
    usage = "[--download-only] AGENT",
    note = "The agent's packages come from the npm registry, or the one in the environment variable npm_config_registry; their hashes
are in the agent's file. They are unpacked in a virtual machine. What was downloaded stays in ~/.cache/coracle.",
    example = "coracle template build claude
coracle template build --download-only claude   the rest can be done offline"
)]
/// Build an agent's template, in place of the one that is there.
pub struct Args {
    /// get what is needed from the network, and build nothing
    #[argh(switch)]
    pub download_only: bool,
    /// the agent
    #[argh(positional, arg_name = "AGENT")]
    pub agent: Raw,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        let agent = agents::find(&self.agent.0)?;
        if agent.template() != agent.name || agent.packages.is_empty() && agent.files.is_empty() {
            bail!("agent {} has no template of its own: it runs in {}", agent.name, agent.template());
        }
        if self.download_only {
            build::download_packages(&agent)?;
            return Ok(0);
        }
        let template = build::build(&agent)?;
        print(&format!("{}\n", template.name))?;
        Ok(0)
    }
}
