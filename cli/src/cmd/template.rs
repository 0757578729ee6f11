//! `coracle template`: what sandboxes are made from. It owns the group's help, and the commands that only look and remove; those that
//! make templates are in the modules below.

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};
use serde_json::{Value, json};

use crate::cmd::Typed;
use crate::output::{ago, note, now_s, print, rfc3339, table};
use crate::templates::store::{self, Shelf};
use crate::templates::{self, Template, images};
use crate::text::{Raw, plain, quoted};
use crate::units;

mod build;
mod fetch;
mod save;

pub const NAMES: [&str; 7] = ["build", "pull", "load", "save", "ls", "inspect", "rm"];

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "template",
    help_triggers("-h", "--help"),
    example = "coracle template build claude
coracle template pull docker.io/library/debian:trixie
docker save my-image >image.tar && coracle template load image.tar
coracle template save shell-proj mine && coracle run -t mine claude
coracle template ls",
    note = "A template is what a sandbox starts from: a stack of read-only layers, which all sandboxes share.
A sandbox keeps the layers that it was made from: building or removing a template changes no sandbox."
)]
/// What sandboxes are made from: build, pull, load, save, list, inspect, remove.
pub struct Args {
    #[argh(subcommand)]
    pub command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    Build(build::Args),
    Pull(fetch::Pull),
    Load(fetch::Load),
    Save(save::Args),
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
}

/// The flags of a command of this group.
pub fn describe(name: &str) -> Option<CommandInfoWithArgs> {
    Some(match name {
        "template build" => build::Args::get_args_info(),
        "template pull" => fetch::Pull::get_args_info(),
        "template load" => fetch::Load::get_args_info(),
        "template save" => save::Args::get_args_info(),
        "template ls" => Ls::get_args_info(),
        "template inspect" => Inspect::get_args_info(),
        "template rm" => Rm::get_args_info(),
        _ => return None,
    })
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        match self.command {
            Command::Build(args) => args.run(),
            Command::Pull(args) => args.run(),
            Command::Load(args) => args.run(),
            Command::Save(args) => args.run(),
            Command::Ls(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Rm(args) => args.run(),
        }
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ls",
    help_triggers("-h", "--help"),
    usage = "[--json | -q]",
    note = "SIZE is that of all layers; those that several templates have are on the disk once."
)]
/// List the templates.
pub struct Ls {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print names only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

impl Ls {
    fn run(self) -> Result<u8> {
        ensure!(!(self.json && self.quiet), "--json and -q are two forms; choose one");
        let templates = store::list()?;
        print(&if self.quiet {
            templates.iter().map(|(name, _)| format!("{name}\n")).collect::<String>()
        } else if self.json {
            format!("{:#}\n", templates.iter().map(|(name, it)| json(name, it)).collect::<Value>())
        } else {
            let head = ["NAME", "SIZE", "LAYERS", "CREATED", "ORIGIN"].map(String::from).to_vec();
            let rows = templates.iter().map(|(name, template)| row(name, template));
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        })?;
        Ok(0)
    }
}

fn row(name: &str, template: &Result<Template>) -> Vec<String> {
    let (size, layers, created, origin) = match template {
        Ok(template) => {
            let size = units::show_mib(template.image.size().div_ceil(1 << 20));
            let created = match template.created_s {
                0 => String::new(),
                then => ago(then, now_s()),
            };
            (size, template.image.layers.len().to_string(), created, plain(&template.origin))
        }
        Err(error) => {
            (String::new(), String::new(), "broken".into(), format!("({})", plain(format!("{error:#}"))))
        }
    };
    vec![name.to_owned(), size, layers, created, origin]
}

fn json(name: &str, template: &Result<Template>) -> Value {
    match template {
        Err(error) => json!({ "name": name, "error": format!("{error:#}") }),
        Ok(template) => json!({
            "name": name,
            "origin": template.origin,
            "created": (template.created_s > 0).then(|| rfc3339(template.created_s)),
            "size": template.image.size(),
            "image": template.image,
        }),
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "inspect", help_triggers("-h", "--help"), usage = "NAME")]
/// Print all that is known of a template, as JSON.
pub struct Inspect {
    /// the template
    #[argh(positional, arg_name = "NAME")]
    pub name: Raw,
}

impl Inspect {
    fn run(self) -> Result<u8> {
        let name = written_out(&self.name)?;
        let template = templates::find(&name)?.with_context(|| templates::build::missing(&name))?;
        print(&format!("{:#}\n", json(&name, &Ok(template))))?;
        Ok(0)
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "rm",
    help_triggers("-h", "--help"),
    usage = "NAME...",
    note = "Layers go with the last template and the last sandbox that has them."
)]
/// Remove templates; sandboxes that were made from them go on.
pub struct Rm {
    /// the templates
    #[argh(positional, arg_name = "NAME")]
    pub names: Vec<Raw>,
}

impl Rm {
    fn run(self) -> Result<u8> {
        ensure!(!self.names.is_empty(), "rm needs the name of a template; coracle template ls lists them");
        let names = self.names.iter().map(written_out).collect::<Result<Vec<_>>>()?;
        let shelf = Shelf::open()?;
        if let Some(name) = names.iter().find(|name| !shelf.has(name)) {
            templates::find(name)?.with_context(|| templates::build::missing(name))?;
            bail!("template {} came with Coracle and goes with it", quoted(name));
        }
        names.iter().try_for_each(|name| shelf.remove(name))?;
        let freed = shelf.sweep()?;
        note(&format!("coracle: {} freed\n", units::show_mib(freed >> 20)));
        Ok(0)
    }
}

/// A template's name, where it is an image's with the tag that goes without saying.
fn written_out(typed: &Raw) -> Result<String> {
    let name = name(typed)?;
    Ok(images::reference(name)?.map_or_else(|| name.to_owned(), |reference| reference.to_string()))
}

fn name(typed: &Raw) -> Result<&str> {
    let name = typed.0.to_str().filter(|name| templates::is_name(name));
    name.with_context(|| format!("{} is not the name of a template", quoted(&typed.0)))
}
