//! `coracle agents`: what can be run, and whether its template is there. It reads files only.

use anyhow::Result;
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use crate::agents::{self, Agent};
use crate::cmd::Typed;
use crate::output::{print, table};
use crate::templates::build;
use crate::text::plain;
use crate::units;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "agents",
    help_triggers("-h", "--help"),
    usage = "[--json]",
    note = "TEMPLATE is ready, or what building it takes: run does that when it is needed, coracle template build at once.
An agent is a file, NAME.toml. Your own go into ~/.config/coracle/agents, and come before those that Coracle has; those are in
share/coracle/agents beside the folder of the program, and are the examples to copy."
)]
/// List the agents that can be run.
pub struct Args {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let agents: Vec<(String, Result<Agent>)> =
            agents::names()?.into_iter().map(|name| (name.clone(), agents::find(name.as_ref()))).collect();
        print(&match self.json {
            true => format!("{:#}\n", agents.iter().map(json).collect::<Value>()),
            false => {
                let head = ["NAME", "TEMPLATE", "ABOUT"].map(String::from).to_vec();
                table(&std::iter::once(head).chain(agents.iter().map(row)).collect::<Vec<_>>())
            }
        })?;
        Ok(0)
    }
}

fn row((name, agent): &(String, Result<Agent>)) -> Vec<String> {
    let (template, about) = match agent {
        Ok(agent) => (state(agent), plain(&agent.about)),
        Err(error) => ("broken".into(), format!("({})", plain(format!("{error:#}")))),
    };
    vec![name.clone(), template, about]
}

fn state(agent: &Agent) -> String {
    match build::is_built(agent) {
        Ok(true) => "ready".into(),
        Ok(false) => match build::sizes(agent) {
            (0, _) => "missing".into(),
            (download, _) => format!("{} to download", units::show_mib(download.div_ceil(1 << 20))),
        },
        Err(_) => "broken".into(),
    }
}

fn json((name, agent): &(String, Result<Agent>)) -> Value {
    match agent {
        Err(error) => json!({ "name": name, "error": format!("{error:#}") }),
        Ok(agent) => json!({
            "name": name,
            "about": agent.about,
            "template": agent.template(),
            "ready": build::is_built(agent).unwrap_or(false),
            "command": agent.command,
            "args": agent.args,
            "credentials": agent.credentials,
            "packages": agent.packages.iter().map(|it| json!({
                "name": it.name, "version": it.version, "size": it.size, "unpacked": it.unpacked,
            })).collect::<Vec<_>>(),
        }),
    }
}
