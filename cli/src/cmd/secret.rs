//! `coracle secret`: what the gateway puts into requests, so that no sandbox has it. It owns the group's help, and the commands that
//! only look and remove. No secret is ever printed, nor taken from an argument, which other users could see.

use anyhow::{Context, Result, bail};
use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};
use gateway::credentials::{Entry, Origin, Store, find};
use serde_json::{Value, json};

use crate::cmd::Typed;
use crate::config;
use crate::output::{print, table};
use crate::places;
use crate::text::{Raw, plain, quoted};

mod set;

pub const NAMES: [&str; 3] = ["set", "ls", "rm"];
/// Of a secret that is shown as its end, the shortest; and how much that is.
const SHOWN_MIN: usize = 24;
const SHOWN: usize = 4;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "secret",
    help_triggers("-h", "--help"),
    example = "coracle secret set anthropic                      asks for it, without showing it
pass show openai | coracle secret set openai
coracle secret set github --command 'gh auth token'
coracle secret set mine --host api.example.com --header 'X-Key: %s'
coracle secret ls",
    note = "A sandbox never has a secret. Its requests to the service's hosts get it on their way, in the gateway on this machine, and
nothing else does; in the sandbox, variables such as ANTHROPIC_API_KEY hold a placeholder.
What the sandbox itself puts into such requests to log in with is taken out.",
    note = "Services: anthropic, openai, github, google, and hosts that you name. Without a stored secret, run and exec lend the sandbox that
they start what your own environment has for the services that its agent uses: ANTHROPIC_API_KEY=... coracle run claude. That is
not stored, and gone when the sandbox stops."
)]
/// Credentials that sandboxes use without having them: set, list, remove.
pub struct Args {
    #[argh(subcommand)]
    pub command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    Set(set::Args),
    Ls(Ls),
    Rm(Rm),
}

/// The flags of a command of this group.
pub fn describe(name: &str) -> Option<CommandInfoWithArgs> {
    Some(match name {
        "secret set" => set::Args::get_args_info(),
        "secret ls" => Ls::get_args_info(),
        "secret rm" => Rm::get_args_info(),
        _ => return None,
    })
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        match self.command {
            Command::Set(args) => args.run(),
            Command::Ls(args) => args.run(),
            Command::Rm(args) => args.run(),
        }
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ls",
    help_triggers("-h", "--help"),
    usage = "[--json]",
    note = "Of a secret only its end is shown."
)]
/// List what is stored.
pub struct Ls {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Ls {
    fn run(self) -> Result<u8> {
        let secrets = Store::load(&places::settings()?)?.secrets;
        print(&if self.json {
            format!("{:#}\n", secrets.iter().map(json).collect::<Value>())
        } else {
            let head = ["SERVICE", "SANDBOX", "HOSTS", "SECRET"].map(String::from).to_vec();
            table(&std::iter::once(head).chain(secrets.iter().map(row)).collect::<Vec<_>>())
        })?;
        Ok(0)
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let sandbox = entry.sandbox.as_deref().unwrap_or("all");
    vec![plain(&entry.service), plain(sandbox), plain(hosts(entry).join(" ")), shown(&entry.origin)]
}

fn json(entry: &Entry) -> Value {
    json!({
        "service": entry.service,
        "sandbox": entry.sandbox,
        "hosts": hosts(entry),
        "secret": match &entry.origin {
            Origin::Value(_) => Some(shown(&entry.origin)),
            Origin::Command(_) => None,
        },
        "command": match &entry.origin {
            Origin::Value(_) => None,
            Origin::Command(line) => Some(line),
        },
    })
}

fn hosts(entry: &Entry) -> Vec<String> {
    let with_port = |(host, port): &(String, u16)| match port {
        443 => host.clone(),
        port => format!("{host}:{port}"),
    };
    match (&entry.custom, find(&entry.service)) {
        (Some(custom), _) => custom.hosts.iter().map(with_port).collect(),
        (None, Some(service)) => service.hosts.iter().map(|host| host.name.to_owned()).collect(),
        (None, None) => Vec::new(),
    }
}

fn shown(origin: &Origin) -> String {
    match origin {
        // It is ASCII.
        Origin::Value(secret) if secret.len() >= SHOWN_MIN => {
            format!("...{}", plain(secret.get(secret.len() - SHOWN..).unwrap_or_default()))
        }
        Origin::Value(_) => "...".to_owned(),
        Origin::Command(line) => format!("command: {}", plain(line)),
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "rm",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] SERVICE",
    note = "Sandboxes that run cannot use it from then on."
)]
/// Remove a stored secret.
pub struct Rm {
    /// the one for this sandbox only
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// as coracle secret ls lists it
    #[argh(positional, arg_name = "SERVICE")]
    pub service: Raw,
}

impl Rm {
    fn run(self) -> Result<u8> {
        let sandbox = scope(self.sandbox.as_ref())?;
        let settings = places::settings()?;
        let is_it = |entry: &Entry| self.service.0 == *entry.service && entry.sandbox == sandbox;
        // What is not there shall not make a file either.
        if Store::load(&settings)?.secrets.iter().any(is_it)
            && Store::change(&settings, |secrets| secrets.extract_if(.., |it| is_it(it)).count())? > 0
        {
            return Ok(0);
        }
        let of = sandbox.map(|name| format!(" for sandbox {name} alone")).unwrap_or_default();
        bail!("no secret is stored for {}{of}; coracle secret ls lists them", quoted(&self.service.0))
    }
}

/// The sandbox that a secret is for.
fn scope(sandbox: Option<&Raw>) -> Result<Option<String>> {
    sandbox.map(|name| config::check_name(&name.0).context("--sandbox")).transpose()
}
