//! `coracle policy`: what sandboxes may reach. It owns the group's help, which has the language of rules, and the commands that change
//! a policy; those that only look are in the modules below. What a rule means is decided in the gateway.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};
use gateway::policy::{self, Files, Preset, Rule, Rules, edit, parse_list};

use crate::cmd::Typed;
use crate::output::{note, print};
use crate::places;
use crate::store::{Sandbox, Store};
use crate::text::{Raw, quoted};

mod log;
mod look;

pub const NAMES: [&str; 7] = ["allow", "deny", "rm", "ls", "check", "log", "preset"];

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "policy",
    help_triggers("-h", "--help"),
    example = "coracle policy allow example.com '*.example.org:443'
coracle policy allow --sandbox claude-proj 10.0.0.5:5432
coracle policy allow localhost:8080     a server on this machine; in the sandbox it is host.coracle.internal:8080
coracle policy deny '**.example.net'
coracle policy check example.com:22
coracle policy log --follow             what sandboxes reach and what they are refused, as it happens
coracle policy preset locked            nothing but what your own rules allow",
    note = "Rules, to be put in quotes where they have a *; several with commas or spaces:
  example.com        this host, on every port; neither www.example.com nor anything else below it
  example.com:443    on this port
  *.example.com      one level below it: www.example.com, but neither a.b.example.com nor example.com
  **.example.com     any level below it, but not example.com
  **                 every host by its name, and every address of the open internet
  192.0.2.7          an address, 10.0.0.0/8 or 2001:db8::/32 a network; with a port: 10.0.0.0/8:22, [2001:db8::1]:22
  localhost:8080     a port of this machine's loopback",
    note = "Deny wins, whatever allows it and wherever the rule stands; what no rule allows is denied. Private, link-local and metadata addresses
and this machine are reached only when a rule names them (a network that is no wider than their own), whatever name leads there: a
host of your own network needs a rule for its name and one for its address.",
    note = "A preset is what is allowed before your own rules: balanced (the default: AI services, package registries, code hosts, container
registries), open, or locked. Rules are for all sandboxes, or for one with --sandbox; they act at once, on open connections too."
)]
/// What sandboxes may reach: allow, deny, list, check, and the log.
pub struct Args {
    #[argh(subcommand)]
    pub command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    Allow(Allow),
    Deny(Deny),
    Rm(Rm),
    Ls(look::Ls),
    Check(look::Check),
    Log(log::Args),
    Preset(SetPreset),
}

/// The flags of a command of this group.
pub fn describe(name: &str) -> Option<CommandInfoWithArgs> {
    Some(match name {
        "policy allow" => Allow::get_args_info(),
        "policy deny" => Deny::get_args_info(),
        "policy rm" => Rm::get_args_info(),
        "policy ls" => look::Ls::get_args_info(),
        "policy check" => look::Check::get_args_info(),
        "policy log" => log::Args::get_args_info(),
        "policy preset" => SetPreset::get_args_info(),
        _ => return None,
    })
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        match self.command {
            Command::Allow(args) => add(&args.rules, args.sandbox.as_ref(), true),
            Command::Deny(args) => add(&args.rules, args.sandbox.as_ref(), false),
            Command::Rm(args) => args.run(),
            Command::Ls(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Log(args) => args.run(),
            Command::Preset(args) => args.run(),
        }
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "allow",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] RULE...",
    note = "coracle help policy says how rules are written."
)]
/// Let sandboxes reach what the rules say, at once.
pub struct Allow {
    /// for this sandbox; the default is all
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// the rules
    #[argh(positional, arg_name = "RULE")]
    pub rules: Vec<Raw>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "deny",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] RULE...",
    note = "Deny wins over every rule that allows. coracle help policy says how rules are written."
)]
/// Refuse sandboxes what the rules say, at once; open connections are cut.
pub struct Deny {
    /// for this sandbox; the default is all
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// the rules
    #[argh(positional, arg_name = "RULE")]
    pub rules: Vec<Raw>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "rm",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] RULE...",
    note = "A rule that both allows and denies goes from both. What a preset allows is refused by coracle policy deny."
)]
/// Take rules back, at once.
pub struct Rm {
    /// rules of this sandbox; the default is those for all
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// the rules, as coracle policy ls shows them
    #[argh(positional, arg_name = "RULE")]
    pub rules: Vec<Raw>,
}

