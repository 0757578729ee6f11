//! `coracle ls`: the sandboxes of this user. It reads local state only and asks no VM anything, so it cannot hang; one
//! that is damaged is listed as such and hides no other.

use anyhow::{Result, anyhow, ensure};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use crate::cmd::Typed;
use crate::config::SandboxConfig;
use crate::output::{ago, now_s, print, rfc3339, table};
use crate::ports;
use crate::store::{Sandbox, Store};
use crate::text::{encode, plain};

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ls",
    help_triggers("-h", "--help"),
    usage = "[--json | -q]",
    note = "STATUS is running, stopped or broken. A broken one says why; coracle rm -f removes it.",
    example = "coracle ls
coracle rm -f $(coracle ls -q)   remove them all",
    note = "In --json, bytes of a path that are not UTF-8 are code points U+10FF00 plus the byte."
)]
/// List the sandboxes, running and stopped.
pub struct Args {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print names only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// One line of the list.
struct Row {
    name: String,
    running: bool,
    ephemeral: bool,
    config: Result<SandboxConfig>,
}

impl Row {
    fn new(sandbox: &Sandbox) -> Self {
        let (running, ephemeral) = (sandbox.is_running(), sandbox.is_ephemeral());
        Self { name: sandbox.name.clone(), running, ephemeral, config: sandbox.config() }
    }

    fn status(&self) -> &'static str {
        match (&self.config, self.running) {
            (Err(_), _) => "broken",
            (Ok(_), true) => "running",
            (Ok(_), false) => "stopped",
        }
    }

    fn cells(&self, now_s: u64) -> Vec<String> {
        let (id, agent, created, ports, workspace) = match &self.config {
            Ok(config) => {
                let workspaces: Vec<_> = config.workspaces.iter().map(|it| it.show()).collect();
                let created = ago(config.created_s, now_s);
                let ports: Vec<_> = config.ports.iter().map(ports::show).collect();
                (config.id.clone(), plain(&config.agent), created, ports.join(" "), workspaces.join(" "))
            }
            Err(error) => {
                let none = String::new;
                (none(), none(), none(), none(), format!("({})", plain(format!("{error:#}"))))
            }
        };
        vec![self.name.clone(), id, agent, self.status().into(), created, ports, workspace]
    }

    fn json(&self) -> Value {
        let name = &self.name;
        match &self.config {
            Err(error) => json!({ "name": name, "status": "broken", "error": format!("{error:#}") }),
            Ok(config) => json!({
                "name": name,
                "id": config.id,
                "agent": config.agent,
                "status": self.status(),
                "created": rfc3339(config.created_s),
                "ports": config.ports.iter().map(ports::json).collect::<Vec<_>>(),
                "workspaces": config.workspaces.iter().map(|it| json!({
                    "path": encode(it.path.as_os_str()),
                    "read_only": it.read_only,
                })).collect::<Vec<_>>(),
                "cpus": config.cpus,
                "memory_mib": config.memory_mib,
                "disk_mib": config.disk_mib,
                "idle_timeout_s": config.idle_timeout_s,
                "ephemeral": self.ephemeral,
            }),
        }
    }
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        ensure!(!(self.json && self.quiet), "--json and -q are two forms; choose one");
        let rows = rows()?;
        print(&if self.quiet {
            rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>()
        } else if self.json {
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            format!("{:#}\n", Value::from(rows))
        } else {
            let now_s = now_s();
            let head =
                ["NAME", "ID", "AGENT", "STATUS", "CREATED", "PORTS", "WORKSPACE"].map(String::from).to_vec();
            let cells = rows.iter().map(|row| row.cells(now_s));
            table(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
        })?;
        Ok(0)
    }
}

fn rows() -> Result<Vec<Row>> {
    let Some(store) = Store::open()? else { return Ok(Vec::new()) };
    store.collect_garbage();
    let rows = store.names()?.into_iter().filter_map(|name| {
        let config = match store.open_sandbox(&name) {
            Ok(Some(sandbox)) => return Some(Row::new(&sandbox)),
            // Removed since the folder was read.
            Ok(None) => return None,
            Err(error) => Err(anyhow!("{error:#}")),
        };
        Some(Row { name: plain(&name), running: false, ephemeral: false, config })
    });
    Ok(rows.collect())
}