impl Rm {
    fn run(self) -> Result<u8> {
        let rules = parse(&self.rules, "rm")?;
        let place = Place::find(self.sandbox.as_ref())?;
        let show = match &place.sandbox {
            Some(sandbox) => format!("sandbox {} has no rule", sandbox.name),
            None => "no rule for all sandboxes is".into(),
        };
        let check = |all: &Rules| {
            let known = |rule: &&Rule| all.allow.contains(rule) || all.deny.contains(rule);
            let Some(missing) = rules.iter().find(|rule| !known(rule)) else { return Ok(()) };
            let preset = Preset::ALL.iter().any(|it| it.rules().contains(missing));
            let remedy = if preset { "; what a preset allows is refused by coracle policy deny" } else { "" };
            Err(anyhow!("{show} {missing}; coracle policy ls lists them{remedy}"))
        };
        // Before the edit, which would make a folder and a lock for nothing.
        let path = place.path()?;
        check(&Rules::read(&path)?.unwrap_or_default())?;
        edit(&path, |all| {
            check(all)?;
            all.allow.retain(|rule| !rules.contains(rule));
            all.deny.retain(|rule| !rules.contains(rule));
            Ok(true)
        })?;
        Ok(0)
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "preset",
    help_triggers("-h", "--help"),
    usage = "[--sandbox NAME] [open | balanced | locked]",
    note = "Without a preset, the one that holds is printed: its list, with comments. That of a sandbox holds in place of that for all."
)]
/// Choose what is allowed before your own rules, at once; or print it.
pub struct SetPreset {
    /// for this sandbox; the default is all
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// open, balanced or locked
    #[argh(positional, arg_name = "PRESET")]
    pub preset: Option<Raw>,
}

impl SetPreset {
    fn run(self) -> Result<u8> {
        let Some(typed) = &self.preset else {
            let place = Place::find(self.sandbox.as_ref())?;
            let (global, own) = place.rules()?;
            print(own.preset.or(global.preset).unwrap_or_default().text())?;
            return Ok(0);
        };
        let preset = typed.0.to_str().and_then(Preset::parse).with_context(|| {
            format!("{} is not a preset; there are open, balanced and locked", quoted(&typed.0))
        })?;
        edit(&Place::find(self.sandbox.as_ref())?.path()?, |rules| {
            rules.preset = Some(preset);
            Ok(true)
        })?;
        Ok(0)
    }
}

fn add(typed: &[Raw], sandbox: Option<&Raw>, allow: bool) -> Result<u8> {
    let rules = parse(typed, if allow { "allow" } else { "deny" })?;
    let place = Place::find(sandbox)?;
    let mut denied = Vec::new();
    edit(&place.path()?, |all| {
        denied = rules.iter().filter(|rule| allow && all.deny.contains(rule)).cloned().collect();
        Ok(Rules::add(if allow { &mut all.allow } else { &mut all.deny }, &rules))
    })?;
    for rule in denied {
        note(&format!(
            "coracle: {rule} is denied as well, and deny wins; coracle policy rm takes both back\n"
        ));
    }
    Ok(0)
}

/// The rules of a command line. Docker Sandboxes has `network` before them.
fn parse(typed: &[Raw], command: &str) -> Result<Vec<Rule>> {
    let typed = match typed {
        [first, rest @ ..] if first.0 == "network" && !rest.is_empty() => rest,
        all => all,
    };
    ensure!(!typed.is_empty(), "{command} needs a rule, such as example.com; see coracle help policy");
    Ok(typed.iter().map(rules).collect::<Result<Vec<_>>>()?.concat())
}

/// The rules of one argument.
pub fn rules(typed: &Raw) -> Result<Vec<Rule>> {
    let text = typed.0.to_str().with_context(|| format!("{} is not a rule", quoted(&typed.0)))?;
    parse_list(text).map_err(|(rule, error)| anyhow!("the rule {} {error}", quoted(rule)))
}

/// Whose policy is meant.
struct Place {
    sandbox: Option<Sandbox>,
}

impl Place {
    fn find(typed: Option<&Raw>) -> Result<Self> {
        let find = |name: &OsStr| Store::existing(name)?.find(name);
        Ok(Self { sandbox: typed.map(|name| find(&name.0)).transpose()? })
    }

    fn files(&self) -> Result<Files> {
        let sandbox = self.sandbox.as_ref().map(|sandbox| sandbox.path.join(policy::NAME));
        Ok(Files { global: places::settings()?.join(policy::NAME), sandbox })
    }

    /// The file to change.
    fn path(&self) -> Result<PathBuf> {
        let files = self.files()?;
        Ok(files.sandbox.unwrap_or(files.global))
    }

    /// Those for all, and the sandbox's own.
    fn rules(&self) -> Result<(Rules, Rules)> {
        let files = self.files()?;
        let own = files.sandbox.as_deref().map(Rules::read).transpose()?.flatten();
        Ok((Rules::read(&files.global)?.unwrap_or_default(), own.unwrap_or_default()))
    }
}
